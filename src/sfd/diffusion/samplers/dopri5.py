"""torchdiffeq's Dormand-Prince method of order 5, whose error tolerances decide the steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfd.diffusion.solver import SamplingOde


@dataclass(frozen=True)
class Dopri5:
    """Chooses its own steps, so that the error of the whole batch stays within ``atol`` (absolute) and ``rtol`` (relative)."""

    atol: float = 1e-6
    rtol: float = 1e-3

    def integrate(self, ode: SamplingOde, noise: Tensor, _u: Tensor, /) -> Tensor:
        """See :class:`sfd.diffusion.solver.Solver`; the requested grid is not used.

        The exact rule integrates each phase between two borders separately, so that no step crosses a jump of a speed.
        """
        from torchdiffeq import odeint

        schedule, exact = ode.schedule, not ode.published_rule
        bounds = [0.0, *(schedule.borders if exact else ()), 1.0]
        x = noise
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            margin = 1e-6 * (end - start) if exact else 0.0

            def drift(u: Tensor, x: Tensor, low: float = start + margin, high: float = end - margin) -> Tensor:
                u = u.double()
                speed = ode.per_channel(*schedule.speeds(u.clamp(low, high)), x)
                return speed * ode.evaluate(x, *schedule.times(u))

            span = torch.tensor([start, end], dtype=torch.float64, device=noise.device)
            # Without this, torchdiffeq steps past the border and interpolates back: fifty times the error.
            options = {"step_t": span[1:]} if exact else None
            x = odeint(drift, x, span, method="dopri5", atol=self.atol, rtol=self.rtol, options=options)[-1]
        return x
