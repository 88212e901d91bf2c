"""What the tables of a study are made of: cells as text, and comparisons of confirmed candidates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sfd.statistics import Comparison, Direction, Estimate, compare, estimate
from sfd.tables import as_text

BEST, MARK = "best", "*"


@dataclass(frozen=True)
class Table:
    """Rows of cells as text. ``kinds``: for each row ``best``, or the trial's state, or an empty string."""

    head: list[str]
    rows: list[list[str]]
    kinds: list[str]


def objectives_of(study: Study) -> list[tuple[str, StudyDirection]]:
    """Each objective and its direction."""
    return list(zip(study.user_attrs["objectives"], study.directions, strict=True))


def state_of(trial: FrozenTrial) -> str:
    """The trial's state in a word."""
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def score(values: Sequence[float], repeats: int) -> str:
    """Mean and standard error; also the number of finished repeats if some are missing."""
    if not values:
        return ""
    return with_error(estimate(values)) + (f" ({len(values)} of {repeats})" if len(values) < repeats else "")


def with_error(found: Estimate) -> str:
    """Mean and standard error, both rounded to two digits of the error."""
    decimals = _decimals(found)
    if decimals is None:
        return f"{found.mean:.4g}"
    return f"{found.mean:.{decimals}f} ± {found.error:.{decimals}f}"


def with_interval(found: Estimate) -> str:
    """Mean difference and its 95 % interval."""
    decimals = _decimals(found)
    if decimals is None or found.interval is None:
        return f"{found.mean:+.3g}"
    low, high = found.interval
    return f"{found.mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def _decimals(found: Estimate) -> int | None:
    """Decimal places that show two digits of the standard error; None if the error is only rounding."""
    if found.error is None or found.error <= 1e-9 * max(1.0, abs(found.mean)):
        return None
    return max(0, 1 - math.floor(math.log10(found.error)))


def number_text(value: object) -> str:
    """A value in a table: numbers in four digits, in lists in three."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f"{each:.3g}" for each in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def confirmation_repeats(study: Study) -> int:
    """The largest number of repeats of any candidate. One whose scoring was interrupted, or still runs, has fewer."""
    confirmation: dict[str, Any] = study.user_attrs["confirmation"]
    return max(len(values) for candidate in confirmation.values() for values in candidate["values"].values())


def comparison(study: Study, name: str, other: str, objective: str, direction: StudyDirection) -> Comparison:
    """Compares two candidates over the repeats that both have. Repeat k has the same seed in both."""
    confirmation: dict[str, Any] = study.user_attrs["confirmation"]
    sense: Direction = "minimize" if direction == StudyDirection.MINIMIZE else "maximize"
    mine, theirs = (confirmation[candidate]["values"][objective] for candidate in (name, other))
    count = min(len(mine), len(theirs))
    return compare(mine[:count], theirs[:count], sense)


def verdict_text(found: Comparison) -> str:
    """The verdict, and why there is none."""
    return f"{found.verdict}: {found.reason}" if found.reason else found.verdict


def text_of(content: Table) -> str:
    """The table as text, with a column of marks before it."""
    marks = [MARK if kind == BEST else "" for kind in content.kinds]
    return as_text([["", *content.head], *([mark, *row] for mark, row in zip(marks, content.rows, strict=True))])
