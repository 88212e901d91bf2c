"""Sampling: a solver integrates from noise (u = 0) along a schedule to data (u = 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sfd.diffusion.guidance import Velocity
from sfd.diffusion.schedule import Schedule, shift_progress
from sfd.diffusion.solver import SamplingOde, Solver


@dataclass(frozen=True)
class Sampler:
    """How to integrate.

    ``solver`` makes a new solver for each trajectory; it can be a class of :mod:`sfd.diffusion.samplers`. ``num_steps``: its number of
    steps; a solver that chooses its own steps ignores it. ``timestep_shift``: see :func:`sfd.diffusion.schedule.shift_progress`.
    ``times``: where the steps begin, as increasing values of u from 0, ``num_steps`` of them and with no shift; None: evenly.

    By default, each part advances by exactly ``t_part(u_next) - t_part(u)``. With ``published_rule`` it advances as in the publication:
    a part that moves at the start of a step moves during the whole step, so it overshoots where a step straddles a border.
    """

    solver: Callable[[], Solver]
    num_steps: int = 50
    published_rule: bool = False
    timestep_shift: float = 0.0
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raises ``ValueError`` if ``num_steps`` is below 1, or ``times`` are not the beginnings of so many steps."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}, but a sampler needs at least 1 step")
        if self.times is None:
            return
        bounds = (*self.times, 1.0)
        if len(self.times) != self.num_steps or bounds[0] != 0.0 or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(f"times are {self.times}, but must be {self.num_steps} increasing values from 0, below 1")
        if self.published_rule or self.timestep_shift != 0.0:
            raise ValueError("times need the exact rule and no timestep_shift")

    def progress(self, schedule: Schedule) -> Tensor:
        """The ``num_steps + 1`` values of u that bound the steps, float64."""
        if self.times is not None:
            return torch.tensor((*self.times, 1.0), dtype=torch.float64)
        if not self.published_rule:
            u = torch.linspace(0.0, 1.0, self.num_steps + 1, dtype=torch.float64)
            return shift_progress(u, self.timestep_shift)
        # All in float32 on the axis [0, duration], as published, so that ties at a border fall the same way.
        duration = schedule.duration
        shifted = shift_progress(torch.linspace(0.0, duration, self.num_steps + 1) / duration, self.timestep_shift)
        return (shifted * duration).double() / duration

    @torch.no_grad()
    def __call__(self, velocity: Velocity, noise: Tensor, schedule: Schedule, semantic_channels: int) -> Tensor:
        """Integrates from ``noise`` ``(B, C, H, W)`` to data of the same shape."""
        ode = SamplingOde(velocity, schedule, semantic_channels, self.published_rule)
        return self.solver().integrate(ode, noise, self.progress(schedule))
