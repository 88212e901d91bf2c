"""The frozen vision encoder, a network of timm with a feature map: with weights that others trained, or a small ViT trained here."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from sfd.encoders.timm_networks import Preprocessing, encoder_network, in_slices, load_network, rebuild, resize
from sfd.errors import UserError
from sfd.network_files import load_weights, read_config, save_network
from sfd.params import EncoderParams
from sfd.precision import InferenceNetwork
from sfd.seeding import seeded_initialisation

TRAINED_BASE = "vit_tiny_patch16_224"
"""The timm model whose dimensions a trained encoder replaces."""


class VisionEncoder(InferenceNetwork):
    """Images to patch features: a transformer's patch tokens, or the positions of a convolutional network's last feature map."""

    def __init__(self, config: dict[str, Any], network: nn.Module) -> None:
        """``config``: what :func:`sfd.encoders.timm_networks.load_network` says, ``patch_size``, and ``feature_dim``."""
        super().__init__()
        self.config = config
        self.network = network
        self.preprocessing = Preprocessing(config)

    @property
    def feature_dim(self) -> int:
        """Channels of a patch feature, D."""
        return int(self.config["feature_dim"])

    @property
    def patches(self) -> tuple[int, int]:
        """Sides of the input and of a patch, pixels."""
        return int(self.config["input_size"]), int(self.config["patch_size"])

    @property
    def grid(self) -> int:
        """Patches along one side."""
        input_size, patch_size = self.patches
        return input_size // patch_size

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where it expects images."""
        return self.preprocessing.mean.device

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 ``(B, 3, S, S)``, first resized to the input size -> features ``(B, grid*grid, feature_dim)``."""
        return in_slices(
            lambda part: self.run(self._patch_features, self.preprocessing(part.float() / 255.0)),
            images,
            self.preprocessing.input_size,
        )

    def features(self, pixels: Tensor) -> Tensor:
        """As :meth:`forward`, but of pixels in [0, 1], and differentiable."""
        return self._patch_features(self.preprocessing(pixels))

    def _patch_features(self, inputs: Tensor) -> Tensor:
        return patch_features(self.network, inputs)


def patch_features(network: nn.Module, inputs: Tensor) -> Tensor:
    """Features per position, row by row: ``(B, 3, S, S)`` -> ``(B, N, D)``.

    timm's networks give maps ``(B, D, h, w)`` or, if they say so, ``(B, h, w, D)``, or tokens ``(B, P + N, D)`` with P prefix tokens
    (class, registers), which are left out. Tokens come from the network's final layer norm. A map has the scale of its network, but semantic
    encoders are trained for a scale of about 1: so each position of a map is normalised here, as by a layer norm.

    Raises:
        ValueError: the network gives something else.
    """
    found = network.forward_features(inputs)  # type: ignore[operator]  # a method of every timm model
    if isinstance(found, Tensor) and found.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        positions = (found if channels_last else found.permute(0, 2, 3, 1)).flatten(1, 2)
        return layer_norm(positions, positions.shape[-1:])
    if isinstance(found, Tensor) and found.ndim == 3:
        return found[:, getattr(network, "num_prefix_tokens", 0) :]
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(f"its features are {shape}, neither a map nor tokens")


class TrainableEncoder(nn.Module):
    """A small ViT with a classifier on the mean of its patch features, so that the feature of every patch is trained."""

    def __init__(self, params: EncoderParams, num_outputs: int, seed: int) -> None:
        import timm

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
    sizes = {"input_size": params.input_size, "patch_size": params.patch_size, "feature_dim": params.width}
    config = {"name": TRAINED_BASE, "arguments": _trained_arguments(params), "mean": half, "std": half}
    return VisionEncoder(config | sizes, vit).eval()


def load_pretrained(params: EncoderParams) -> VisionEncoder:
    """A network with weights that others trained, from where ``params.source`` says.

    Raises:
        UserError: the name is unknown, the weights cannot be had or do not fit, or the network gives no features per patch of this size.
    """
    network, config = load_network(encoder_network(params))
    return with_patches(network, config, params)


@torch.no_grad()
def with_patches(network: nn.Module, config: dict[str, Any], params: EncoderParams) -> VisionEncoder:
    """The encoder of this network, after one image has shown its features.

    Raises:
        UserError: the network gives no features per patch, or patches of another size.
    """
    size = params.input_size
    device = next(network.parameters()).device
    try:
        features = patch_features(network, torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"encoder.name {params.name} gives no features per patch of an image of encoder.input_size {size}: "
            f"{' '.join(str(error).split())[:300]}; choose another size, or another network"
        ) from error
    side = math.isqrt(features.shape[1])
    if side**2 != features.shape[1] or side < 2:
        raise UserError(
            f"encoder.name {params.name} gives {features.shape[1]} features for an image of encoder.input_size {size}, which are no square "
            "grid of patches; choose a network with a feature map or patch tokens, or a larger encoder.input_size"
        )
    patch = _patch_size(network, size, side)
    if patch != params.patch_size or side * patch != size:
        fitting = "" if side * patch == size else f", and encoder.input_size {side * patch}"
        raise UserError(
            f"encoder.patch_size is {params.patch_size} and encoder.input_size {size}, but {params.name} gives one feature per {patch} x "
            f"{patch} pixels: write encoder.patch_size {patch}{fitting}"
        )
    return VisionEncoder(config | {"patch_size": patch, "feature_dim": features.shape[-1]}, network).eval()


def _patch_size(network: nn.Module, size: int, side: int) -> int:
    """Pixels per feature, by the network's own record if it has one: for sizes that are no multiple, networks round up or down."""
    record: Any = getattr(network, "feature_info", None)
    stride = int(record[-1]["reduction"]) if record else size
    return stride if side in (size // stride, -(-size // stride)) else round(size / side)


def save_encoder(folder: Path, encoder: VisionEncoder) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    save_network(folder, encoder.network, encoder.config)


def load_encoder(folder: Path) -> VisionEncoder:
    """Inverse of :func:`save_encoder`, in evaluation mode. Raises :class:`UserError` if files are missing or do not fit."""
    config = read_config(folder)
    network = rebuild(config)
    load_weights(folder, network)
    return VisionEncoder(config, network).eval().requires_grad_(False)
