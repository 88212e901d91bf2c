"""The frozen vision encoder, a timm ViT: pretrained by name, from a file, or a small one trained here."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sfd.errors import UserError
from sfd.network_files import load_weights, read_config, save_network
from sfd.params import EncoderParams
from sfd.seeding import seeded_initialisation

TRAINED_BASE = "vit_tiny_patch16_224"
"""The timm model whose dimensions a trained encoder replaces."""


class VisionEncoder(nn.Module):
    """Images to patch features after the final norm. ``config``: timm name and arguments, input size, mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any], vit: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.vit = vit
        self.register_buffer("mean", torch.tensor(config["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config["std"])[:, None, None], persistent=False)

    @property
    def feature_dim(self) -> int:
        """Channels of a patch feature."""
        return int(self.vit.num_features)  # type: ignore[arg-type]  # timm sets an int

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return int(self.config["input_size"]) // int(self.config["patch_size"])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 ``(B, 3, S, S)``, first resized to the input size -> features ``(B, grid*grid, feature_dim)``."""
        return self.features(images.float() / 255.0)

    def features(self, unit: Tensor) -> Tensor:
        """As :meth:`forward` with gradients, of images in [0, 1]."""
        pixels = (unit - self.mean) / self.std
        tokens: Tensor = self.vit.forward_features(resize(pixels, self.config["input_size"]))  # type: ignore[operator]  # a method of every timm ViT
        return tokens[:, -self.grid * self.grid :]


def resize(pixels: Tensor, size: int) -> Tensor:
    """Bicubic resizing, as published: ``(B, 3, S, S)`` -> ``(B, 3, size, size)``."""
    return (
        pixels
        if pixels.shape[-1] == size
        else interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    )


class TrainableEncoder(nn.Module):
    """A small ViT with a classifier on the mean of its patch features, so that the feature of every patch is trained."""

    def __init__(self, params: EncoderParams, num_outputs: int, seed: int) -> None:
        super().__init__()
        self.input_size = params.input_size
        with seeded_initialisation(seed, "encoder/initialisation"):
            self.vit: nn.Module = timm.create_model(TRAINED_BASE, num_classes=num_outputs, **_trained_arguments(params))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, S, S)`` in [-1, 1] -> logits ``(B, num_outputs)``."""
        logits: Tensor = self.vit(resize(pixels, self.input_size))
        return logits


def _trained_arguments(params: EncoderParams) -> dict[str, Any]:
    return {
        "img_size": params.input_size,
        "patch_size": params.patch_size,
        "embed_dim": params.width,
        "depth": params.depth,
        "num_heads": params.num_heads,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }


def freeze(params: EncoderParams, trained: TrainableEncoder) -> VisionEncoder:
    """The trained ViT without its classifier."""
    vit = trained.vit
    vit.reset_classifier(0)  # type: ignore[operator]  # a method of every timm model
    half = [0.5, 0.5, 0.5]
    config = {"name": TRAINED_BASE, "arguments": _trained_arguments(params), "mean": half, "std": half}
    return VisionEncoder(config | {"input_size": params.input_size, "patch_size": params.patch_size}, vit).eval()


def load_pretrained(params: EncoderParams) -> VisionEncoder:
    """timm weights by name (hub) or from ``params.file``.

    Raises:
        UserError: the name is unknown, the hub cannot be reached, the file does not fit, or the patch size differs.
    """
    arguments: dict[str, Any] = {"img_size": params.input_size}
    try:
        vit = timm.create_model(params.name, pretrained=params.source == "pretrained", **arguments)
        if params.file is not None:
            load_checkpoint(vit, params.file, strict=True, filter_fn=checkpoint_filter_fn)
    except Exception as error:
        raise UserError(_loading_advice("encoder", params.name, params.file, error)) from error
    vit.reset_classifier(0)
    patch = vit.patch_embed.patch_size[0]
    if patch != params.patch_size:
        raise UserError(f"encoder.patch_size is {params.patch_size}, but {params.name} has {patch}; write {patch}")
    if not hasattr(vit, "num_prefix_tokens"):
        raise UserError(
            f"encoder.name {params.name} is not a vision transformer with patch tokens; choose a timm `vit_*` model"
        )
    config = {
        "name": params.name,
        "arguments": arguments,
        "mean": list(vit.pretrained_cfg["mean"]),
        "std": list(vit.pretrained_cfg["std"]),
    }
    return VisionEncoder(config | {"input_size": params.input_size, "patch_size": patch}, vit).eval()


def _loading_advice(section: str, name: str, file: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if file is not None:
        return f"{section}.file {file} could not be loaded as {name}: {reason}; give the weights that belong to {section}.name"
    return (
        f"the weights of {name} could not be fetched from the hub ({reason}); check {section}.name and the connection, "
        f"or download them elsewhere and set {section}.source: file and {section}.file: PATH"
    )


def save_encoder(folder: Path, encoder: VisionEncoder) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    save_network(folder, encoder.vit, encoder.config)


def load_encoder(folder: Path) -> VisionEncoder:
    """Inverse of :func:`save_encoder`, in evaluation mode. Raises :class:`UserError` if files are missing or do not fit."""
    config = read_config(folder)
    vit = timm.create_model(config["name"], pretrained=False, **({"num_classes": 0} | config["arguments"]))
    load_weights(folder, vit)
    return VisionEncoder(config, vit).eval().requires_grad_(False)
