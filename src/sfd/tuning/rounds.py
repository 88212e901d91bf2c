"""The rounds of a study by successive halving: what they found, who goes on, their table and their picture.

Everything follows from the trials: slot by slot, first those of round 0, then those of round 1, and so on. Each worker computes the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sfd.params.halving import FINALISTS, round_steps
from sfd.pictures import FAINT, PALETTE, plain_axes, save_figure
from sfd.statistics import estimate
from sfd.tuning.cells import BEST, Table, confirmation_repeats, number_text, score
from sfd.tuning.figures import Picture, few_ticks, legend, short_names, with_direction
from sfd.tuning.queue import by_slot, is_done

HALVING = "halving"
"""The study's attribute: ``base_steps``, ``first_steps``, and ``candidates`` as values of ``tune.space``. Other studies have none."""
SECOND = "second"


@dataclass(frozen=True)
class Round:
    """One round. ``candidates``: who takes part, in the order of the slots from ``first_slot``; ``found``: the complete trial of each.

    ``steps``: since the shared start. ``over``: nothing of it will run again; ``last``: no other round follows.
    """

    place: int
    steps: int
    candidates: tuple[int, ...]
    first_slot: int
    found: dict[int, FrozenTrial]
    over: bool
    last: bool

    def ranked(self, direction: StudyDirection) -> list[int]:
        """The candidates with a complete trial, the best first."""
        sign = 1 if direction == StudyDirection.MINIMIZE else -1
        return sorted(self.found, key=lambda number: (sign * self.found[number].values[0], number))


def rounds_of(study: Study) -> list[Round]:
    """The rounds that have begun, or may begin."""
    facts = study.user_attrs[HALVING]
    slots = by_slot([trial for trial in study.get_trials(deepcopy=False) if "slot" in trial.user_attrs])
    rounds: list[Round] = []
    going, first = tuple(range(len(facts["candidates"]))), 0
    while True:
        mine = [slots.get(first + place, []) for place in range(len(going))]
        complete = [[trial for trial in trials if trial.state == TrialState.COMPLETE] for trials in mine]
        found = {number: trials[0] for number, trials in zip(going, complete, strict=True) if trials}
        over = all(trials and is_done(trials) for trials in mine)
        last = len(going) <= FINALISTS or (over and len(found) < FINALISTS)
        steps = round_steps(facts["first_steps"], len(rounds))
        rounds.append(Round(len(rounds), steps, going, first, found, over, last))
        if last or not over:
            return rounds
        first += len(going)
        kept = max(FINALISTS, math.ceil(len(going) / 2))
        going = tuple(sorted(rounds[-1].ranked(study.direction)[:kept]))


def is_halving(study: Study) -> bool:
    """Whether the study halves its candidates."""
    return HALVING in study.user_attrs


def finalists(study: Study) -> list[FrozenTrial]:
    """The trials of the last round, the best first; empty until it is over."""
    last = rounds_of(study)[-1]
    return [last.found[number] for number in last.ranked(study.direction)] if last.over and last.last else []


def leaders(study: Study) -> list[FrozenTrial]:
    """The best trial, or the Pareto front; of a halving study the winner of its last round. Empty if there is none yet."""
    if is_halving(study):
        return finalists(study)[:1]
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return study.best_trials if len(study.directions) > 1 else [study.best_trial]


def confirmed_names(study: Study) -> dict[str, FrozenTrial]:
    """The finalists by the names that they have in the confirmation."""
    return {
        f"{word} (trial {trial.number})": trial for word, trial in zip((BEST, SECOND), finalists(study), strict=False)
    }


def describe_rounds(study: Study) -> str:
    """How far the study is."""
    facts, current = study.user_attrs[HALVING], rounds_of(study)[-1]
    place = f"round {current.place + 1} ({current.steps} steps after {facts['base_steps']} shared ones)"
    return f"{place} has {len(current.found)} of {len(current.candidates)} trainings"


def labels_of(study: Study) -> list[str]:
    """Each candidate in a few words."""
    candidates: list[dict[str, Any]] = study.user_attrs[HALVING]["candidates"]
    names = short_names(candidates[0])
    return [", ".join(f"{names[key]} {number_text(value)}" for key, value in each.items()) for each in candidates]


def rounds_table(study: Study) -> Table:
    """One row a candidate with its score in each round, and in the confirmation; those that came furthest first."""
    facts, rounds, labels = study.user_attrs[HALVING], rounds_of(study), labels_of(study)
    confirmation: dict[str, Any] = study.user_attrs.get("confirmation", {})
    named = {trial.number: name for name, trial in confirmed_names(study).items()}
    objective, winner = study.user_attrs["objectives"][0], [trial.number for trial in leaders(study)]
    order: list[int] = []
    for current in reversed(rounds):
        order += [number for number in current.ranked(study.direction) if number not in order]
    order += [number for number in range(len(labels)) if number not in order]
    rows, kinds = [], []
    for number in order:
        trials = [each.found.get(number) for each in rounds]
        cells = [
            "" if trial is None else score(trial.user_attrs["values"][objective], study.user_attrs["repeats"])
            for trial in trials
        ]
        name = "" if trials[-1] is None else named.get(trials[-1].number, "")
        values = confirmation.get(name, {}).get("values", {}).get(objective, [])
        if confirmation:
            cells.append(score(values, confirmation_repeats(study)))
        rows.append([labels[number], *cells])
        kinds.append(BEST if trials[-1] is not None and trials[-1].number in winner else "")
    head = [f"{objective}, {facts['base_steps']} + {each.steps} steps" for each in rounds]
    return Table(["candidate", *head, *(["from scratch"] if confirmation else [])], rows, kinds)


def draw_rounds(study: Study, path: Path) -> list[Picture]:
    """The objective of each candidate over its steps since the shared start, with standard errors; the last two are coloured."""
    rounds, labels, objective = rounds_of(study), labels_of(study), study.user_attrs["objectives"][0]
    if not rounds[0].found:
        return []
    figure, axes = plain_axes("steps after the shared start", with_direction(objective, study.direction))
    best = rounds[-1].ranked(study.direction) or rounds[-2].ranked(study.direction)
    shown = best[:FINALISTS]
    for number in sorted(range(len(labels)), key=lambda each: each in shown):
        points = [
            (each.steps, estimate(each.found[number].user_attrs["values"][objective]))
            for each in rounds
            if number in each.found
        ]
        if not points:
            continue
        is_shown = number in shown
        _draw_candidate(
            axes, points, PALETTE[shown.index(number)] if is_shown else FAINT, labels[number] if is_shown else None
        )
        if not is_shown:
            place = points[-1][0], points[-1][1].mean
            axes.annotate(labels[number], place, xytext=(6, -3), textcoords="offset points", fontsize=7.5, color=FAINT)
    axes.set_xscale("log", base=2)
    axes.set_xticks([each.steps for each in rounds], [str(each.steps) for each in rounds])
    axes.minorticks_off()
    axes.set_xlim(rounds[0].steps / 1.2, rounds[-1].steps * 1.4)
    few_ticks(axes.yaxis)
    legend(figure, *axes.get_legend_handles_labels())
    save_figure(figure, path)
    return [Picture(path, f"{objective} of each candidate ± standard error: the better half of each round goes on.")]


def _draw_candidate(axes: Any, points: Sequence[tuple[int, Any]], colour: str, label: str | None) -> None:
    axes.errorbar(
        [steps for steps, _ in points],
        [found.mean for _, found in points],
        yerr=[found.error or 0.0 for _, found in points],
        fmt="o-",
        color=colour,
        markersize=4.5,
        linewidth=1.4,
        elinewidth=1,
        label=label,
    )
