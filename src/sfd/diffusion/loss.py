"""The training loss: three terms that do not depend on one another (arXiv 2512.04926)."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


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


def velocity_loss(
    prediction: Tensor,
    target: Tensor,
    semantic_channels: int,
    semantic_weight: float,
    part_weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Squared velocity error per image ``(B,)``: mean over channels and positions, semantic channels weighted.

    ``part_weights`` are further weights of texture and semantics for each image, each ``(B,)``.
    """
    texture, semantic = part_weights or (prediction.new_ones(len(prediction)),) * 2
    weight = per_part(texture, semantic_weight * semantic, target.shape[1], semantic_channels)
    return ((prediction - target).square() * weight).mean(dim=(1, 2, 3))


def cosine_loss(prediction: Tensor, target: Tensor, shortest: float = 1e-8) -> Tensor:
    """``1 - cosine`` along channels (all together), mean over positions, per image ``(B,)``.

    A vector shorter than ``shortest`` counts as that long. Training raises it from torch's default, see
    :data:`sfd.training.diffusion.SHORTEST_VELOCITY`.
    """
    return (1.0 - cosine_similarity(prediction, target, dim=1, eps=shortest)).mean(dim=(1, 2))


def repa_loss(projection: Tensor, features: Tensor) -> Tensor:
    """REPA (arXiv 2410.06940): ``1 - cosine`` of projected tokens and encoder features ``(B, tokens, D)``, mean over tokens, ``(B,)``."""
    return (1.0 - cosine_similarity(projection, features, dim=-1)).mean(dim=1)
