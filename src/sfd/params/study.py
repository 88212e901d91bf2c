"""Rules of section ``tune``: everything that ``sfd tune`` refuses and that can be seen in the params file alone.

``sfd params`` and ``sfd tune`` check them. The stages do not, because they do not read ``tune``.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

from sfd.errors import UserError
from sfd.names import FDR, INCEPTION, RETRIEVAL, distance_name, nearest
from sfd.params.halving import candidate_values, check_halving
from sfd.params.judging import encoder_metrics
from sfd.params.operations import VARIABLE, SpaceParams
from sfd.params.parse import with_values
from sfd.params.schema import Params

SECTIONS = {"sampling": ("sample",), "training": ("schedule", "diffusion", "sample")}
"""The sections that a trial of each kind may change. It reads no other."""

MAX_COMBINATIONS = 500
"""A value is refused when it fits none of at most so many combinations of the other keys' ends."""

TIMES, KNOTS = "sample.times", "schedule.knots"
"""Lists that are searched as a whole: what the space says of them is not a value of theirs."""

SQLITE, JOURNAL, POSTGRES = "sqlite:///", "journal://", "postgresql://"
_TEXT = r"(?:[^:@/?#%\[\]\s]|%[0-9A-Fa-f]{2})"
_SERVER = re.compile(
    rf"postgresql://(?:{_TEXT}+(?::{_TEXT}*)?@)?(?:{_TEXT}*|\[[0-9A-Fa-f:.]+\])(?::\d+)?/{_TEXT}+(?:\?\S*)?"
)


def check_study(params: Params) -> None:
    """Raises :class:`UserError` for the first rule of a study that the parameters break."""
    for rule in RULES:
        rule(params)
    check_storage_address(params.tune.storage)


def _check_distance(params: Params) -> None:
    judge = params.first_judge.name
    others = [distance_name(each.name) for each in params.counted_judges[1:]]
    wrong = "fd" if judge == INCEPTION else "fid"
    if wrong in params.tune.objectives and wrong not in others:
        raise UserError(
            f"tune.objectives: `fid` is for the judge `inception` and `fd` for any other, but judges.0.name is `{judge}`: exchange them"
        )


def _check_judges(params: Params) -> None:
    """Distances are of judges that are there, and not the encoder; their mean ratio needs two of them."""
    others = [distance_name(judge.name) for judge in params.counted_judges[1:]]
    for name in params.tune.objectives:
        if name == FDR and not others:
            raise UserError(
                "tune.objectives: `fdr` is the mean over several judges (but the encoder), and `judges` has one: add another, or remove it"
            )
        if name in encoder_metrics(params):
            raise UserError(
                f"tune.objectives: `{name}` is measured by the encoder, towards whose features samples were trained, so it is for reporting "
                "only: remove it"
            )
        if name.startswith("fd_") and name not in others:
            known = ["fd", *others]
            raise UserError(
                f"tune.objectives: `{name}` is the distance of no further judge; nearest: `{nearest(name, known)}` (`fd` is that of the first "
                "judge)"
            )


def _check_accuracy(params: Params) -> None:
    if "class_accuracy" not in params.tune.objectives:
        return
    if params.first_judge.kind == "inception":
        raise UserError(
            "tune.objectives: `class_accuracy` needs a judge that knows the classes, but judges.0.kind is `inception`: remove it"
        )
    if params.diffusion.model.condition in ("none", "text"):
        raise UserError(
            "tune.objectives: `class_accuracy` needs samples of known classes, but diffusion.model.condition is "
            f"`{params.diffusion.model.condition}`: remove it"
        )


def _check_words(params: Params) -> None:
    name = next((name for name in params.tune.objectives if name in RETRIEVAL), None)
    if name is not None and not params.is_told_words:
        raise UserError(
            f"tune.objectives: `{name}` says whether samples show their prompts, but diffusion.model.condition is "
            f"`{params.diffusion.model.condition}`: remove it"
        )


def _check_images(params: Params) -> None:
    """Samples of a repeat are enough for the objectives. Whether held-out images are, too, is known only where they are."""
    limits, tune = params.evaluate.min_images, params.tune
    for name in tune.objectives:
        least = limits.limit_of(name)
        if least is not None and tune.num_images < least:
            raise UserError(
                f"tune.objectives: `{name}` needs {least} images by evaluate.min_images, but tune.num_images is {tune.num_images}: raise it, "
                "or lower the limit"
            )


def _check_objectives(params: Params) -> None:
    tune = params.tune
    if len(set(tune.objectives)) < len(tune.objectives):
        raise UserError(f"tune.objectives {list(tune.objectives)} name one twice: remove it")
    if tune.objectives == ("evaluations",):
        raise UserError(
            "tune.objectives: `evaluations` alone is best with the fewest steps, whatever they draw: add a metric of quality, e.g. `fd`"
        )
    if len(tune.objectives) > 1 and tune.pruner != "none":
        raise UserError(
            f"tune.pruner `{tune.pruner}` needs a single objective, but tune.objectives has {len(tune.objectives)}: set it to `none`"
        )


def _check_refinement(params: Params) -> None:
    if params.tune.refine_steps and params.tune.kind == "training":
        raise UserError("tune.refine_steps is for kind `sampling`; trials of kind `training` train anyway: set it to 0")


def _check_step(params: Params) -> None:
    if params.sample.step is not None and params.tune.kind == "training":
        raise UserError(
            f"sample.step is {params.sample.step}, but trials of kind `training` are scored after all of their steps: set it to null"
        )


def _check_decay(params: Params) -> None:
    if params.sample.ema_decay not in (None, params.diffusion.training.ema_decay) and params.tune.kind == "training":
        raise UserError(
            f"sample.ema_decay is {params.sample.ema_decay}, but trials of kind `training` keep the average of diffusion.training.ema_decay alone: "
            "set it to null"
        )


def _check_space(params: Params) -> None:
    """Every key exists, is the kind's to change, and changes images; every value fits the other options in some trial."""
    tune = params.tune
    sections = {field.alias or name for name, field in Params.model_fields.items()}
    for key in tune.space:
        if key in ("sample.num_images", "sample.step", "sample.ema_decay") or key.startswith("runtime."):
            raise UserError(f"tune.space: `{key}` changes no trial's images; remove it")
        if key == "sample.class_mix":
            raise UserError(f"tune.space: `{key}` changes what samples are compared with, as well; remove it")
        if key.split(".")[0] in sections - set(SECTIONS[tune.kind]):
            raise UserError(
                f"tune.space: `{key}` cannot be searched by a study of kind `{tune.kind}`, whose trials change only "
                f"{', '.join(f'`{name}`' for name in SECTIONS[tune.kind])}; remove it, or change tune.kind"
            )
        if key in (TIMES, KNOTS):
            continue
        for value in ends(tune.space[key]):
            _check_value(params, key, value)
        step = tune.space[key].step
        if step is not None and not float(step).is_integer() and holds_whole_numbers(params, key):
            raise UserError(
                f"tune.space.{key}: step is {step:g}, but the key holds whole numbers: make it a whole number"
            )


def _check_times(params: Params) -> None:
    """Places of steps are searched for some numbers of steps, with a solver that takes the steps that it is told."""
    tune, space = params.tune, params.tune.space.get(TIMES)
    if "even" in tune.start and space is None:
        raise UserError(
            f"tune.start: `even` tries even steps where their places are searched, but tune.space has no `{TIMES}`: add it, or remove `even`"
        )
    if space is None:
        return
    for number in ends(space):
        if type(number) is not int or not 2 <= number <= 100 or space.log or space.step not in (None, 1):
            raise UserError(
                f"tune.space.{TIMES}: the numbers of steps are whole, from 2 to 100, without step or log: write e.g. {{low: 2, high: 6}}"
            )
        if "sample.num_steps" in tune.space:
            raise UserError(f"tune.space: `{TIMES}` searches the number of steps, too: remove `sample.num_steps`")
        values = {TIMES: even_times(number), "sample.num_steps": number}
        with_values(params, values)
        for key, other in tune.space.items():
            for value in () if key in (TIMES, KNOTS) else ends(other):
                if fits(params, {key: value}) and not fits(params, values | {key: value}):
                    raise UserError(
                        f"tune.space.{key}: {value} does not go together with `{TIMES}`: remove one of them"
                    )


def _check_knots(params: Params) -> None:
    """The neighbourhood of a learnt curve needs that curve, and is all that is searched of the schedule."""
    tune, space = params.tune, params.tune.space.get(KNOTS)
    if ("learnt" in tune.start) != (space is not None):
        said = "`learnt` is not among tune.start" if space is not None else f"tune.space has no `{KNOTS}`"
        raise UserError(
            f"tune.start `learnt` and tune.space `{KNOTS}` belong together, and {said}: give both, e.g. {KNOTS}: {{low: -1.0, high: 1.0}}, or "
            "neither"
        )
    if space is None:
        return
    if params.schedule.kind != "learnt":
        raise UserError(
            f"tune.start: `learnt` is the curve of stage `schedule`, but schedule.kind is `{params.schedule.kind}`: set it to `learnt`, or remove "
            "both"
        )
    if space.choices is not None or space.step is not None or space.log or not ends(space)[0] <= 0 <= ends(space)[1]:
        raise UserError(
            f"tune.space.{KNOTS}: differences from the learnt curve need low and high around 0, without step or log: write e.g. "
            "{low: -1.0, high: 1.0}"
        )
    more = next((key for key in tune.space if key.startswith("schedule.") and key != KNOTS), None)
    if more is not None:
        raise UserError(f"tune.space: `{KNOTS}` makes the whole schedule, so `{more}` would change nothing: remove it")


def _check_start(params: Params) -> None:
    """All starting points are tried."""
    tune = params.tune
    if len(set(tune.start)) < len(tune.start):
        raise UserError(f"tune.start {list(tune.start)} name one twice: remove it")
    if tune.trials < len(start_values(params)) and tune.halving is None:
        raise UserError(
            f"tune.trials is {tune.trials}, but tune.start has {len(start_values(params))} starting points: raise it to more than that"
        )


RULES = (
    _check_distance,
    _check_judges,
    _check_accuracy,
    _check_words,
    _check_images,
    _check_objectives,
    _check_refinement,
    _check_step,
    _check_decay,
    _check_space,
    _check_times,
    _check_knots,
    _check_start,
    check_halving,
)


def check_storage_address(url: str) -> None:
    """Raises :class:`UserError` for a storage that other processes could not open."""
    if url.startswith(POSTGRES) and not _SERVER.fullmatch(VARIABLE.sub("x", url)):
        raise UserError(
            f"tune.storage `{url}` must have the form postgresql://USER:${{VARIABLE}}@HOST:PORT/DATABASE with special characters written "
            "as %XX (`@` is %40)"
        )
    if url.startswith(SQLITE) and (":memory:" in url or "?" in url):
        raise UserError(
            f"tune.storage `{url}` must name a file that other processes can open, e.g. sqlite:///mlruns/optuna.db"
        )


def ends(space: SpaceParams) -> list[Any]:
    """Both ends of an interval, or all choices: keys have convex limits, so if these are allowed, all values are."""
    return list(space.choices) if space.choices is not None else [space.low, space.high]


def _check_value(params: Params, key: str, value: Any) -> None:
    """A value must fit the parameters as they are, or together with some values of the other keys."""
    try:
        with_values(params, _in_trial(params, {key: value}))
    except UserError as error:
        if not any(fits(params, _in_trial(params, values | {key: value})) for values in combinations(params, key)):
            raise UserError(f"tune.space.{key}: {error}") from None


def combinations(params: Params, but: str) -> Iterator[dict[str, Any]]:
    """Values of all searched keys except ``but``: combinations of their ends, at most :data:`MAX_COMBINATIONS`."""
    others = {key: ends(space) for key, space in params.tune.space.items() if key not in (but, TIMES, KNOTS)}
    return (dict(zip(others, values, strict=True)) for values in islice(product(*others.values()), MAX_COMBINATIONS))


def holds_whole_numbers(params: Params, key: str) -> bool:
    """Whether a searched interval's key refuses fractions; such a key refuses even 2.0."""
    low = float(ends(params.tune.space[key])[0])
    return not any(fits(params, _in_trial(params, values | {key: low})) for values in ({}, *combinations(params, key)))


def _in_trial(params: Params, values: dict[str, Any]) -> dict[str, Any]:
    """What a trial with these values changes in params.yaml."""
    return values if params.tune.halving is None else candidate_values(params, values)


def fits(params: Params, values: Mapping[str, Any]) -> bool:
    """Whether the parameters are valid with these values."""
    try:
        with_values(params, values)
    except UserError:
        return False
    return True


def even_times(number: int) -> list[float]:
    """Where even steps begin."""
    return [n / number for n in range(number)]


def start_values(params: Params) -> list[dict[str, float]]:
    """What Optuna is given for each starting point: the names of :func:`sfd.tuning.space.distributions`, of lists that are searched as a whole."""
    tune, found = params.tune, list[dict[str, float]]()
    for name in tune.start:
        if name == "learnt":
            found.append({f"{KNOTS}.{part}": 0.0 for part in knot_parts(params)})
        else:
            space = tune.space[TIMES]
            numbers = space.choices or range(int(ends(space)[0]), int(ends(space)[1]) + 1)
            bends = {f"{TIMES}.{part}": 0.0 for part in TIME_PARTS}
            found += [{f"{TIMES}.steps": int(number)} | bends for number in numbers]
    return found


TIME_PARTS = ("quarter_1", "quarter_2", "quarter_3")
"""Logarithms of how far the first three quarters of the steps go along the curve; that of the fourth is 0."""


def knot_parts(params: Params) -> list[str]:
    """A name for each knot of the learnt curve."""
    assert params.schedule.learnt is not None
    return [f"change_{number}" for number in range(params.schedule.learnt.pieces + 1)]
