"""Schedules: how texture and semantics move from noise (t = 0) to data (t = 1) as progress u goes from 0 to 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

Part = Literal["texture", "semantic"]


class Schedule(Protocol):
    """A curve ``u -> (t_tex, t_sem)``. Loss, sampler, pictures and tuner use nothing else of it."""

    @property
    def duration(self) -> float:
        """Length of the time axis on which the publication counts its solver steps."""

    @property
    def borders(self) -> tuple[float, ...]:
        """Values of u strictly inside (0, 1) at which a speed jumps or has a kink, in increasing order."""

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times ``(t_tex, t_sem)`` at progress ``u``, which may have any shape; both have the shape of ``u``."""

    def speeds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives ``(d t_tex / d u, d t_sem / d u)`` at ``u``; 0 for a part that waits or is done."""

    def progress_at(self, t: Tensor, part: Part) -> Tensor:
        """The progress u at which a part's time is ``t``, of the same shape; ``t`` lies strictly between 0 and 1."""


@dataclass(frozen=True)
class OffsetSchedule:
    """Semantics lead texture by ``tau`` (arXiv 2512.04926); ``tau = 0`` is ordinary, synchronous diffusion.

    With ``t = u * (1 + tau)``: ``t_sem = min(1, t)`` and ``t_tex = max(0, t - tau)``.

    ``tau`` may be a tensor ``(B,)`` with one offset per image of a training batch: then the methods work element by element, and
    ``borders`` is not defined.
    """

    tau: float | Tensor

    @property
    def duration(self) -> float:
        return 1.0 + self.tau  # type: ignore[return-value]  # a tensor if tau is one

    @property
    def borders(self) -> tuple[float, ...]:
        candidates = (float(self.tau) / self.duration, 1.0 / self.duration)
        return tuple(sorted({u for u in candidates if 0.0 < u < 1.0}))

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        t = u * self.duration
        return (t - self.tau).clamp(0.0, 1.0), t.clamp(0.0, 1.0)

    def speeds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        # Compared in float32, as in the publication, so that a step that starts exactly on a border moves the same parts.
        t = (u * self.duration).float()
        speed = torch.ones_like(u) * self.duration
        return speed * (t >= self.tau), speed * (t <= 1.0)

    def progress_at(self, t: Tensor, part: Part) -> Tensor:
        return (t + self.tau if part == "texture" else t) / self.duration


@dataclass(frozen=True)
class PowerSchedule:
    """``t_tex = t_sem ** gamma`` with ``gamma >= 1``.

    At every u the faster of the two times advances at constant speed, as it does for an offset. The semantics are faster until the
    curve's slope reaches 1; from there on texture is faster. Both speeds are continuous.
    """

    gamma: float

    @property
    def turn(self) -> float:
        """The ``t_sem`` at which both parts are equally fast."""
        return 1.0 if self.gamma == 1.0 else float(self.gamma ** (-1.0 / (self.gamma - 1.0)))

    @property
    def duration(self) -> float:
        return 1.0 + self.turn - float(self.turn**self.gamma)

    @property
    def borders(self) -> tuple[float, ...]:
        return () if self.gamma == 1.0 else (self.turn / self.duration,)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        way = u * self.duration
        t_sem = way.clamp(0.0, self.turn)
        t_tex = (way - self.turn + self.turn**self.gamma).clamp(self.turn**self.gamma, 1.0)
        early = way < self.turn
        return torch.where(early, t_sem**self.gamma, t_tex), torch.where(early, t_sem, t_tex ** (1.0 / self.gamma))

    def speeds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.gamma * self.times(u)[1] ** (self.gamma - 1.0)
        early = u * self.duration < self.turn
        speed = torch.ones_like(u) * self.duration
        return torch.where(early, speed * slope, speed), torch.where(early, speed, speed / slope)

    def progress_at(self, t: Tensor, part: Part) -> Tensor:
        t_sem = t ** (1.0 / self.gamma) if part == "texture" else t
        late = t_sem**self.gamma + self.turn - self.turn**self.gamma
        return torch.where(t_sem < self.turn, t_sem, late) / self.duration


@dataclass(frozen=True)
class CurveSchedule:
    """``t_tex = g(t_sem)`` with ``g`` convex, increasing and piecewise linear (the family of arXiv 2606.19662).

    ``knots`` are K + 1 numbers >= 0, normalised to sum 1. Knot k is the fraction of texture's change that starts at ``t_sem = k/K`` and
    is spread uniformly over the rest of ``t_sem``. The last knot is texture's change after the semantics are done. Every such list gives
    a curve of the family, and every curve that bends only at multiples of 1/K comes from one list; (1, 0, ...) is ordinary diffusion.

    At every u the faster of the two times advances at constant speed, as it does for an offset.
    """

    knots: tuple[float, ...]

    @cached_property
    def _vertices(self) -> Tensor:
        """The ends of all pieces, ``(3, pieces + 1)`` float64; the rows are the length so far, t_tex and t_sem."""
        last, total = len(self.knots) - 1, sum(self.knots)
        shares = [knot / total for knot in self.knots]
        rows, length = [(0.0, 0.0, 0.0)], 0.0
        for k in range(1, last + 1):
            t_tex = sum(shares[j] * (k - j) / (last - j) for j in range(k))
            length += max(t_tex - rows[-1][1], 1.0 / last)
            rows.append((length, t_tex, k / last))
        if shares[last] > 0.0:
            rows.append((length + 1.0 - rows[-1][1], 1.0, 1.0))
        return torch.tensor(rows, dtype=torch.float64).T.contiguous()

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    def _vertices_on(self, device: torch.device) -> Tensor:
        """The vertices, which are sent to a device once: every step of a training needs them."""
        if device not in self._copies:
            self._copies[device] = self._vertices.to(device)
        return self._copies[device]

    @property
    def duration(self) -> float:
        return float(self._vertices[0, -1])

    @property
    def borders(self) -> tuple[float, ...]:
        lengths = self._vertices[0]
        slopes = (self._vertices[1:].diff() / lengths.diff()).T.tolist()
        bends = [n + 1 for n, (a, b) in enumerate(pairwise(slopes)) if not _close(a, b)]
        return tuple((lengths[bends] / self.duration).tolist())

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        length, t_tex, t_sem = self._vertices_on(u.device).unbind()
        way = u.double() * self.duration
        return _interpolate(way, length, t_tex).to(u.dtype), _interpolate(way, length, t_sem).to(u.dtype)

    def speeds(self, u: Tensor) -> tuple[Tensor, Tensor]:
        vertices = self._vertices_on(u.device)
        piece = _piece(u.double() * self.duration, vertices[0])
        texture, semantic = vertices[1:].diff() / vertices[0].diff() * self.duration
        return texture[piece].to(u.dtype), semantic[piece].to(u.dtype)

    def progress_at(self, t: Tensor, part: Part) -> Tensor:
        length, t_tex, t_sem = self._vertices_on(t.device).unbind()
        way = _interpolate(t.double(), t_tex if part == "texture" else t_sem, length)
        return (way / self.duration).to(t.dtype)


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9) for x, y in zip(a, b, strict=True))


def _piece(x: Tensor, bounds: Tensor) -> Tensor:
    """Index of the piece between ``bounds`` that holds each ``x``: at a bound the piece to its right, at the last bound the last piece."""
    return (torch.searchsorted(bounds, x.contiguous(), right=True) - 1).clamp(0, len(bounds) - 2)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear interpolation of ``(xs, ys)`` at ``x``; ``xs`` never decreases."""
    piece = _piece(x, xs)
    start, width = xs[piece], xs[piece + 1] - xs[piece]
    share = torch.where(width > 0.0, (x - start) / width.clamp(min=1e-300), 1.0).clamp(0.0, 1.0)
    return ys[piece] + share * (ys[piece + 1] - ys[piece])


@dataclass(frozen=True)
class OffsetRange:
    """A training schedule for all offsets from ``low`` to ``high``: each image of a batch draws its own."""

    low: float
    high: float

    @property
    def middle(self) -> OffsetSchedule:
        """The schedule of the middle offset."""
        return OffsetSchedule((self.low + self.high) / 2.0)

    def draw(self, batch_size: int, generator: torch.Generator) -> OffsetSchedule:
        """Uniform offsets ``(B,)`` on the generator's device, as one schedule."""
        unit = torch.rand(batch_size, generator=generator, device=generator.device)
        return OffsetSchedule(self.low + (self.high - self.low) * unit)


def shift_progress(u: Tensor, shift: float) -> Tensor:
    """Timestep shift ``s*u / (1 + (s-1)*u)``; 0 leaves ``u`` as it is. A shift below 1 puts more steps early, one above 1 late."""
    return u if shift == 0.0 else shift * u / (1.0 + (shift - 1.0) * u)


def sample_logit_normal(batch_size: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """``sigmoid(Normal(mean, std))``, shape ``(B,)`` on the generator's device."""
    return torch.sigmoid(torch.randn(batch_size, generator=generator, device=generator.device) * std + mean)


def sample_progress_per_part(
    schedule: Schedule, batch_size: int, mean: float, std: float, generator: torch.Generator
) -> Tensor:
    """Progress ``(B,)``. Each image picks one part at random; its progress is where the time of that part equals a logit-normal draw.

    Together with :func:`per_part_weights`, each part is trained on its own logit-normal times, with any schedule.
    """
    t = sample_logit_normal(batch_size, mean, std, generator)
    by_texture = torch.rand(batch_size, generator=generator, device=generator.device) < 0.5
    return torch.where(by_texture, schedule.progress_at(t, "texture"), schedule.progress_at(t, "semantic"))


def per_part_weights(schedule: Schedule, u: Tensor, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Weights ``(texture, semantic)``, each ``(B,)``, that correct for the density of :func:`sample_progress_per_part`.

    The density of u is the mean of the two parts' densities; a part's weight is its own density over that mean (the balance
    heuristic of multiple importance sampling). So weights are at most 2, their mean over the parts is 1, both are 1 in ordinary
    diffusion, and a part that waits or is done has weight 0. The objective is that of arXiv 2606.19662; this estimator of it is our own.
    """
    densities = [
        _logit_normal_density(t, mean, std) * speed
        for t, speed in zip(schedule.times(u), schedule.speeds(u), strict=True)
    ]
    total = (densities[0] + densities[1]).clamp(min=1e-30)
    return 2.0 * densities[0] / total, 2.0 * densities[1] / total


def _logit_normal_density(t: Tensor, mean: float, std: float) -> Tensor:
    """Up to a constant factor; 0 at the ends."""
    inside = t.clamp(1e-7, 1.0 - 1e-7)
    density = torch.exp(-0.5 * ((torch.logit(inside) - mean) / std) ** 2) / (inside * (1.0 - inside))
    return density * ((t > 0.0) & (t < 1.0))
