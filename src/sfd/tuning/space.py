"""The search space: dotted params keys with their values, checked against :mod:`sfd.params` before anything runs."""

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from sfd.errors import UserError
from sfd.params import Params, SpaceParams, parse_params
from sfd.pipeline.stage import check_current, select
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SECTIONS = {"sampling": ("sample",), "training": ("schedule", "diffusion", "sample")}
"""What a trial of each kind may change: nothing else takes part in it."""

WITHOUT_EFFECT = (
    "sample.num_images",
    "sample.batch_size",
    "diffusion.grid_every",
    "diffusion.grid_images",
    "diffusion.training.checkpoint_every",
    "diffusion.training.log_every",
    "diffusion.training.num_workers",
)

MAX_COMBINATIONS = 500
"""Combinations of the other keys' ends with which a value is tried before it is refused."""


def check_study(params: Params) -> None:
    """Raises :class:`UserError` for options of `tune` that do not fit one another, the judge or the schedule."""
    tune, judge = params.tune, params.judge.name
    if ("fd" if judge == "inception" else "fid") in tune.objectives:
        raise UserError(
            f"tune.objectives: `fid` is for the judge `inception` and `fd` for any other, but judge.name is `{judge}`: exchange them"
        )
    if len(set(tune.objectives)) < len(tune.objectives):
        raise UserError(f"tune.objectives {list(tune.objectives)} name one twice: remove it")
    if len(tune.objectives) > 1 and tune.pruner != "none":
        raise UserError(
            f"tune.pruner `{tune.pruner}` needs a single objective, but tune.objectives has {len(tune.objectives)}: set it to `none`"
        )
    if tune.refine_steps and tune.kind == "training":
        raise UserError("tune.refine_steps is for kind `sampling`; trials of kind `training` train anyway: set it to 0")


def check_space(params: Params) -> None:
    """Raises :class:`UserError` for a key that is unknown or not the kind's to change, and for a value that no trial could have."""
    tune = params.tune
    for key in tune.space:
        if key in WITHOUT_EFFECT:
            raise UserError(f"tune.space: `{key}` changes no trial's images; remove it")
        if key.split(".")[0] in set(Params.model_fields) - set(SECTIONS[tune.kind]):
            raise UserError(
                f"tune.space: `{key}` cannot be searched by a study of kind `{tune.kind}`, whose trials change only "
                f"{', '.join(f'`{name}`' for name in SECTIONS[tune.kind])}; remove it, or change tune.kind"
            )
        for value in ends(tune.space[key]):
            _check_value(params, key, value)


def ends(space: SpaceParams) -> list[Any]:
    """Both ends of an interval, or all choices: keys have convex limits, so if these are allowed, all values are."""
    return list(space.choices) if space.choices is not None else [space.low, space.high]


def _check_value(params: Params, key: str, value: Any) -> None:
    """A value must fit the parameters as they are, or together with some values of the other keys."""
    try:
        with_values(params, {key: value})
    except UserError as error:
        if not any(_fits(params, values | {key: value}) for values in _combinations(params, key)):
            raise UserError(f"tune.space.{key}: {error}") from None


def _combinations(params: Params, but: str) -> Iterator[dict[str, Any]]:
    others = {key: ends(space) for key, space in params.tune.space.items() if key != but}
    return (dict(zip(others, values, strict=True)) for values in islice(product(*others.values()), MAX_COMBINATIONS))


def _fits(params: Params, values: Mapping[str, Any]) -> bool:
    try:
        with_values(params, values)
    except UserError:
        return False
    return True


def current_value(params: Params, key: str) -> Any:
    """What a dotted key is now; None if a section on its way is null."""
    return select(params.model_dump(mode="json", by_alias=True), key)


def with_values(params: Params, values: Mapping[str, Any]) -> Params:
    """The parameters with dotted keys replaced. A null section on a key's way becomes one with defaults.

    Raises:
        UserError: a key does not exist, or the values break a rule.
    """
    tree = params.model_dump(mode="json", by_alias=True)
    for key, value in values.items():
        *way, last = key.split(".")
        node: Any = tree
        for name in way:
            if isinstance(node, dict) and node.get(name) is None:
                node[name] = {}  # an unknown name is found by the parser, which knows the nearest one
            node = node[name] if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = value
        elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
            node[int(last)] = value
        elif isinstance(node, list):
            raise UserError(f"`{key}` is not in params.yaml: the list has {len(node)} values, 0 to {len(node) - 1}")
        else:
            raise UserError(f"unknown key `{key}`: `{'.'.join(way)}` is one value, not a section")
    return parse_params(tree, ", ".join(f"{key} = {value}" for key, value in values.items()))


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
        # A key that holds whole numbers refuses even 2.0.
        if any(_fits(params, values | {key: float(low)}) for values in ({}, *_combinations(params, key))):
            made[key] = FloatDistribution(low, high, log=space.log, step=step)
        else:
            made[key] = IntDistribution(int(low), int(high), log=space.log, step=int(step or 1))
    return made


def upstream(params: Params) -> tuple[str, ...]:
    """The stages whose results a study reads."""
    tune = params.tune
    model = ("diffusion",) if tune.kind == "sampling" else ()
    latents = ("semantic", "latents") if tune.kind == "training" or tune.refine_steps else ()
    return ("prepare", "texture_vae", "judge", *model, *latents)


def check_upstream(workspace: Workspace, params: Params) -> None:
    """Raises :class:`UserError` unless the stages that a study reads are finished and made from these parameters."""
    check_current(workspace, upstream(params), params)
