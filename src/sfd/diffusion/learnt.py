"""A schedule's curve that gradient descent can move (after arXiv 2606.19662, which published no code; docs/learnt-schedule.md derives it)."""

import torch
from torch import Tensor, nn


class LearntCurve(nn.Module):
    """The convex, increasing curve ``t_tex = g(t_sem)`` of :class:`sfd.diffusion.schedule.CurveSchedule`, differentiable in its knots.

    With K pieces there are K + 1 knots, ``softmax(rate * free)``: positive, of sum 1, and at the start all equal. ``rate``: an optimizer
    whose step does not depend on the size of the gradient, such as Adam, moves the logits by ``rate`` times its learning rate, so the knots
    have a rate of their own.
    """

    reach: Tensor

    def __init__(self, pieces: int, rate: float = 1.0) -> None:
        super().__init__()
        self.pieces, self.rate = pieces, rate
        self.free = nn.Parameter(torch.zeros(pieces + 1))
        # Knot j has spread (k - j) / (K - j) of its share when t_sem is k / K.
        k, j = torch.arange(pieces + 1)[:, None], torch.arange(pieces + 1)[None, :]
        spread = (k - j).clamp(min=0) / (pieces - j).clamp(min=1)
        self.register_buffer("reach", spread * (j < pieces), persistent=False)

    @property
    def knots(self) -> Tensor:
        """``(K + 1,)``, of sum 1, as :class:`sfd.diffusion.schedule.CurveSchedule` takes them."""
        return torch.softmax(self.rate * self.free, dim=0)

    @property
    def heights(self) -> Tensor:
        """``t_tex`` where ``t_sem`` is 0, 1/K, ..., 1, ``(K + 1,)``; the last knot is not in it."""
        # No product of a matrix and a vector, which autocast would compute in bf16: heights, and above all their differences, need float32.
        return (self.reach.to(self.free.dtype) * self.knots).sum(dim=1)

    def texture_at(self, t_sem: Tensor) -> Tensor:
        """``g(t_sem)``, of the same shape; ``t_sem`` lies strictly between 0 and 1."""
        heights, place = self.heights, t_sem * self.pieces
        piece = place.detach().floor().long().clamp(0, self.pieces - 1)
        return heights[piece] + (place - piece) * (heights[piece + 1] - heights[piece])

    def semantic_at(self, t_tex: Tensor) -> Tensor:
        """The inverse of ``g``, of the same shape: 1 from where the semantics are done; ``t_tex`` lies strictly between 0 and 1."""
        heights = self.heights
        piece = (torch.searchsorted(heights.detach(), t_tex.detach().contiguous(), right=True) - 1).clamp(
            0, self.pieces - 1
        )
        width = (heights[piece + 1] - heights[piece]).clamp(min=1e-12)
        return (piece + ((t_tex - heights[piece]) / width).clamp(max=1.0)) / self.pieces

    def energy(self) -> Tensor:
        """Half the sum over both parts of the integral of ``(dt/du)^2`` over progress u: 1 in ordinary diffusion, 2 one after the other.

        The faster part moves at constant speed, so piece i of length ``l = max(dt_tex, dt_sem)`` takes ``l / D`` of the progress, with D the
        sum of all lengths, and adds ``D (dt_tex^2 + dt_sem^2) / l``.
        """
        texture = torch.cat([self.heights.diff(), self.knots[-1:]])
        semantic = torch.full_like(texture, 1.0 / self.pieces)
        semantic[-1] = 0.0
        length = torch.maximum(texture, semantic)
        return 0.5 * length.sum() * ((texture.square() + semantic.square()) / length).sum()
