"""The Pareto front of a study of several objectives: its table, its pictures, and the choice of one of its points."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sfd.errors import UserError
from sfd.pictures import PALETTE, plain_axes, save_figure
from sfd.statistics import estimate
from sfd.tuning.cells import (
    BEST,
    Table,
    comparison,
    confirmation_repeats,
    number_text,
    objectives_of,
    score,
    verdict_text,
    with_interval,
)
from sfd.tuning.figures import Picture, few_ticks, legend, short_names, with_direction
from sfd.tuning.space import settings

COSTS = ("evaluations", "seconds_per_image")
"""Objectives that are what quality costs: they are the horizontal axis."""
EVEN = ", even steps"
"""Ends the name of a confirmed candidate that is a point of the front but for its steps, which are even."""


def front(study: Study) -> list[FrozenTrial]:
    """The trials that no other one beats in all objectives; the cheapest first."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    place = _cost(study) or 0
    sign = 1 if study.directions[place] == StudyDirection.MINIMIZE else -1
    return sorted(study.best_trials, key=lambda trial: (sign * trial.values[place], trial.number))


def pick(study: Study, within: str) -> FrozenTrial:
    """The point of the front that is best in the first other objective, where OBJECTIVE is at least as good as LIMIT.

    ``within``: ``OBJECTIVE=LIMIT``.

    Raises:
        UserError: it has another form or names no objective, or no point lies within the limit.
    """
    names = [name for name, _ in objectives_of(study)]
    name, _, text = within.partition("=")
    try:
        limit = float(text)
    except ValueError:
        raise UserError(f"--within `{within}` must be OBJECTIVE=LIMIT, e.g. evaluations=4") from None
    if name not in names or len(names) < 2:
        raise UserError(
            f"--within: study {study.study_name} has the objectives {', '.join(names)}, and this chooses by one of several: name one, or "
            "use --trial"
        )
    place = names.index(name)
    other = 1 if place == 0 else 0

    def sign(index: int) -> int:
        return 1 if study.directions[index] == StudyDirection.MINIMIZE else -1

    points = front(study)
    inside = [trial for trial in points if sign(place) * trial.values[place] <= sign(place) * limit]
    if not inside:
        reached = ", ".join(f"{trial.values[place]:.4g}" for trial in points)
        raise UserError(
            f"--within {within}: no point of the front is that good; their {name} are {reached or 'not known yet'}"
        )
    return min(inside, key=lambda trial: (sign(other) * trial.values[other], trial.number))


def front_table(study: Study) -> Table | None:
    """One row a point, the cheapest first: its objectives, what the confirmation found, and its values. None if there is a single objective."""
    points = front(study) if len(study.directions) > 1 else []
    if not points:
        return None
    order = _ordered(study)
    confirmation: dict[str, Any] = study.user_attrs.get("confirmation", {})
    keys = short_names(dict.fromkeys(key for trial in points for key in settings(trial)))
    head, rows = ["trial", *(name for name, _ in order)], []
    first = next(name for name, _ in order if name not in COSTS) if order[0][0] in COSTS else order[0][0]
    confirmed = any(_confirmed(trial, confirmation) for trial in points)
    evens = any(name.endswith(EVEN) for name in confirmation)
    for trial in points:
        found = trial.user_attrs["values"]
        row = [str(trial.number), *(score(found[name], study.user_attrs["repeats"]) for name, _ in order)]
        row += _confirmed_cells(study, trial, first)[: 3 if evens else 1] if confirmed else []
        values = settings(trial)
        rows.append([*row, *(number_text(values[key]) if key in values else "" for key in keys)])
    if confirmed:
        head += [f"{first}, confirmed", f"{first} minus even steps' [95 %]", "verdict"][: 3 if evens else 1]
    return Table([*head, *keys.values()], rows, ["" for _ in rows])


def _confirmed_cells(study: Study, trial: FrozenTrial, objective: str) -> list[str]:
    confirmation: dict[str, Any] = study.user_attrs["confirmation"]
    name = _confirmed(trial, confirmation)
    if name is None:
        return ["", "", ""]
    cells = [score(confirmation[name]["values"].get(objective, []), confirmation_repeats(study))]
    even = f"{name}{EVEN}"
    if not confirmation.get(even, {}).get("values"):
        return [*cells, "", ""]
    found = comparison(study, name, even, objective, dict(objectives_of(study))[objective])
    return [*cells, with_interval(found.difference), verdict_text(found)]


def _confirmed(trial: FrozenTrial, confirmation: dict[str, Any]) -> str | None:
    """The trial's name in the confirmation; None if it was not confirmed."""
    names = (f"{BEST} (trial {trial.number})", f"trial {trial.number}")
    return next((name for name in names if confirmation.get(name, {}).get("values")), None)


def _cost(study: Study) -> int | None:
    """Which objective is a cost, where another one is not."""
    names = [name for name, _ in objectives_of(study)]
    costs = [place for place, name in enumerate(names) if name in COSTS]
    return costs[0] if costs and len(costs) < len(names) else None


def _ordered(study: Study) -> list[tuple[str, StudyDirection]]:
    """The objectives, a cost first."""
    objectives, place = objectives_of(study), _cost(study)
    return objectives if place is None else [objectives[place], *objectives[:place], *objectives[place + 1 :]]


def draw_fronts(study: Study, folder: Path) -> list[Picture]:
    """The front, seen along each pair of objectives."""
    names = [name for name, _ in objectives_of(study)]
    if len(names) < 2 or not front(study):
        return []
    pairs = itertools.combinations(range(len(names)), 2)
    return [_draw_front(study, pair, folder / f"front_{'_'.join(names[n] for n in pair)}.png") for pair in pairs]


def _draw_front(study: Study, pair: Sequence[int], path: Path) -> Picture:
    """All complete trials, the front with standard errors, and what the confirmation found."""
    objectives = objectives_of(study)
    across, up = pair if objectives[pair[0]][0] in COSTS or objectives[pair[1]][0] not in COSTS else reversed(pair)
    figure, axes = plain_axes(with_direction(*objectives[across]), with_direction(*objectives[up]))
    points = front(study)
    others = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.number not in {point.number for point in points}
    ]
    if others:
        axes.plot(
            [trial.values[across] for trial in others],
            [trial.values[up] for trial in others],
            "o",
            color=PALETTE[0],
            alpha=0.5,
            markersize=4.5,
            label="other trials",
        )
    errors = [estimate(trial.user_attrs["values"][objectives[up][0]]).error or 0.0 for trial in points]
    axes.errorbar(
        [trial.values[across] for trial in points],
        [trial.values[up] for trial in points],
        yerr=errors,
        fmt="o-" if len(objectives) == 2 else "o",
        color=PALETTE[1],
        drawstyle="steps-post",
        linewidth=1.2,
        elinewidth=1,
        label="Pareto front ± standard error",
    )
    for trial in points:
        place = trial.values[across], trial.values[up]
        axes.annotate(str(trial.number), place, xytext=(5, 4), textcoords="offset points", fontsize=9)
    confirmation: dict[str, Any] = study.user_attrs.get("confirmation", {})
    shown = {
        "the front, confirmed": [name for trial in points if (name := _confirmed(trial, confirmation))],
        "the same with even steps": [name for name in confirmation if name.endswith(EVEN)],
    }
    for number, (label, names) in enumerate(shown.items()):
        found = [confirmation[name]["values"] for name in names if confirmation[name]["values"]]
        if found:
            x, y = ([estimate(values[objectives[n][0]]).mean for values in found] for n in (across, up))
            axes.plot(x, y, "sD"[number], color=PALETTE[2 + number], markersize=7, markerfacecolor="none", label=label)
    few_ticks(axes.xaxis, whole=objectives[across][0] == "evaluations")
    few_ticks(axes.yaxis)
    legend(figure, *axes.get_legend_handles_labels())
    save_figure(figure, path)
    return Picture(
        path, "Pareto front: no other trial is better in all objectives at once. The numbers are trial numbers."
    )
