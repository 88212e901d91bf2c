"""Exponential Adams-Bashforth (DEIS, arXiv 2204.13902): second order, one evaluation per step."""

import torch
from torch import Tensor

from sfd.diffusion.schedule import Schedule
from sfd.diffusion.solver import FixedStepSolver, SamplingOde, Steps


class AdamsBashforth2(FixedStepSolver):
    """Extrapolates the predicted data, which on the linear path is ``x + (1 - t) * velocity``.

    During a step, the prediction is taken to be linear in the part's own time, through its last two values. The ODE with this linear
    prediction is solved exactly. A part that has just begun takes Euler's step.
    """

    def __init__(self) -> None:
        self._data_before: Tensor | None = None
        self._coefficients: tuple[Tensor, Tensor] | None = None

    def grid(self, u: Tensor, ode: SamplingOde, /) -> Tensor:
        """With the exact rule, the bound nearest to each border is moved onto it, so that a part begins where a step begins."""
        if ode.published_rule or len(u) == 2:
            return u
        u = u.clone()
        for border in ode.schedule.borders:
            u[1 + (u[1:-1] - border).abs().argmin()] = border
        return u

    def step(self, steps: Steps, n: int, x: Tensor) -> Tensor:
        """Euler's step, plus the coefficient times the last change of the predicted data."""
        (t_tex, t_sem), ode = steps.times, steps.ode
        size, velocity = steps.size(n, x), steps.velocity(n, x)
        data = x + (1.0 - ode.per_channel(t_tex[n], t_sem[n], x)) * velocity
        if self._data_before is None or self._coefficients is None:
            texture, semantic = (
                _extrapolation(t[:-1], step, steps.u, ode.schedule)
                for t, step in zip(steps.times, steps.sizes, strict=True)
            )
            self._coefficients, self._data_before = (texture, semantic), torch.zeros_like(x)
        texture, semantic = self._coefficients
        change = data - self._data_before
        self._data_before = data
        return x + size * velocity + ode.per_channel(texture[n], semantic[n], x) * change


def _extrapolation(t: Tensor, step: Tensor, u: Tensor, schedule: Schedule) -> Tensor:
    """Coefficient of the last change of the predicted data, for each step ``(N,)``; 0 where there is no previous value.

    A prediction that changes by ``b`` per unit of time adds ``b * (step + (1 - t') * log((1 - t') / (1 - t)))`` to a step from ``t`` to
    ``t'``. ``t`` ``(N,)``: the part's time at the start of each step; ``step`` ``(N,)``: how far the step goes; ``u`` ``(N + 1,)``: the
    bounds of the steps.
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
