"""Section ``quality``: when a stage stops. Nothing in it changes a result, so neither DVC nor a fingerprint looks at it."""

from pydantic import Field

from sfd.params.types import Fraction, Positive, Section


class QualityParams(Section):
    """Below a limit, a stage stops before later stages spend hours on its result; null: no check. May change at any time, as `runtime`."""

    images_per_class: Positive | None = Field(10, description="training images of the smallest class (stage `prepare`)")
    scored_images: float | None = Field(
        1.0,
        gt=0.0,
        description="images that samples, floors and reference can have in one class mix, as a share of the most that `evaluate.min_images` "
        "asks for (stage `prepare`)",
    )
    encoder_accuracy: Fraction | None = Field(
        0.2,
        description="held-out accuracy of an encoder that is trained here, class-balanced; 0 is chance, 1 is perfect",
    )
    psnr_gain: float | None = Field(
        0.0,
        description="held-out PSNR of the tokenizer minus that of the linear yardstick, dB (stage `texture_vae`)",
    )
    ssim_gain: float | None = Field(
        None, description="held-out SSIM of the tokenizer minus that of the linear yardstick (stage `texture_vae`)"
    )
    text_retrieval: Fraction | None = Field(
        0.02,
        description="share of the held-out images that find their caption first among those of 100 images; 0 is chance, 1 is perfect (stage `text`)",
    )
    explained_variance: float | None = Field(
        0.2, le=1.0, description="share of the features' variance that the semantic latents keep (stage `semantic`)"
    )
    judge_accuracy: Fraction | None = Field(
        0.3,
        description="held-out accuracy of each judge that knows the classes, class-balanced; 0 is chance, 1 is perfect",
    )
