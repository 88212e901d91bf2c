"""Rules of the texture VAE: tokenizers, the terms of its loss, and its alignment with the encoder."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfd.params.schema import Params


def check_tokenizer(params: "Params") -> None:
    """A block of pixels has three components per pixel, and what is trained on top of it works on half blocks."""
    vae = params.texture_vae
    if vae.source == "pca" and vae.latent_channels > 3 * vae.block_size**2:
        raise ValueError(
            f"texture_vae.latent_channels {vae.latent_channels} must be at most 3 * texture_vae.block_size^2 = {3 * vae.block_size**2}"
        )
    if vae.is_fitted and vae.training is not None and vae.block_size % 2:
        raise ValueError(
            f"texture_vae.block_size {vae.block_size} must be even where texture_vae.training is given: change it, or set training to null"
        )


def check_reconstruction(params: "Params") -> None:
    """The weights of the texture VAE's loss weigh something."""
    vae = params.texture_vae
    for name in ("perceptual_weight", "adversarial_weight"):
        if getattr(vae, name) > 0.0 and not vae.is_trained:
            raise ValueError(
                f"texture_vae.{name} is {getattr(vae, name):g}, but texture_vae.source `{vae.source}` trains nothing here: set it to 0"
                + (", or give texture_vae.training" if vae.is_fitted else "")
            )
    if vae.perceptual_weight > 0.0 and params.encoder.source == "none":
        raise ValueError(
            f"texture_vae.perceptual_weight is {vae.perceptual_weight:g}, which compares the encoder's features, but encoder.source is `none`: "
            "set the weight to 0, or choose an encoder"
        )


def check_alignment(params: "Params") -> None:
    """The latent is trained, there are features to align it with, and the adaptive weight is that of the whole batch."""
    vae, alignment = params.texture_vae, params.texture_vae.alignment
    if alignment.weight == 0.0:
        return
    given = f"texture_vae.alignment.weight is {alignment.weight:g}"
    if vae.source != "train":
        raise ValueError(
            f"{given}, but the latent of texture_vae.source `{vae.source}` is not trained here: set the weight to 0, or the source to `train`"
        )
    if params.encoder.source == "none":
        raise ValueError(
            f"{given}, which compares with the encoder's features, but encoder.source is `none`: set the weight to 0, or choose an encoder"
        )
    if not alignment.adaptive:
        return
    if vae.training is not None and vae.training.accumulation_steps > 1:
        raise ValueError(
            f"{given} and adaptive, a ratio over the whole batch, but texture_vae.training.accumulation_steps is {vae.training.accumulation_steps}: "
            "set it to 1, or texture_vae.alignment.adaptive to false"
        )
    if params.runtime.texture_vae.compile:
        raise ValueError(
            f"{given} and adaptive, which goes back through the network twice, but runtime.texture_vae.compile is true, and a compiled network "
            "can go back once: set it to false, or texture_vae.alignment.adaptive to false"
        )
