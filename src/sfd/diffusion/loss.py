"""The path between noise and data, and the interface of a term of the training loss."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


def per_part(tex: Tensor, sem: Tensor, num_channels: int, semantic_channels: int) -> Tensor:
    """Spreads one value per part over the composite's channels: two ``(B,)`` -> ``(B, C_tex + C_sem, 1, 1)``."""
    texture_channels = num_channels - semantic_channels
    columns = [tex[:, None].expand(-1, texture_channels), sem[:, None].expand(-1, semantic_channels)]
    return torch.cat(columns, dim=1)[:, :, None, None]


def interpolate(x0: Tensor, x1: Tensor, t_tex: Tensor, t_sem: Tensor, semantic_channels: int) -> Tensor:
    """The linear path ``x_t = t*x1 + (1-t)*x0`` with each part at its own time.

    ``x0`` noise and ``x1`` data ``(B, C, H, W)``; times ``(B,)``.
    """
    t = per_part(t_tex, t_sem, x1.shape[1], semantic_channels)
    return t * x1 + (1.0 - t) * x0


@dataclass(frozen=True)
class Predicted:
    """The network's prediction for a batch, and its target. All tensors are float32.

    Attributes:
        velocity: the prediction, ``(B, C, H, W)``; texture channels come first.
        target: data minus noise, ``(B, C, H, W)``.
        semantic_channels: how many of the C channels are semantic.
        part_weights: per image, the weights of texture and of semantics, each ``(B,)``.
        projection: hidden states projected to the features' width, ``(B, N, D)`` or ``(B, K, D)``; None unless a term needs features.
        features: the encoder's features of the images, ``(B, N, D)``; None unless a term needs features.
        channel_weights: weight of each channel's squared error, ``(C,)``; None: all 1.
        kept: positions of the tokens that ``projection`` has, ``(B, K)``; None: all N. ``features`` has all tokens in any case.
    """

    velocity: Tensor
    target: Tensor
    semantic_channels: int
    part_weights: tuple[Tensor, Tensor]
    projection: Tensor | None = None
    features: Tensor | None = None
    channel_weights: Tensor | None = None
    kept: Tensor | None = None


class LossTerm(Protocol):
    """A term of the loss. Its class is constructed with the options of the loss (``sfd.params.LossParams``)."""

    needs_features: ClassVar[bool]
    """Whether the term uses ``projection`` and ``features``."""

    def __call__(self, batch: Predicted) -> Tensor:
        """One value per image ``(B,)``."""
