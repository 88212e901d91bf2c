"""Training of a small classifier: how the trained encoder and judge come to know the images."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from sfd.data.batches import BatchedDataset
from sfd.data.images import ImageBatch
from sfd.pixels import to_pixels
from sfd.seeding import generator

MAX_ANGLE, MAX_SCALE, MAX_SHIFT = 0.2, 0.12, 0.1
"""Augmentation: radians, relative size, share of half the side."""

QUARTER_TURNS = 4


def num_outputs(num_classes: int) -> int:
    """Outputs of the classifier. With a single class it recognises quarter turns instead (arXiv 1803.07728)."""
    return num_classes if num_classes > 1 else QUARTER_TURNS


class Augmentation(NamedTuple):
    """What a step draws for B images, uniform in [0, 1).

    Attributes:
        angle: ``(B,)``; 0.5 leaves the image as it is, and so for ``scale`` and ``shift``.
        scale: ``(B,)``.
        shift: along width and height, ``(B, 2)``.
        flip: ``(B,)``; an image is flipped horizontally below 0.5, where that is allowed.
        turn: ``(B,)``; the quarter turn that a classifier of a single class tells.
    """

    angle: Tensor
    scale: Tensor
    shift: Tensor
    flip: Tensor
    turn: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> "Augmentation":
        """Takes the columns of ``draws`` ``(B, 6)``, in the order of the attributes."""
        angle, scale, shift, flip, turn = draws.split([1, 1, 2, 1, 1], dim=1)
        return cls(angle[:, 0], scale[:, 0], shift, flip[:, 0], turn[:, 0])


class ClassifierTask:
    """Cross-entropy on class labels under small rotations, scalings and shifts (and mirroring, where that keeps the class)."""

    def __init__(
        self,
        purpose: str,
        network: nn.Module,
        dataset: BatchedDataset[ImageBatch],
        num_classes: int,
        mirror: bool,
        seed: int,
    ) -> None:
        self.purpose, self.network, self.dataset = purpose, network, dataset
        self.num_classes, self.mirror, self.seed = num_classes, mirror, seed
        self.weights: Mapping[str, float] = {"cross_entropy": 1.0}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Augmentation:
        """The augmentation of each image."""
        random = generator(self.seed, f"{self.purpose}/augmentation", step, device)
        return Augmentation.of(torch.rand(batch_size, 6, generator=random, device=device))

    def losses(self, network: nn.Module, data: ImageBatch, noise: Augmentation) -> dict[str, Tensor]:
        """The cross-entropy, batch mean."""
        labels = data.class_indices
        pixels = augment(to_pixels(data.images), noise, self.mirror)
        if self.num_classes == 1:
            labels = (noise.turn * QUARTER_TURNS).long().clamp(max=QUARTER_TURNS - 1)
            turned = torch.stack([torch.rot90(pixels, turns, (2, 3)) for turns in range(QUARTER_TURNS)])
            pixels = turned[labels, torch.arange(len(labels), device=labels.device)]
        return {"cross_entropy": cross_entropy(network(pixels), labels)}


def augment(images: Tensor, draws: Augmentation, mirror: bool) -> Tensor:
    """Random affine maps of ``(B, 3, H, W)``; the border is continued."""
    angle, scale = _signed(draws.angle) * MAX_ANGLE, 1.0 + _signed(draws.scale) * MAX_SCALE
    flip = torch.where(_signed(draws.flip) < 0, -1.0, 1.0) if mirror else torch.ones_like(scale)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, _signed(draws.shift) * MAX_SHIFT
    rows = [torch.stack([cos * flip, -sin, shift[:, 0]], dim=-1), torch.stack([sin * flip, cos, shift[:, 1]], dim=-1)]
    grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def _signed(draws: Tensor) -> Tensor:
    """Uniform in [0, 1) -> uniform in [-1, 1)."""
    return 2.0 * draws - 1.0
