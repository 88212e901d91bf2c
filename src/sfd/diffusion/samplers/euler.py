"""Euler's method: first order, one evaluation per step."""

from torch import Tensor

from sfd.diffusion.solver import FixedStepSolver, Steps


class Euler(FixedStepSolver):
    """Follows the velocity at the start of each step."""

    def step(self, steps: Steps, n: int, x: Tensor) -> Tensor:
        """``x + h * v(x, t)``."""
        return x + steps.size(n, x) * steps.velocity(n, x)
