"""The search space in Optuna's terms, and the stages whose results a study reads."""

from typing import TYPE_CHECKING

from sfd.params import Params, holds_whole_numbers
from sfd.pipeline.inputs import check_current
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def distributions(params: Params) -> "dict[str, BaseDistribution]":
    """The space in Optuna's terms, sorted by key. An interval holds whole numbers only if its key does."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, BaseDistribution] = {}
    for key, space in sorted(params.tune.space.items()):
        low, high, step = space.low, space.high, space.step
        if space.choices is not None:
            made[key] = CategoricalDistribution(space.choices)
            continue
        assert low is not None and high is not None
        if holds_whole_numbers(params, key):
            made[key] = IntDistribution(int(low), int(high), log=space.log, step=int(step or 1))
        else:
            made[key] = FloatDistribution(low, high, log=space.log, step=step)
    return made


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
