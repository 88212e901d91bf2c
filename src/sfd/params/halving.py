"""Successive halving of candidate schedules: which candidates a study has, how long each round is, and what is refused."""

import itertools
import math
from typing import Any

from sfd.errors import UserError
from sfd.params.operations import SpaceParams
from sfd.params.parse import with_values
from sfd.params.schedule import ScheduleParams
from sfd.params.schema import Params

LEAST, MOST = 3, 100
"""Candidates of a study. Two are compared by confirmation alone."""
FINALISTS = 2
"""Candidates of the last round, which are trained again from scratch."""
SCHEDULE = "schedule."


def listed(space: SpaceParams) -> list[Any] | None:
    """The values of a key one by one; None if there are infinitely many."""
    if space.choices is not None:
        return list(space.choices)
    if space.step is None or space.low is None or space.high is None:
        return None
    count = math.floor((space.high - space.low) / space.step + 1e-9) + 1
    return [round(space.low + number * space.step, 10) for number in range(count)]


def candidates(params: Params) -> list[dict[str, Any]]:
    """The values of ``tune.space`` that are compared, each combination once."""
    columns = {key: listed(space) or [] for key, space in params.tune.space.items()}
    return [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]


def candidate_values(params: Params, values: dict[str, Any]) -> dict[str, Any]:
    """All that a candidate changes in params.yaml: it is sampled along its own schedule."""
    return values if params.sample.schedule is None else values | {"sample.schedule": None}


def round_sizes(number: int) -> list[int]:
    """How many candidates each round has, if no training fails: the better half goes on, down to two."""
    sizes = [number]
    while sizes[-1] > FINALISTS:
        sizes.append(math.ceil(sizes[-1] / 2))
    return sizes


def round_steps(first_steps: int, place: int) -> int:
    """Steps of a candidate after the shared start, at the end of round ``place``, which counts from 0."""
    return first_steps << place


def check_halving(params: Params) -> None:
    """Raises :class:`UserError` for the first rule that a study with ``tune.halving`` breaks."""
    tune = params.tune
    if tune.halving is None:
        return
    if tune.kind != "training":
        raise UserError(
            f"tune.halving trains its candidates, but tune.kind is `{tune.kind}`: set it to `training`, or halving to null"
        )
    if len(tune.objectives) > 1:
        raise UserError(
            f"tune.halving ranks by a single objective, but tune.objectives has {len(tune.objectives)}: choose one"
        )
    if tune.pruner != "none":
        raise UserError(
            f"tune.halving ends poor candidates itself, but tune.pruner is `{tune.pruner}`: set it to `none`"
        )
    if tune.start:
        raise UserError(f"tune.halving tries all candidates, but tune.start is {list(tune.start)}: set it to []")
    if params.diffusion.sparse_deep is not None:
        raise UserError(
            "tune.halving continues trainings, and with diffusion.sparse_deep the last steps depend on their length: set sparse_deep to null"
        )
    for key, space in tune.space.items():
        if not key.startswith(SCHEDULE):
            raise UserError(
                f"tune.space: `{key}` is no part of the schedule, and tune.halving compares schedules: remove it"
            )
        if listed(space) is None:
            raise UserError(
                f"tune.space.{key}: tune.halving needs its values one by one: give a step, or choices instead of low and high"
            )
    _check_candidates(params)
    _check_length(params)


def _check_candidates(params: Params) -> None:
    """Each candidate is another schedule, which the network of the shared start can follow."""
    found = candidates(params)
    if not LEAST <= len(found) <= MOST:
        raise UserError(
            f"tune.space has {len(found)} candidates, but tune.halving compares {LEAST} to {MOST}: change step or choices"
        )
    if params.schedule.kind in ("sync", "learnt"):
        raise UserError(
            f"schedule.kind is `{params.schedule.kind}`, but the shared start of tune.halving needs a schedule whose candidates differ in "
            "tune.space alone, and a network with two times: set it to `offset`, `power` or `curve`"
        )
    seen: dict[Any, dict[str, Any]] = {}
    for values in found:
        schedule = with_values(params, candidate_values(params, values)).schedule
        if schedule.kind == "sync":
            raise UserError(
                "tune.space.schedule.kind: `sync` is another network than that of the shared start, with one time: remove it (tau 0 of `offset` "
                "is the same schedule)"
            )
        same = seen.setdefault(_told(schedule), values)
        if same is not values:
            raise UserError(
                f"tune.space: the candidates {same} and {values} have the same schedule of kind `{schedule.kind}`: remove what does not "
                "change it"
            )


def _told(schedule: ScheduleParams) -> Any:
    """What a schedule of its kind is made from."""
    field = {"offset": "tau", "power": "gamma", "curve": "knots"}.get(schedule.kind)
    return schedule.kind, None if field is None else getattr(schedule, field)


def _check_length(params: Params) -> None:
    halving, whole = params.tune.halving, params.diffusion.training.num_steps
    assert halving is not None
    rounds = len(round_sizes(len(candidates(params))))
    longest = halving.base_steps + round_steps(halving.first_steps, rounds - 1)
    if longest > whole:
        raise UserError(
            f"tune.halving trains its last {FINALISTS} candidates for {longest} steps ({halving.base_steps} + {halving.first_steps} * "
            f"2^{rounds - 1}), more than diffusion.training.num_steps {whole}: lower base_steps or first_steps"
        )
