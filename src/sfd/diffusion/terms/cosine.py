"""The direction of the velocity."""

from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn.functional import cosine_similarity

from sfd.diffusion.loss import Predicted


class CosineOptions(Protocol):
    """The options of the loss that this term reads."""

    @property
    def cosine_floor(self) -> float:
        """Least length of a predicted velocity to divide by; usual lengths are 3 to 10.

        The gradient of a cosine is proportional to 1 / length. A fresh model predicts exactly zero, and with the publication's floor, torch's
        1e-8, its first gradient is 1e7 times the usual one: Adam's second moment remembers that and keeps the output layer nearly still for
        thousands of steps.
        """


class CosineTerm:
    """:func:`cosine_loss` with the floor of the options."""

    needs_features: ClassVar[bool] = False

    def __init__(self, options: CosineOptions) -> None:
        self.floor = options.cosine_floor

    def __call__(self, batch: Predicted) -> Tensor:
        """One value per image ``(B,)``."""
        return cosine_loss(batch.velocity, batch.target, self.floor)


def cosine_loss(prediction: Tensor, target: Tensor, shortest: float = 1e-8) -> Tensor:
    """``1 - cosine`` along all channels together, of two ``(B, C, H, W)``; mean over positions, per image ``(B,)``.

    A vector shorter than ``shortest`` is divided by ``shortest`` instead of its own length.
    """
    return (1.0 - cosine_similarity(prediction, target, dim=1, eps=shortest)).mean(dim=(1, 2))
