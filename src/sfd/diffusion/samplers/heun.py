"""Heun's method: second order, two evaluations per step."""

from torch import Tensor

from sfd.diffusion.solver import FixedStepSolver, Steps


class Heun(FixedStepSolver):
    """Follows the mean of the velocity at the start of each step and the velocity where Euler's step would end."""

    def step(self, steps: Steps, n: int, x: Tensor) -> Tensor:
        """``x + h * (v(x, t) + v(x + h * v(x, t), t + h)) / 2``."""
        size = steps.size(n, x)
        start = steps.velocity(n, x)
        end = steps.velocity(n + 1, x + size * start)
        return x + size * (0.5 * (start + end))
