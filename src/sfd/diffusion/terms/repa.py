"""REPA (arXiv 2410.06940): hidden states aligned with an encoder's features."""

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from sfd.diffusion.loss import Predicted


class RepaTerm:
    """:func:`repa_loss` of the network's projection and the batch's features."""

    needs_features: ClassVar[bool] = True

    def __init__(self, _options: object) -> None:
        pass

    def __call__(self, batch: Predicted) -> Tensor:
        """One value per image ``(B,)``."""
        if batch.projection is None or batch.features is None:
            raise ValueError("REPA needs the network's projection and the encoder's features; give both")
        return repa_loss(batch.projection, batch.features)


def repa_loss(projection: Tensor, features: Tensor) -> Tensor:
    """``1 - cosine`` of projected tokens and features, both ``(B, N, D)``; mean over tokens, per image ``(B,)``."""
    return (1.0 - cosine_similarity(projection, features, dim=-1)).mean(dim=1)
