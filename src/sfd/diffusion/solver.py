"""The ODE from noise to data, and the interface of its solvers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from sfd.diffusion.guidance import Velocity
from sfd.diffusion.loss import per_part
from sfd.diffusion.schedule import Schedule


@dataclass(frozen=True)
class SamplingOde:
    """``dx/du = speed(u) * velocity(x, times(u))`` from u = 0 to u = 1, where each part has its own time and speed.

    ``published_rule``: how far a part advances in a step, see :class:`sfd.diffusion.sampling.Sampler`.
    """

    velocity: Velocity
    schedule: Schedule
    semantic_channels: int
    published_rule: bool

    def evaluate(self, x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        """The velocity at ``x`` ``(B, C, H, W)``, of the same shape; all images have the same two times (scalars)."""
        return self.velocity(x, *_per_image(t_tex, t_sem, x))

    def per_channel(self, tex: Tensor, sem: Tensor, x: Tensor) -> Tensor:
        """Spreads two scalars, one per part, over the channels of ``x``: ``(B, C, 1, 1)``."""
        return per_part(*_per_image(tex, sem, x), x.shape[1], self.semantic_channels)


def _per_image(tex: Tensor, sem: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return tex.to(x).expand(x.shape[0]), sem.to(x).expand(x.shape[0])


class Solver(Protocol):
    """Integrates the ODE. Each trajectory gets a new instance, so an instance may keep what it has seen."""

    def integrate(self, ode: SamplingOde, noise: Tensor, u: Tensor, /) -> Tensor:
        """Integrates from ``noise`` ``(B, C, H, W)`` to data of the same shape.

        ``u`` ``(num_steps + 1,)`` float64, from 0 to 1: the requested grid. A solver that chooses its own steps ignores it.
        """


@dataclass(frozen=True)
class Steps:
    """The ODE on a grid of N steps: step n goes from ``u[n]`` to ``u[n + 1]``. Tensors are float64 on the CPU."""

    ode: SamplingOde
    u: Tensor

    @cached_property
    def times(self) -> tuple[Tensor, Tensor]:
        """``(t_tex, t_sem)`` at the ``N + 1`` bounds, each ``(N + 1,)``."""
        return self.ode.schedule.times(self.u)

    @cached_property
    def sizes(self) -> tuple[Tensor, Tensor]:
        """How far each step advances texture and semantics, in the time of each; both ``(N,)``."""
        if self.ode.published_rule:
            speed_tex, speed_sem = self.ode.schedule.speeds(self.u[:-1])
            return speed_tex * self.u.diff(), speed_sem * self.u.diff()
        t_tex, t_sem = self.times
        return t_tex.diff(), t_sem.diff()

    def velocity(self, n: int, x: Tensor) -> Tensor:
        """One evaluation of the network on ``x`` at bound n."""
        t_tex, t_sem = self.times
        return self.ode.evaluate(x, t_tex[n], t_sem[n])

    def size(self, n: int, x: Tensor) -> Tensor:
        """The size of step n for every channel of ``x``: ``(B, C, 1, 1)``."""
        tex, sem = self.sizes
        return self.ode.per_channel(tex[n], sem[n], x)


class FixedStepSolver(ABC):
    """A solver that takes the requested steps. A subclass defines one step."""

    def integrate(self, ode: SamplingOde, noise: Tensor, u: Tensor, /) -> Tensor:
        """See :class:`Solver`."""
        steps = Steps(ode, self.grid(u, ode))
        x = noise
        for n in range(len(u) - 1):
            x = self.step(steps, n, x)
        return x

    def grid(self, u: Tensor, _ode: SamplingOde, /) -> Tensor:
        """The bounds of the steps ``(N + 1,)``: ``u`` itself, unless a subclass moves some of them."""
        return u

    @abstractmethod
    def step(self, steps: Steps, n: int, x: Tensor) -> Tensor:
        """Advances ``x`` ``(B, C, H, W)`` by step n; called for n = 0, 1, ... in order."""
