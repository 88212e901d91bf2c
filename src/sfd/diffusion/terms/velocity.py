"""The squared velocity error."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sfd.diffusion.loss import Predicted, per_part


class VelocityOptions(Protocol):
    """The options of the loss that this term reads."""

    @property
    def semantic_weight(self) -> float:
        """Weight of the semantic channels; that of texture is 1."""


class VelocityTerm:
    """:func:`velocity_loss` with the weights of the batch's parts."""

    needs_features: ClassVar[bool] = False

    def __init__(self, options: VelocityOptions) -> None:
        self.semantic_weight = options.semantic_weight

    def __call__(self, batch: Predicted) -> Tensor:
        """One value per image ``(B,)``."""
        return velocity_loss(
            batch.velocity,
            batch.target,
            batch.semantic_channels,
            self.semantic_weight,
            batch.part_weights,
            batch.channel_weights,
        )


def velocity_loss(
    prediction: Tensor,
    target: Tensor,
    semantic_channels: int,
    semantic_weight: float,
    part_weights: tuple[Tensor, Tensor] | None = None,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """Squared error of a velocity ``(B, C, H, W)``, per image ``(B,)``: mean over channels and positions.

    The error of the semantic channels counts ``semantic_weight`` times. ``part_weights``: further weights of texture and of semantics,
    each ``(B,)``. ``channel_weights``: further weights of the channels, ``(C,)``.
    """
    texture, semantic = part_weights or (prediction.new_ones(len(prediction)),) * 2
    weight = per_part(texture, semantic_weight * semantic, target.shape[1], semantic_channels)
    if channel_weights is not None:
        weight = weight * channel_weights[:, None, None]
    return ((prediction - target).square() * weight).mean(dim=(1, 2, 3))


LEAST_ENERGY, MOST_ENERGY = 0.05, 6.0
"""Limits of a channel's energy, in units of the mean, so that no channel is forgotten and none is all that counts."""


def energy_weights(std: Tensor, semantic_channels: int) -> Tensor:
    """Weights of channels ``(C,)`` by what an error in them costs in pixels; 1 for the semantic ones, which come last.

    A latent is normalised, so an equal error in two channels is the larger one in pixels where the standard deviation ``std`` ``(C,)`` of
    the raw channel is larger. That of principal components is in pixels; the latents of a VAE have no such unit. The weight is the square
    root of the channel's share of the energy ``std^2``, relative to the mean: the whole share would leave the last channels as noise.
    """
    energy = std[: len(std) - semantic_channels].square()
    texture = (energy / energy.mean()).clamp(LEAST_ENERGY, MOST_ENERGY).sqrt()
    return torch.cat([texture, std.new_ones(semantic_channels)])
