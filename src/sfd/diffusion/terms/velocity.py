"""The squared velocity error."""

from typing import ClassVar, Protocol

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
            batch.velocity, batch.target, batch.semantic_channels, self.semantic_weight, batch.part_weights
        )


def velocity_loss(
    prediction: Tensor,
    target: Tensor,
    semantic_channels: int,
    semantic_weight: float,
    part_weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Squared error of a velocity ``(B, C, H, W)``, per image ``(B,)``: mean over channels and positions.

    The error of the semantic channels counts ``semantic_weight`` times. ``part_weights``: further weights of texture and of semantics,
    each ``(B,)``.
    """
    texture, semantic = part_weights or (prediction.new_ones(len(prediction)),) * 2
    weight = per_part(texture, semantic_weight * semantic, target.shape[1], semantic_channels)
    return ((prediction - target).square() * weight).mean(dim=(1, 2, 3))
