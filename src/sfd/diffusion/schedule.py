"""Schedules: how texture and semantics move from noise (t = 0) to data (t = 1) as progress u goes from 0 to 1."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A curve ``u -> (t_tex, t_sem)``. Loss, sampler, pictures and tuner know nothing else of it."""

    @property
    def duration(self) -> float:
        """Length of the time axis on which the publication counts its solver steps."""

    @property
    def borders(self) -> tuple[float, ...]:
        """Values of u strictly inside (0, 1) at which a speed jumps, in increasing order."""

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times ``(t_tex, t_sem)`` at progress ``u``; any shape, shapes are kept."""

    def speeds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives ``(d t_tex / d u, d t_sem / d u)`` at ``u``; 0 for a part that waits or is done."""


@dataclass(frozen=True)
class OffsetSchedule:
    """Semantics lead texture by ``tau`` (arXiv 2512.04926); ``tau = 0`` is ordinary, synchronous diffusion.

    With ``t = u * (1 + tau)``: ``t_sem = min(1, t)`` and ``t_tex = max(0, t - tau)``.
    """

    tau: float

    @property
    def duration(self) -> float:
        return 1.0 + self.tau

    @property
    def borders(self) -> tuple[float, ...]:
        candidates = (self.tau / self.duration, 1.0 / self.duration)
        return tuple(sorted({u for u in candidates if 0.0 < u < 1.0}))

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        t = u * self.duration
        return (t - self.tau).clamp(0.0, 1.0), t.clamp(0.0, 1.0)

    def speeds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        # Compared in float32, as in the publication, so that a step that starts exactly on a border moves the same parts.
        t = (u * self.duration).float()
        speed = torch.full_like(u, self.duration)
        return speed * (t >= self.tau), speed * (t <= 1.0)


def shift_progress(u: Tensor, shift: float) -> Tensor:
    """Timestep shift ``s*u / (1 + (s-1)*u)``; 0 leaves ``u`` as it is. Below 1 it spends more steps early, above 1 late."""
    return u if shift == 0.0 else shift * u / (1.0 + (shift - 1.0) * u)


def sample_progress(batch_size: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Logit-normal progress for training, ``u = sigmoid(Normal(mean, std))``, shape ``(B,)`` on the generator's device."""
    return torch.sigmoid(torch.randn(batch_size, generator=generator, device=generator.device) * std + mean)
