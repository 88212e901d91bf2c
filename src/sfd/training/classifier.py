"""Training of a small classifier: how the trained encoder and judge come to know the images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from sfd.seeding import generator
from sfd.training.loop import BatchedDataset, Tensors

MAX_ANGLE, MAX_SCALE, MAX_SHIFT = 0.2, 0.12, 0.1
"""Augmentation: radians, relative size, share of half the side."""

QUARTER_TURNS = 4


def num_outputs(num_classes: int) -> int:
    """Outputs of the classifier. With a single class it recognises quarter turns instead (arXiv 1803.07728)."""
    return num_classes if num_classes > 1 else QUARTER_TURNS


class ClassifierTask:
    """Cross-entropy on class labels under small rotations, scalings and shifts (and mirroring, where that keeps the class)."""

    def __init__(
        self, purpose: str, network: nn.Module, dataset: BatchedDataset, num_classes: int, mirror: bool, seed: int
    ) -> None:
        self.purpose, self.network, self.dataset = purpose, network, dataset
        self.num_classes, self.mirror, self.seed = num_classes, mirror, seed
        self.weights: Mapping[str, float] = {"cross_entropy": 1.0}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensors:
        """Uniform draws ``(B, 6)``: angle, scale, two shifts, mirroring, quarter turn."""
        random = generator(self.seed, f"{self.purpose}/augmentation", step, device)
        return (torch.rand(batch_size, 6, generator=random, device=device),)

    def losses(self, network: nn.Module, data: Tensors, noise: Tensors) -> dict[str, Tensor]:
        """``data``: images uint8 ``(B, 3, H, W)`` and classes ``(B,)``."""
        images, labels = data
        draws = noise[0]
        pixels = augment(images.float() / 127.5 - 1.0, draws, self.mirror)
        if self.num_classes == 1:
            labels = (draws[:, 5] * QUARTER_TURNS).long().clamp(max=QUARTER_TURNS - 1)
            pixels = torch.stack(
                [torch.rot90(image, int(turns), (1, 2)) for image, turns in zip(pixels, labels, strict=True)]
            )
        return {"cross_entropy": cross_entropy(network(pixels), labels)}


def augment(images: Tensor, draws: Tensor, mirror: bool) -> Tensor:
    """Random affine maps of ``(B, 3, H, W)`` by uniform ``draws`` ``(B, >= 5)``; the border is continued."""
    signed = 2.0 * draws - 1.0
    angle, scale = signed[:, 0] * MAX_ANGLE, 1.0 + signed[:, 1] * MAX_SCALE
    flip = torch.where(signed[:, 4] < 0, -1.0, 1.0) if mirror else torch.ones_like(scale)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, signed[:, 2:4] * MAX_SHIFT
    rows = [torch.stack([cos * flip, -sin, shift[:, 0]], dim=-1), torch.stack([sin * flip, cos, shift[:, 1]], dim=-1)]
    grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
