"""Samplers: integrate the velocity along a schedule from noise (u = 0) to data (u = 1)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sfd.diffusion.guidance import Velocity
from sfd.diffusion.loss import per_part
from sfd.diffusion.schedule import Schedule, shift_progress
from sfd.names import SAMPLERS

Rule = Literal["exact", "published"]


@dataclass(frozen=True)
class Sampler:
    """How to integrate.

    ``rule="exact"`` advances each part by exactly ``t_part(u_next) - t_part(u)``. ``"published"`` is the publication's rule:
    a part moves for the whole step if it moves at the step's left end, so it overshoots where a step straddles a border.
    ``num_steps`` is the number of steps of euler, heun and ab2; dopri5 chooses its own within ``atol`` and ``rtol``.

    ``ab2`` is the exponential Adams-Bashforth method of second order, one evaluation a step (DEIS, arXiv 2204.13902, here for the linear
    path and the predicted data ``x + (1 - t) * velocity``): over a step the prediction is a line through its last two values, in the
    part's own time, and the path under it is solved exactly. A part that has just begun takes a step of euler. With the exact rule the
    ends of the nearest steps are moved onto the borders, so that a part begins where a step does.
    """

    method: str = "euler"
    num_steps: int = 50
    rule: Rule = "exact"
    timestep_shift: float = 0.0
    atol: float = 1e-6
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a method or rule that does not exist, or without a step."""
        if self.method not in SAMPLERS or self.rule not in get_args(Rule):
            raise ValueError(
                f"sampler {self.method!r} with rule {self.rule!r}: choose from {tuple(SAMPLERS)} and {get_args(Rule)}"
            )
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}, but a sampler needs at least 1 step")

    def progress(self, schedule: Schedule) -> Tensor:
        """The ``num_steps + 1`` values of u that bound the steps, float64."""
        if self.rule == "published":
            # All in float32 on the axis [0, duration], as published, so that ties at a border fall the same way.
            duration = schedule.duration
            shifted = shift_progress(torch.linspace(0.0, duration, self.num_steps + 1) / duration, self.timestep_shift)
            return (shifted * duration).double() / duration
        u = shift_progress(torch.linspace(0.0, 1.0, self.num_steps + 1, dtype=torch.float64), self.timestep_shift)
        if self.method == "ab2" and self.num_steps > 1:
            for border in schedule.borders:
                u[1 + (u[1:-1] - border).abs().argmin()] = border
        return u

    @torch.no_grad()
    def __call__(self, velocity: Velocity, noise: Tensor, schedule: Schedule, semantic_channels: int) -> Tensor:
        """Carries ``noise`` ``(B, C, H, W)`` to data of the same shape."""
        if self.method == "dopri5":
            return self._adaptive(velocity, noise, schedule, semantic_channels)
        u = self.progress(schedule)
        t_tex, t_sem = schedule.times(u)
        if self.rule == "exact":
            step_tex, step_sem = t_tex.diff(), t_sem.diff()
        else:
            speed_tex, speed_sem = schedule.speeds(u[:-1])
            step_tex, step_sem = speed_tex * u.diff(), speed_sem * u.diff()
        slope_tex = _slope_weight(t_tex[:-1], step_tex, u, schedule)
        slope_sem = _slope_weight(t_sem[:-1], step_sem, u, schedule)
        x, data_before = noise, torch.zeros_like(noise)
        for n in range(self.num_steps):
            dx = self._per_channel(step_tex[n], step_sem[n], x, semantic_channels)
            v = velocity(x, *self._per_image(t_tex[n], t_sem[n], x))
            if self.method == "heun":
                v_end = velocity(x + dx * v, *self._per_image(t_tex[n + 1], t_sem[n + 1], x))
                v = 0.5 * (v + v_end)
            x_before, x = x, x + dx * v
            if self.method == "ab2":
                data = x_before + (1.0 - self._per_channel(t_tex[n], t_sem[n], x, semantic_channels)) * v
                slope = self._per_channel(slope_tex[n], slope_sem[n], x, semantic_channels)
                x = x + slope * (data - data_before)
                data_before = data
        return x

    @staticmethod
    def _per_image(tex: Tensor, sem: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return tex.to(x).expand(x.shape[0]), sem.to(x).expand(x.shape[0])

    @staticmethod
    def _per_channel(tex: Tensor, sem: Tensor, x: Tensor, semantic_channels: int) -> Tensor:
        return per_part(*Sampler._per_image(tex, sem, x), x.shape[1], semantic_channels)

    def _adaptive(self, velocity: Velocity, noise: Tensor, schedule: Schedule, semantic_channels: int) -> Tensor:
        """dopri5 of torchdiffeq. The exact rule integrates each phase by itself, so that no step meets a jump of a speed."""
        from torchdiffeq import odeint

        inner = schedule.borders if self.rule == "exact" else ()
        bounds = [0.0, *inner, 1.0]
        x = noise
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            margin = 1e-6 * (end - start) if self.rule == "exact" else 0.0

            def drift(u: Tensor, x: Tensor, low: float = start + margin, high: float = end - margin) -> Tensor:
                u = u.double()
                speed = self._per_channel(*schedule.speeds(u.clamp(low, high)), x, semantic_channels)
                return speed * velocity(x, *self._per_image(*schedule.times(u), x))

            span = torch.tensor([start, end], dtype=torch.float64, device=noise.device)
            # torchdiffeq would step past the end and interpolate back, over the border: fifty times the error.
            options = {"step_t": span[1:]} if self.rule == "exact" else None
            x = odeint(drift, x, span, method="dopri5", atol=self.atol, rtol=self.rtol, options=options)[-1]
        return x


def _slope_weight(t: Tensor, step: Tensor, u: Tensor, schedule: Schedule) -> Tensor:
    """How much of the predicted data's last change goes into each step ``(N,)``; 0 where there is no change to go by.

    A prediction that moves by ``b`` in a unit of time adds ``b * (step + (1 - t') * log((1 - t') / (1 - t)))`` to a step from ``t`` to
    ``t'``. ``t`` ``(N,)``: the part's time at the start of each step; ``step`` ``(N,)``: how far it goes; ``u`` ``(N + 1,)``: the progress
    that bounds the steps.
    """
    rest = (1.0 - t - step).clamp(min=0.0)
    added = step + torch.xlogy(rest, rest / (1.0 - t).clamp(min=1e-9))
    borders = torch.tensor(schedule.borders, dtype=u.dtype)
    straddles = torch.bucketize(u[1:], borders) > torch.bucketize(u[:-1], borders, right=True)
    before = step.roll(1)
    began = before > 1e-9  # at a border, the time of a part that waits is 0 up to rounding
    goes_on = began & ~straddles.roll(1)
    goes_on[0] = False
    return torch.where(goes_on, added / before, 0.0)
