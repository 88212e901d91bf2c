"""Means of repeats, and paired comparisons: do two candidates differ by more than the noise of their seeds?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95

Direction = Literal["minimize", "maximize"]
Verdict = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Estimate:
    """The mean of repeats. ``error``: its standard error; None for a single repeat, which gives no estimate of noise."""

    mean: float
    error: float | None
    repeats: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two-sided 95 % interval of Student's t; None for a single repeat."""
        if self.error is None:
            return None
        from scipy import stats

        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.repeats - 1)) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Comparison:
    """One candidate against another. ``difference``: the mean of (candidate - other) over repeats with the same seeds."""

    difference: Estimate
    verdict: Verdict
    reason: str = ""


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent repeats. Raises :class:`ValueError` if there are none, or one is not finite."""
    if not values or not np.isfinite(values).all():
        raise ValueError(f"the mean needs one or more finite values, not {list(values)}")
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return Estimate(float(np.mean(values)), error, count)


def compare(candidate: Sequence[float], other: Sequence[float], direction: Direction) -> Comparison:
    """Paired comparison: value k of both was scored with the same seed, so effects of the seed on both cancel out.

    A candidate is better, or worse, if the 95 % interval of the mean difference excludes 0.

    Raises:
        ValueError: there are no values, the numbers of values differ, or a value is not finite.
    """
    difference = estimate([mine - theirs for mine, theirs in zip(candidate, other, strict=True)])
    interval = difference.interval
    if interval is None:
        return Comparison(difference, "not told apart", "one repeat")
    if interval[0] <= 0.0 <= interval[1]:
        return Comparison(difference, "not told apart")
    is_better = (difference.mean < 0.0) == (direction == "minimize")
    return Comparison(difference, "better" if is_better else "worse")


def smallest_effect(differences: Sequence[Sequence[float]], power: float = 0.8) -> float | None:
    """The smallest true difference that a share ``power`` of such experiments tells from 0 by :func:`compare`.

    With a common standard deviation s of the paired differences within a candidate, and n repeats each, it is
    ``(t(0.975, n - 1) + t(power, n - 1)) * s / sqrt(n)``, the usual approximation. s is pooled over the candidates, since that of a few
    repeats is not known well; n is the smallest number of repeats.

    Args:
        differences: of each candidate, one per repeat. Those with a single repeat do not count.

    Returns:
        None if no candidate has two repeats.
    """
    from scipy import stats

    several = [list(each) for each in differences if len(each) > 1]
    if not several:
        return None
    squares = sum(float(np.var(each, ddof=1)) * (len(each) - 1) for each in several)
    spread = math.sqrt(squares / sum(len(each) - 1 for each in several))
    repeats = min(map(len, several))
    quantiles = stats.t.ppf([0.5 + CONFIDENCE / 2, power], repeats - 1)
    return float(quantiles.sum()) * spread / math.sqrt(repeats)
