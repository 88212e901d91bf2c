"""Samplers: integrate the velocity along a schedule from noise (u = 0) to data (u = 1)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sfd.diffusion.guidance import Velocity
from sfd.diffusion.loss import per_part
from sfd.diffusion.schedule import Schedule, shift_progress

Method = Literal["euler", "heun", "ab2", "dopri5"]
Rule = Literal["exact", "published"]


@dataclass(frozen=True)
class Sampler:
    """How to integrate.

    ``rule="exact"`` advances each part by exactly ``t_part(u_next) - t_part(u)``. ``"published"`` is the publication's rule:
    a part moves for the whole step if it moves at the step's left end, so it overshoots where a step straddles a border.
    ``num_steps`` is the number of steps of euler, heun and ab2; dopri5 chooses its own within ``atol`` and ``rtol``.

    ``ab2`` is the second-order Adams-Bashforth method, one evaluation a step: the velocity of a part is extrapolated along the
    part's own time to the middle of the step, from where it was a step ago. A part that has just begun takes a step of euler. With the
    exact rule the ends of the nearest steps are moved onto the borders, so that a part begins where a step does.
    """

    method: Method = "euler"
    num_steps: int = 50
    rule: Rule = "exact"
    timestep_shift: float = 0.0
    atol: float = 1e-6
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a method or rule that does not exist, or without a step."""
        if self.method not in get_args(Method) or self.rule not in get_args(Rule):
            raise ValueError(
                f"sampler {self.method!r} with rule {self.rule!r}: choose from {get_args(Method)} and {get_args(Rule)}"
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
        ahead_tex, ahead_sem = (_lookahead(step, u, schedule) for step in (step_tex, step_sem))
        x, v_before = noise, torch.zeros_like(noise)
        for n in range(self.num_steps):
            step = self._per_image(step_tex[n], step_sem[n], x)
            dx = per_part(*step, x.shape[1], semantic_channels)
            v = v_mean = velocity(x, *self._per_image(t_tex[n], t_sem[n], x))
            if self.method == "heun":
                v_end = velocity(x + dx * v, *self._per_image(t_tex[n + 1], t_sem[n + 1], x))
                v_mean = 0.5 * (v + v_end)
            elif self.method == "ab2":
                ahead = per_part(*self._per_image(ahead_tex[n], ahead_sem[n], x), x.shape[1], semantic_channels)
                v_mean, v_before = v + ahead * (v - v_before), v
            x = x + dx * v_mean
        return x

    @staticmethod
    def _per_image(tex: Tensor, sem: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return tex.to(x).expand(x.shape[0]), sem.to(x).expand(x.shape[0])

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
                speed = per_part(
                    *self._per_image(*schedule.speeds(u.clamp(low, high)), x), x.shape[1], semantic_channels
                )
                return speed * velocity(x, *self._per_image(*schedule.times(u), x))

            span = torch.tensor([start, end], dtype=torch.float64, device=noise.device)
            # torchdiffeq would step past the end and interpolate back, over the border: fifty times the error.
            options = {"step_t": span[1:]} if self.rule == "exact" else None
            x = odeint(drift, x, span, method="dopri5", atol=self.atol, rtol=self.rtol, options=options)[-1]
        return x


def _lookahead(step: Tensor, u: Tensor, schedule: Schedule) -> Tensor:
    """How many of its previous steps a part goes to the middle of each step, ``(N,)``; 0 where there is nothing to extrapolate from.

    ``step`` ``(N,)``: how far the part's time goes in each step; ``u`` ``(N + 1,)``: the progress that bounds the steps.
    """
    borders = torch.tensor(schedule.borders, dtype=u.dtype)
    straddles = torch.bucketize(u[1:], borders) > torch.bucketize(u[:-1], borders, right=True)
    before = step.roll(1)
    began = before > 1e-9  # at a border, the time of a part that waits is 0 up to rounding
    goes_on = began & ~straddles.roll(1)
    goes_on[0] = False
    return torch.where(goes_on, 0.5 * step / before, 0.0)
