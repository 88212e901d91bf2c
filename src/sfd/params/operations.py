"""Sections for the use of samples and models: ``evaluate``, ``register``, ``tracking``, ``tune``."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sfd.names import FDR, RETRIEVAL, SWAP_ACCURACY, WORD_METRICS, kind_of, nearest
from sfd.params.types import FilePath, Positive, Section


class MinImagesParams(Section):
    """The least number of images that a metric may rest on. With fewer, `metrics.json` flags it, and no gate on it passes. Null: no limit."""

    fd: Positive | None = Field(
        200,
        description="Frechet distances (`fd_NAME`, `fid`, `sfid`). They need more images than the judge has features in any case",
    )
    kid: Positive | None = Field(200, description="kernel distances (`kid`, `cmmd`)")
    precision: Positive | None = Field(
        200,
        description="precision, recall, density and coverage. They need 50 times as many as `evaluate.neighbours` in any case",
    )
    inception_score: Positive | None = Field(200, description="inception score")
    class_accuracy: Positive | None = Field(100, description="both class accuracies")
    memorised_fraction: Positive | None = Field(
        100,
        description="samples, and held-out images, whose nearest 1 % are the limit",
    )
    text_agreement: Positive | None = Field(
        100,
        description="what samples of words are scored by: `text_recall_K`, `text_rank` (samples, and held-out images), `clip_score`, "
        "`memorised_pairs`",
    )
    swap_accuracy: Positive | None = Field(50, description="images that `evaluate.swaps` asks for")

    def limit_of(self, metric: str) -> int | None:
        """The limit of a metric; None: it has none."""
        kind = kind_of(metric)
        name = next((name for name, kinds in LIMITED.items() if kind in kinds), None)
        limit: int | None = None if name is None else getattr(self, name)
        return limit


LIMITED: dict[str, tuple[str, ...]] = {
    "fd": ("fd", "fid", FDR, "sfid"),
    "kid": ("kid", "cmmd"),
    "precision": ("precision", "recall", "density", "coverage"),
    "inception_score": ("is", "inception_score"),
    "class_accuracy": ("class_accuracy", "class_accuracy_heldout"),
    "memorised_fraction": ("memorised_fraction",),
    "swap_accuracy": (SWAP_ACCURACY,),
    "text_agreement": tuple(kind for kind in WORD_METRICS if kind != SWAP_ACCURACY),
}
"""The kinds of metrics that each limit is for."""


class EvaluateParams(Section):
    """Scores of the samples against held-out images, or against published statistics."""

    reference: FilePath | None = Field(
        None,
        description="file of ADM's reference batch (.npz with `mu`, `sigma`, `mu_s`, `sigma_s` and optionally `arr_0`), for FID and sFID as "
        "published; needs `judges.0.kind: inception`. null: held-out images, which tuning always uses",
    )
    neighbours: Positive = Field(3, description="k of precision, recall, density and coverage (k-th nearest neighbour)")
    kid_subsets: Positive = Field(100, description="subsets that KID averages over")
    kid_subset_size: Positive = Field(1000, description="images per subset (at most half of the images)")
    memorisation: bool = Field(
        True,
        description="count samples that are nearly training images. Stage `reference` then keeps the first judge's features of all training "
        "images (ImageNet: 10.5 GB, and as much again for flipped ones), else only of as many as there are samples",
    )
    density: bool = Field(False, description="density and coverage, beside precision and recall")
    cmmd: str | None = Field(
        None,
        description="judge that gives `cmmd`, a kernel distance: a CLIP, by its name in `judges`; null: none",
    )
    swaps: tuple[str, ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        description="whether a colour in the prompt becomes the colour of the picture: prompts with one place for colour words, as "
        "`a {red, blue, green} heart`. Words are colours of CSS. Stage `sample` draws the images, for a model that is told words. null: not tested",
    )
    swap_images: Positive = Field(
        8, description="images per word of `evaluate.swaps`, of the same seeds for every word"
    )
    min_images: MinImagesParams = MinImagesParams.model_validate({})

    @field_validator("swaps")
    @classmethod
    def _check_swaps(cls, swaps: tuple[str, ...] | None) -> tuple[str, ...] | None:
        templates = [_words_of(swap)[0] for swap in swaps or ()]
        twice = next((template for template in templates if templates.count(template) > 1), None)
        if twice is not None:
            raise ValueError(f"template {twice!r} is there twice: write all its words in one")
        return swaps

    @property
    def swap_words(self) -> dict[str, tuple[str, ...]]:
        """By template of `swaps`, with `{}` where a word is put, its colour words."""
        return dict(_words_of(swap) for swap in self.swaps or ())


def _words_of(swap: str) -> tuple[str, tuple[str, ...]]:
    """``a {red, blue} heart`` -> ``a {} heart``, (red, blue). Raises ``ValueError`` unless it has one place, and its words are colours."""
    found = re.fullmatch(r"([^{}]*)\{([^{}]*)\}([^{}]*)", swap)
    if found is None:
        raise ValueError(f"{swap!r} must have exactly one place for words, as in `a {{red, blue}} heart`")
    template, words = f"{found[1]}{{}}{found[3]}", tuple(word.strip() for word in found[2].split(","))
    if len(words) < 2:
        raise ValueError(f"{swap!r} must have two words or more to swap, as in `a {{red, blue}} heart`")
    _check_colours(template, words)
    return template, words


def _check_colours(template: str, words: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless the words are colours that differ."""
    from PIL import ImageColor

    known = {name for name in ImageColor.colormap if name.isalpha()}
    strange = next((word for word in words if word not in known), None)
    if strange is not None:
        raise ValueError(
            f"{strange!r} of template {template!r} is no colour of CSS; nearest: `{nearest(strange, sorted(known))}`"
        )
    colours: dict[tuple[int, ...], str] = {}
    for word in words:
        other = colours.setdefault(ImageColor.getrgb(word), word)
        if other != word or words.count(word) > 1:
            raise ValueError(f"template {template!r} has {other!r} and {word!r}, which are one colour: remove one")


CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases of the version in use, and of the one that it replaced."""


class GateParams(Section):
    """What a version must show in one metric to become champion."""

    limit: float | None = Field(None, description="the metric must be at least as good as this; null: no limit")
    improve: bool = Field(
        False,
        description="the metric must be better than the champion's by more than the standard error of the difference",
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="what the metric must have been measured against: `heldout`, or the file name of a reference batch. null: what "
        "`evaluate.reference` says. A number of another reference does not pass",
    )

    @model_validator(mode="after")
    def _check_form(self) -> "GateParams":
        if self.limit is None and not self.improve:
            raise ValueError("a gate needs a limit, or improve: true, or both")
        return self


RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
"""MLflow's own names of versions, mlflow/utils/validation.py."""
MODEL_NAME = r"^\w([\w .@+()-]*[\w+()-])?$"
"""Narrower than MLflow's rule, which takes names that its addresses (``models:/NAME@ALIAS``), its searches and files cannot hold."""
MAX_MODEL_NAME = 200
"""MLflow's column holds 256 characters, and the lock of a promotion adds an ending."""
LOCK_ENDING = ".promotion"
"""Of the registered model that is a promotion's lock."""


class RegisterParams(Section):
    """The MLflow model registry."""

    name: str | None = Field(
        None,
        max_length=MAX_MODEL_NAME,
        pattern=MODEL_NAME,
        description="registered model: letters, digits, blanks and `_-.@+()`, at most 200. null: the name of the project's folder",
    )
    alias: str = Field(
        "candidate",
        max_length=255,
        pattern=r"^[a-zA-Z][\w-]*$",
        description="alias that the new version gets; not `latest`, `v1`, ..., which are MLflow's own",
    )
    other_data: bool = Field(
        False,
        description="register a version although those of this model so far were made from other images; false: that is refused",
    )
    gates: dict[str, GateParams] = Field(
        description="metric of the evaluation to `{limit, improve, reference}`; `sfd models promote` checks them. Whether lower or higher is better "
        "follows from the metric"
    )

    @model_validator(mode="after")
    def _check_names(self) -> "RegisterParams":
        if self.name is not None and self.name.endswith(LOCK_ENDING):
            raise ValueError(f"name `{self.name}` ends in `{LOCK_ENDING}`, the lock of a promotion: choose another one")
        if self.alias in (CHAMPION, PREVIOUS):
            raise ValueError(
                f"alias `{self.alias}` is moved by `sfd models promote` and `rollback` alone: choose another one"
            )
        if RESERVED_ALIAS.fullmatch(self.alias):
            raise ValueError(f"alias `{self.alias}` is reserved by MLflow for versions: choose another one")
        return self


class TrackingParams(Section):
    """MLflow. ``MLFLOW_TRACKING_URI`` overrides the store."""

    experiment: str | None = Field(
        None,
        max_length=250,
        pattern=r"^[^\s\p{C}]([^\p{C}]*[^\s\p{C}])?$",
        description="MLflow experiment of all stages: at most 250 characters without blanks at its ends. null: the name of the project's folder",
    )
    required: bool = Field(False, description="a stage fails at its end if its records could not be delivered")


Number = int | float


class SpaceParams(Section):
    """The values that a study may give to one key: an interval or a list."""

    low: Number | None = Field(None, description="smallest value")
    high: Number | None = Field(None, description="largest value")
    step: Number | None = Field(None, gt=0, description="values are `low` plus multiples of this")
    log: bool = Field(False, description="uniform in the logarithm")
    choices: tuple[bool | int | float | str, ...] | None = Field(
        None, strict=False, min_length=1, description="the values themselves, instead of an interval"
    )

    @model_validator(mode="after")
    def _check_form(self) -> "SpaceParams":
        interval = self.low is not None and self.high is not None
        if interval == (self.choices is not None) or (self.low is None) != (self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.choices is not None and (self.step is not None or self.log):
            raise ValueError("choices take neither step nor log")
        if self.low is None or self.high is None:
            return self
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.step is not None and self.step > (self.high - self.low) * (
            1 + 1e-9
        ):  # 0.3 - 0.1 is a bit less than 0.2
            raise ValueError(f"step {self.step:g} must be at most high - low = {self.high - self.low:g}")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError("log needs low above 0, and no step")
        return self


VARIABLE = re.compile(r"\$\{(\w+)\}")
"""A variable of the environment in an address."""
PASSWORD = re.compile(r"://[^:@/]*:[^@]+@|[?&](ssl)?password=[^&]", re.IGNORECASE)
"""A password in an address whose variables were taken out."""

OBJECTIVES = ("fd", "fid", "fdr", "kid", "class_accuracy", *RETRIEVAL, "evaluations", "seconds_per_image")
"""What a study can improve, beside `fd_NAME`."""
Objective = Annotated[str, Field(pattern=rf"^({'|'.join(OBJECTIVES)}|fd_\w[\w.-]*)$")]


class HalvingParams(Section):
    """Successive halving of the schedules in ``tune.space``: all go on from one training, and after each round the better half goes on."""

    base_steps: Positive = Field(
        description="steps of the training from which all candidates go on, along the section `schedule` as it stands"
    )
    first_steps: Positive = Field(
        description="steps of each candidate in the first round, along its own schedule. Each round doubles the steps since the shared start, "
        "until two candidates are left, which are then trained from scratch"
    )


class TuneParams(Section):
    """An Optuna study (``sfd tune``)."""

    study: str = Field(pattern=r"^\w[\w.-]*$", description="name of the study in the storage")
    kind: Literal["sampling", "training"] = Field(
        description="`sampling`: all trials use the trained model and change only `sample`; `training`: every trial trains a model on the "
        "same latents"
    )
    objectives: tuple[Objective, ...] = Field(
        ("fd",),
        strict=False,
        min_length=1,
        description="metrics to improve: `fd`, the distance on the first judge (`fid` if that is Inception-v3), `fd_NAME` on another judge, "
        "`fdr`, `kid`, `class_accuracy`, `text_recall_1`, `_5`, `_10` or `text_rank` of a model that is told words, `evaluations` (of networks, "
        "per image) or `seconds_per_image`. Whether lower or higher is better follows "
        "from the metric",
    )
    trials: Positive = Field(20, description="trials of the study, over all workers and restarts")
    minutes: float = Field(
        60.0, gt=0.0, description="a worker starts no more trials when it has run for this many minutes"
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="how Optuna proposes values")
    pruner: Literal["none", "wilcoxon", "hyperband"] = Field(
        "hyperband",
        description="what ends poor trials early. `wilcoxon`: compares a trial's repeats with those of the best trial, pair by pair (needs 4 "
        "repeats or more); `hyperband`: compares trials after equal budgets (repeats, or `report_every` steps of training)",
    )
    num_images: int = Field(
        500, ge=10, description="images per repeat. A Frechet distance depends on it, so all trials have the same"
    )
    repeats: Positive = Field(3, description="sampling seeds per trial; its objective is the mean over them")
    confirm_repeats: int = Field(
        5,
        ge=2,
        description="fresh seeds (`training`: fresh trainings too) with which the best trial and the baselines are scored again",
    )
    report_every: Positive = Field(1000, description="steps of training between intermediate scores (`training`)")
    refine_steps: int = Field(
        0,
        ge=0,
        description="steps that a trial trains the shared model with the trial's own schedule, before it samples (`sampling`); 0: none",
    )
    storage: str = Field(
        "sqlite:///mlruns/optuna.db",
        pattern=r"^(sqlite:///|postgresql://|journal://).+$",
        description="`sqlite:///FILE`, `journal://FILE` on a shared disk, or `postgresql://USER:${VARIABLE}@HOST/DATABASE`; the password "
        "comes from the environment: the named variable, or without one PGPASSWORD or ~/.pgpass",
    )
    heartbeat_seconds: Positive = Field(
        15,
        description="seconds between a worker's signs of life. After four missing ones another worker repeats its trial, once",
    )
    start: tuple[Literal["learnt", "even"], ...] = Field(
        (),
        strict=False,
        description="settings that are tried first. `learnt`: the curve of stage `schedule`, around which `schedule.knots` are searched; `even`: "
        "even steps, for each number of steps of `sample.times`",
    )
    halving: HalvingParams | None = Field(
        None,
        description="compare the schedules of `space`, given by `choices` or a `step`, by successive halving (`training`). `trials` and `sampler` "
        "then say nothing, and the learning rate is constant after its warm-up. null: an ordinary search",
    )
    space: dict[str, SpaceParams] = Field(
        min_length=1,
        description="dotted key to `{low, high}` (with `step` or `log`) or `{choices}`; a number at the end of a key picks an entry of a list. "
        "`sample.times`: the numbers of steps, whose places are searched; `schedule.knots`: by how much the logarithm of each knot may differ "
        "from the learnt curve's",
    )

    @model_validator(mode="after")
    def _check_password(self) -> "TuneParams":
        if PASSWORD.search(VARIABLE.sub("", self.storage)):
            raise ValueError(
                "storage holds a password, and params.yaml is committed and logged: write the name of a variable of the environment in its "
                "place, as in postgresql://USER:${SFD_STORAGE_PASSWORD}@HOST/DATABASE, or leave it out and set PGPASSWORD"
            )
        return self
