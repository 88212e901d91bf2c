"""The search space in Optuna's terms, the values of params.yaml that it stands for, and the stages whose results a study reads."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sfd.params import KNOTS, TIME_PARTS, TIMES, Params, even_times, holds_whole_numbers, knot_parts
from sfd.pipeline.inputs import check_current
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

BEND = 1.5
"""How far the logarithms of :data:`sfd.params.TIME_PARTS` go to both sides: steps of one quarter are at most 20 times those of another."""

SETTINGS = "settings"
"""The trial's attribute with the values of params.yaml, where they are others than Optuna's."""


def distributions(params: Params) -> "dict[str, BaseDistribution]":
    """The space in Optuna's terms, sorted by key. An interval holds whole numbers only if its key does.

    Of a list that is searched as a whole, its parts: see :func:`settle`.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, BaseDistribution] = {}
    for key, space in sorted(params.tune.space.items()):
        low, high, step = space.low, space.high, space.step
        if key == TIMES:
            made |= {f"{TIMES}.{part}": FloatDistribution(-BEND, BEND) for part in TIME_PARTS}
            key = f"{TIMES}.steps"
        if space.choices is not None:
            made[key] = CategoricalDistribution(space.choices)
            continue
        assert low is not None and high is not None
        if key == KNOTS:
            made |= {f"{KNOTS}.{part}": FloatDistribution(low, high) for part in knot_parts(params)}
        elif key == f"{TIMES}.steps" or holds_whole_numbers(params, key):
            made[key] = IntDistribution(int(low), int(high), log=space.log, step=int(step or 1))
        else:
            made[key] = FloatDistribution(low, high, log=space.log, step=step)
    return made


def settle(proposed: Mapping[str, Any], learnt: Sequence[float] | None) -> dict[str, Any]:
    """The values of params.yaml that Optuna's stand for: its own, but those of lists that are searched as a whole.

    ``learnt``: the knots of the learnt curve, if its neighbourhood is searched.
    """
    values = {key: value for key, value in proposed.items() if not key.startswith((f"{TIMES}.", f"{KNOTS}.change_"))}
    number = proposed.get(f"{TIMES}.steps")
    if number is not None:
        times = bent_times(number, [proposed[f"{TIMES}.{part}"] for part in TIME_PARTS])
        values |= {TIMES: times, "sample.num_steps": number}
    if learnt is not None:
        changes = [proposed[f"{KNOTS}.change_{number}"] for number in range(len(learnt))]
        values |= {"schedule.kind": "curve", KNOTS: changed_knots(learnt, changes), "schedule.learnt": None}
    return values


def bent_times(number: int, quarters: Sequence[float]) -> list[float]:
    """Where ``number`` steps begin: evenly in the argument of a piecewise linear, increasing map of [0, 1] onto itself.

    The map rises in the first three quarters of its argument, and in the fourth, in the proportions ``exp(quarters)`` and 1. So the order
    always holds, and what is learnt of one number of steps says something of another.
    """
    if not any(quarters):
        return even_times(number)
    rises = [*map(math.exp, quarters), 1.0]
    heights = [sum(rises[:n]) / sum(rises) for n in range(len(rises) + 1)]
    found = []
    for n in range(number):
        piece, rest = divmod(n * len(rises), number)
        found.append(round(heights[piece] + rest / number * (heights[piece + 1] - heights[piece]), 6))
    return found


def changed_knots(learnt: Sequence[float], changes: Sequence[float]) -> list[float]:
    """Knots whose logarithms differ from the learnt curve's by ``changes``, of sum 1."""
    if not any(changes):
        return list(learnt)
    weights = [knot * math.exp(change) for knot, change in zip(learnt, changes, strict=True)]
    return [weight / sum(weights) for weight in weights]


def settings(trial: "Trial | FrozenTrial") -> dict[str, Any]:
    """The values of params.yaml that a trial was run with."""
    found: dict[str, Any] = trial.user_attrs.get(SETTINGS, trial.params)
    return dict(found)


def upstream(params: Params) -> tuple[str, ...]:
    """The stages whose results a study reads."""
    tune = params.tune
    model = ("diffusion",) if tune.kind == "sampling" else ()
    latents = ("semantic", "latents") if tune.kind == "training" or tune.refine_steps else ()
    learnt = ("schedule",) if tune.kind == "training" and params.schedule.kind == "learnt" else ()
    return ("prepare", "texture_vae", "judge", "reference", *model, *latents, *learnt)


def check_upstream(workspace: Workspace, params: Params) -> None:
    """Raises :class:`UserError` unless the stages that a study reads are finished and made from these parameters."""
    check_current(workspace, upstream(params), params)
