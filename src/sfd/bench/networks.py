"""Builds the networks of a params file with random weights, and the shape of its latents. Nothing is downloaded or trained."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sfd.encoders.composite import CompositeEncoder
from sfd.encoders.flux2_vae import PATCH
from sfd.encoders.semantic.encoder import SemanticEncoder, semantic_class
from sfd.encoders.text.small import TextTransformer
from sfd.encoders.texture_vae import FLUX2, KlVae, TextureVae, TrainableAutoencoder, load_pretrained
from sfd.encoders.timm_networks import describe, encoder_network, rebuild
from sfd.encoders.tokenizers.tokenizer import Tokenizer
from sfd.encoders.vision import TrainableEncoder, VisionEncoder, freeze, with_patches
from sfd.errors import UserError
from sfd.models.backbone import Backbone, BackboneConfig, build_backbone
from sfd.models.conditions import TextFacts
from sfd.names import TOKENIZERS, load
from sfd.params import EncoderParams, Params, ScheduleParams, TextureVaeParams
from sfd.precision import Inference
from sfd.seeding import generator, seeded_initialisation
from sfd.training.backbone import backbone_config, condition_of

NUM_CLASSES = {"digits": 10}
"""Number of classes by data source. For other sources it is not known before their images are read."""
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LatentShape:
    """Composite latents ``(texture_channels + semantic_channels, grid, grid)`` and features ``(grid * grid, feature_dim)``."""

    grid: int
    texture_channels: int
    semantic_channels: int
    feature_dim: int
    num_classes: int

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape of one latent."""
        return self.texture_channels + self.semantic_channels, self.grid, self.grid

    @property
    def features(self) -> tuple[int, int]:
        """Shape of one image's features."""
        return self.grid * self.grid, self.feature_dim


def latent_shape(params: Params) -> LatentShape:
    """The shape of the latents that the stages before ``diffusion`` would make. 1,000 classes, unless the data set is built in."""
    encoder, semantic = params.encoder, params.semantic
    factor = params.texture_vae.factor or 2 ** (len(params.texture_vae.channels) - 1)
    return LatentShape(
        grid=params.data.image_size // factor
        if encoder.source == "none"
        else params.latents.tiles * (encoder.input_size // encoder.patch_size),
        texture_channels=_texture_channels(params.texture_vae),
        semantic_channels=0 if semantic.kind == "none" else semantic.latent_channels,
        feature_dim=_feature_dim(encoder) if params.needs_features else 0,
        num_classes=NUM_CLASSES.get(params.data.source, IMAGENET_CLASSES),
    )


def _texture_channels(params: TextureVaeParams) -> int:
    """Channels of the texture latent: from the VAE's own ``config.json`` if it is there, else from the parameters."""
    config = Path(params.file or "") / "config.json"
    if params.source == "file" and config.is_file():
        found = json.loads(config.read_text(encoding="utf-8"))
        return int(found["latent_channels"]) * (PATCH**2 if found.get("_class_name") == FLUX2 else 1)
    return params.latent_channels


def _feature_dim(params: EncoderParams) -> int:
    if params.source == "train":
        return params.width
    with torch.device("meta"):
        return _timm_encoder(params).feature_dim


def random_encoder(params: EncoderParams, seed: int) -> VisionEncoder:
    """The vision encoder. Raises :class:`UserError` if timm does not know its name."""
    if params.source == "train":
        return freeze(params, TrainableEncoder(params, num_outputs=1, seed=seed))
    with seeded_initialisation(seed, "bench/encoder"):
        return _timm_encoder(params).eval()


def _timm_encoder(params: EncoderParams) -> VisionEncoder:
    config = describe(encoder_network(params))
    return with_patches(rebuild(config), config, params)


def random_texture_vae(params: TextureVaeParams, seed: int) -> TextureVae:
    """The texture VAE: its own file if that is there, else LDM's layout with the widths of the parameters.

    Raises :class:`UserError` if diffusers is not installed, or for a hub name that cannot be loaded.
    """
    if params.is_fitted:
        tokenizer: type[Tokenizer] = load(TOKENIZERS, params.source)
        return tokenizer.build(params).eval()
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError("the texture VAE needs the package diffusers: install it, or leave the VAE out") from None
    if params.source == "train":
        return KlVae(TrainableAutoencoder(params, seed).autoencoder).eval()
    if params.source == "pretrained" or Path(params.file or "").is_dir():
        return load_pretrained(params)
    levels = len(params.channels)
    # LDM's f16 autoencoders have attention at their lowest resolution; its f8 ones have it only in the middle block.
    lowest = "Attn" if levels >= 5 else ""
    with seeded_initialisation(seed, "bench/texture_vae"):
        autoencoder = AutoencoderKL(
            block_out_channels=list(params.channels),
            down_block_types=["DownEncoderBlock2D"] * (levels - 1) + [f"{lowest}DownEncoderBlock2D"],
            up_block_types=[f"{lowest}UpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
            layers_per_block=params.layers_per_block,
            latent_channels=params.latent_channels,
        )
    return KlVae(autoencoder).eval()


def random_composite_encoder(params: Params, inference: Inference) -> CompositeEncoder:
    """Texture VAE, vision encoder and semantic encoder. Raises :class:`UserError` if they do not share one grid."""
    encoder = inference.place(random_encoder(params.encoder, params.seed)) if params.needs_features else None
    semantic = None
    if encoder is not None and params.semantic.kind != "none":
        semantic = inference.place(random_semantic(params, encoder.feature_dim))
    texture_vae = inference.place(random_texture_vae(params.texture_vae, params.seed))
    draws, tiles = params.latents.draws_semantics, params.latents.tiles
    made = CompositeEncoder(texture_vae, encoder, semantic, params.seed, inference.device, draws, tiles)
    made.check_grid(params.data.image_size)
    return made


def random_semantic(params: Params, feature_dim: int) -> SemanticEncoder:
    """The semantic encoder, neither fitted nor trained; its cost is the same."""
    return semantic_class(params.semantic.kind).build(params.semantic, feature_dim, params.seed).eval()


def text_of(params: Params) -> TextFacts | None:
    """What the parameters say of captions; None if the model is told no words."""
    text = params.text
    return TextFacts(text.width, text.max_tokens) if params.diffusion.model.condition == "text" else None


def text_network(params: Params) -> TextTransformer | None:
    """A text encoder that is trained here; None for one that others trained, whose size is not known before it is fetched."""
    text = params.text
    if text.source != "train":
        return None
    return TextTransformer(text.vocabulary, text.max_tokens, text.width, text.depth, text.num_heads)


def bench_config(params: Params, shape: LatentShape) -> BackboneConfig:
    """The backbone for these latents. Raises :class:`UserError` if its patches or REPA do not fit them."""
    condition = condition_of(params.diffusion, [str(index) for index in range(shape.num_classes)], text=text_of(params))
    return backbone_config(
        params.diffusion,
        params.schedule,
        condition,
        grid=shape.grid,
        texture_channels=shape.texture_channels,
        semantic_channels=shape.semantic_channels,
        feature_dim=shape.feature_dim,
    )


def random_backbone(params: Params, shape: LatentShape) -> Backbone:
    """The backbone, initialised as for training, except that the output layer is not zero. Otherwise all velocities would be zero."""
    random = generator(params.seed, "bench/backbone")
    network = build_backbone(bench_config(params, shape)).initialise(random)
    torch.nn.init.xavier_uniform_(network.output_layer().weight, generator=random)
    return network


def bench_schedule(params: Params) -> ScheduleParams:
    """The schedule; for one that is yet to be learnt some curve, since all cost the same."""
    return ScheduleParams.model_validate({"kind": "curve"}) if params.schedule.kind == "learnt" else params.schedule
