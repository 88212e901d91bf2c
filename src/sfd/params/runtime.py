"""Section ``runtime``: how the stages run here. Nothing in it changes a result beyond rounding, so neither DVC nor a fingerprint looks at it."""

from typing import Annotated, Literal

from pydantic import Field

from sfd.params.types import Positive, Precision, Section

Sharding = Literal["ddp", "fsdp"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Workers = Annotated[int, Field(ge=0)] | None
"""Processes that read ahead; None: as many as are of use."""
BY_CORES = (
    "null: one per core that this process may use, as far as shared memory has room, and none for fewer than 2,000 images, which are read "
    "sooner without"
)


class TrainingRuntime(Section):
    """How a network is trained here. All of it may change between a kill and the resume."""

    num_workers: Workers = Field(
        0, description=f"processes that read batches ahead; 0: the training process reads them itself; {BY_CORES}"
    )
    compile: bool = Field(False, description="torch.compile the network (needs a C++ compiler on CPU)")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")
    log_every: Positive = Field(50, description="steps between logged averages of the losses")


class DiffusionRuntime(TrainingRuntime):
    """How the diffusion model is trained here."""

    sharding: Sharding = Field(
        "ddp",
        description="how several processes share the weights. `ddp`: each holds all of them; `fsdp`: each holds a part of the weights, of "
        "their averages and of the optimizer states, for models that do not fit one GPU. A single process trains the same with both",
    )
    activation_checkpointing: Literal["none", "block", "selective"] = Field(
        "none",
        description="what a training keeps of each block for its backward pass. `none`: everything; `selective`: the results of products and "
        "attention, and the rest is computed again; `block`: the block's input alone, which takes the least memory and a second forward pass",
    )
    grid_every: Positive = Field(10_000, description="steps between sample grids")
    grid_images: Positive = Field(32, description="images in a sample grid")
    heldout_every: Positive | None = Field(
        10_000,
        description="steps between losses of the averaged weights on held-out images, in `curves.csv`; null: none",
    )
    heldout_images: Positive = Field(
        500, description="held-out images for that; stage `latents` encodes at most 1,000 of them"
    )


class InferenceRuntime(Section):
    """How a trained network is used here."""

    batch_size: Positive = Field(100, description="images per call of the network")
    precision: Precision = Field(
        "auto",
        description="type of the network's products and convolutions; all else stays float32, and what was used is recorded. `auto`: bf16 on "
        "GPU, fp32 on CPU; `fp32`: without TF32",
    )
    compile: CompileMode | None = Field(
        None,
        description="mode of torch.compile (needs a C++ compiler on CPU); `reduce-overhead`: with CUDA graphs. Smaller batches are filled up. "
        "null: not compiled",
    )


class ReadingRuntime(InferenceRuntime):
    """How a stage reads images and passes them through its networks."""

    num_workers: Workers = Field(
        None, description=f"processes that read images ahead; 0: the stage reads them itself; {BY_CORES}"
    )


class JudgingRuntime(ReadingRuntime):
    """How judges see images."""

    precision: Precision = Field(
        "fp32",
        description="as of the other stages; but what judges give is compared between versions, machines and publications, and in bf16 two "
        "images that are nearly the same may get the same features",
    )


_TRAINING = TrainingRuntime.model_validate({})
_DIFFUSION = DiffusionRuntime.model_validate({})
_INFERENCE = InferenceRuntime.model_validate({})
_READING = ReadingRuntime.model_validate({})
_JUDGING = JudgingRuntime.model_validate({})


class RuntimeParams(Section):
    """What cannot change a result (beyond rounding), per stage. Neither DVC nor a fingerprint looks at it, so it may change at any time."""

    encoder: TrainingRuntime = _TRAINING
    texture_vae: TrainingRuntime = _TRAINING
    judge: TrainingRuntime = _TRAINING
    text: TrainingRuntime = _TRAINING
    features: ReadingRuntime = _READING
    semantic: TrainingRuntime = _TRAINING
    latents: ReadingRuntime = _READING
    diffusion: DiffusionRuntime = _DIFFUSION
    sample: InferenceRuntime = Field(
        _INFERENCE,
        description="an adaptive sampler chooses its steps by the error over the batch, so another number changes its images, too, within "
        "its tolerance",
    )
    evaluate: JudgingRuntime = Field(_JUDGING, description="also of stage reference and of `sfd audit`")
