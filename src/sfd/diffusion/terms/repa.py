"""REPA (arXiv 2410.06940): hidden states aligned with an encoder's features; and how iREPA (arXiv 2512.10794) normalises these."""

from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn.functional import cosine_similarity

from sfd.diffusion.loss import Predicted


class RepaOptions(Protocol):
    """The options of the loss that this term reads."""

    @property
    def repa_loss(self) -> str:
        """``cosine`` or ``cosine_mse``."""

    @property
    def repa_target_norm(self) -> str:
        """``none`` or ``tokens``."""


class RepaTerm:
    """:func:`repa_loss` or :func:`repa_loss_with_error` of the network's projection and the batch's features."""

    needs_features: ClassVar[bool] = True

    def __init__(self, options: RepaOptions) -> None:
        self.compare = {"cosine": repa_loss, "cosine_mse": repa_loss_with_error}[options.repa_loss]
        self.over_tokens = options.repa_target_norm == "tokens"

    def __call__(self, batch: Predicted) -> Tensor:
        """One value per image ``(B,)``."""
        if batch.projection is None or batch.features is None:
            raise ValueError("REPA needs the network's projection and the encoder's features; give both")
        # The targets are normalised over all tokens of an image, also where some skip the block.
        target = normalise_over_tokens(batch.features) if self.over_tokens else batch.features
        if batch.kept is not None:
            target = target.take_along_dim(batch.kept[:, :, None], dim=1)
        return self.compare(batch.projection, target)


def normalise_over_tokens(features: Tensor) -> Tensor:
    """``(f - mean) / (std + 1e-6)`` of ``(B, N, D)``: mean and standard deviation per image and channel over the N tokens (iREPA, arXiv 2512.10794).

    What all tokens of an image share is removed; what tells them apart stays. The standard deviation is that of a sample (N - 1).
    """
    centred = features - features.mean(dim=1, keepdim=True)
    return centred / (features.std(dim=1, keepdim=True) + 1e-6)


def repa_loss(projection: Tensor, features: Tensor) -> Tensor:
    """``1 - cosine`` of projected tokens and features, both ``(B, N, D)``; mean over tokens, per image ``(B,)``."""
    return (1.0 - cosine_similarity(projection, features, dim=-1)).mean(dim=1)


def repa_loss_with_error(projection: Tensor, features: Tensor) -> Tensor:
    """The mean of :func:`repa_loss` and of the squared error, which is averaged over tokens and channels; per image ``(B,)``.

    The second recipe of the publication for 80 epochs (training code of December 2025).
    """
    return (repa_loss(projection, features) + (projection - features).square().mean(dim=(1, 2))) / 2.0
