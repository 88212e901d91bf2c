"""How close samples come to held-out images, in the features of a judge.

Every metric is torch-fidelity's own, computed by its functions from features to numbers. Its front door,
``calculate_metrics``, is left aside: it would extract features once more for every comparison, and its cache is keyed
by names alone, so that a judge trained anew would be scored with old features.

Shapes: N images, D features of the judge, K classes of its logits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfd.errors import UserError
from sfd.evaluation.memorisation import Memorisation
from sfd.evaluation.metrics import ERROR_PREFIX, FLOOR_METRICS, FLOORS, distance_name, inception_score_name
from sfd.evaluation.uncertainty import binomial_error, frechet_error
from sfd.params import EvaluateParams
from sfd.seeding import derive_seed

# Splits that the inception score averages over, as in its publication (arXiv 1606.03498).
INCEPTION_SCORE_SPLITS = 10

# Rows of one block of distances in precision and recall; a block of this many rows by 50,000 images takes 0.4 GB.
PRECISION_RECALL_ROWS = 2_000


class Judge(Protocol):
    """A frozen network that scores images, which come on its own device.

    ``name`` appears in metric keys and is ``inception`` for Inception-v3 only. ``digest`` is the SHA-256 of its
    weights.
    """

    name: str
    digest: str
    num_features: int

    @property
    def classes(self) -> int | None:
        """How many classes of the dataset its logits speak of; None if they speak of others, or there are none."""
        ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, 3, H, W) uint8 to features (B, num_features) float32 and logits (B, K), or None if it has none."""
        ...


@dataclass(frozen=True)
class Features:
    """What a judge says of N images: features (N, D) float32 and, if it classifies, logits (N, K), both on the CPU."""

    features: Tensor
    logits: Tensor | None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Sets:
    """The image sets of one evaluation, all of the same count N.

    Samples, training images and texture-VAE reconstructions of training images are each compared with the held-out
    images. Labels (N,) are class indices: the classes that samples were asked for, and those of the held-out images.
    """

    samples: Features
    heldout: Features
    train: Features
    reconstruction: Features
    sample_labels: Tensor
    heldout_labels: Tensor


@torch.no_grad()
def extract(judge: Judge, images: Iterable[Tensor]) -> Features:
    """Shows batches of images (B, 3, H, W) uint8, on the judge's device, to the judge; images keep their order.

    Raises:
        UserError: there are no images, or a feature is not finite.
    """
    features, logits = [], []
    for batch in images:
        batch_features, batch_logits = judge(batch)
        features.append(batch_features.float().cpu())
        if batch_logits is not None:
            logits.append(batch_logits.float().cpu())
    if not features:
        raise UserError(f"judge {judge.name!r} needs at least one image, but was given none; fill the folder it reads")
    result = Features(torch.cat(features), torch.cat(logits) if logits else None)
    if not result.features.isfinite().all():
        raise UserError(
            f"features must be finite, but judge {judge.name!r} gives NaN or infinity; make the judge again"
        )
    return result


def compare(samples: Features, reference: Features, params: EvaluateParams, seed: int) -> dict[str, float]:
    """Distances of samples from a reference, and the quality of the samples on their own.

    Returns:
        ``fd``: Frechet distance (arXiv 1706.08500); falls with the number of images, so only equal counts compare.
        ``kid``, ``kid_std``: squared kernel distance, mean and deviation over random subsets (arXiv 1801.01401);
        unbiased, so it can be slightly negative. The deviation is about 0 when a subset takes in all images.
        ``precision``: share of samples among the reference's neighbours; ``recall``: the reverse (arXiv 1904.06991).
        ``is``: inception score (arXiv 1606.03498) of the samples, only if the judge tells two classes or more apart.

    Raises:
        UserError: either set has fewer than 2 images, or no more images than ``params.neighbours``.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    num_images = min(len(samples), len(reference))
    needed = max(2, params.neighbours + 1)
    if num_images < needed:
        raise UserError(
            f"evaluation needs at least {needed} images in every set (evaluate.neighbours is {params.neighbours}), "
            f"but there are {num_images}; give it more images or lower evaluate.neighbours"
        )
    statistics = [fid_features_to_statistics(each.features) for each in (samples, reference)]
    kid = kid_features_to_metric(
        samples.features,
        reference.features,
        kid_subsets=params.kid_subsets,
        kid_subset_size=min(params.kid_subset_size, num_images),
        rng_seed=_numpy_seed(seed, "kid"),
        verbose=False,
    )
    neighbours = prc_features_to_metric(
        samples.features,
        reference.features,
        prc_neighborhood=params.neighbours,
        prc_batch_size=PRECISION_RECALL_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    metrics = {
        "fd": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        "kid": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": neighbours["precision"],
        "recall": neighbours["recall"],
    }
    if samples.logits is not None and samples.logits.shape[1] > 1:
        metrics["is"] = _inception_score(samples.logits, seed)
    return metrics


def score(judge: Judge, sets: Sets, memorised: Memorisation, params: EvaluateParams, seed: int) -> dict[str, float]:
    """All metrics of one evaluation, flat, by the names under which they are logged.

    Returns:
        Samples against held-out images: ``fid`` for Inception-v3 and ``fd_JUDGE`` for any other judge, ``kid``,
        ``kid_std``, ``precision``, ``recall``; ``inception_score`` or ``is_JUDGE`` if the judge classifies.
        Floors, what a perfect model could reach: ``fd_heldout``, ``kid_heldout``, ``precision_heldout`` and
        ``recall_heldout`` put training images in the samples' place; ``fd_reconstruction`` and so on put their
        texture-VAE reconstructions there. Equal counts give floors and samples the same finite-sample bias.
        ``class_accuracy``: share of samples that the judge assigns to the class they were asked for, and
        ``class_accuracy_heldout``: the judge on real images. Both are absent unless the judge tells two or more classes
        of this dataset apart.
        ``num_images``, ``memorised_fraction``.
        ``se_METRIC``: standard errors of the distance and of the samples' fractions. KID and the inception score have none: their
        subsets overlap, so the spread over these does not give it.

    Raises:
        UserError: counts differ or are too small, the judge bears a reserved name, or labels exceed its classes.
    """
    _check_counts(sets)
    if judge.name in FLOORS:
        raise UserError(f"judge.name must not be {judge.name!r}: `fd_{judge.name}` names a floor; choose another name")
    names = {"fd": distance_name(judge.name), "is": inception_score_name(judge.name)}

    found = compare(sets.samples, sets.heldout, params, seed)
    metrics = {names.get(key, key): value for key, value in found.items()}
    for floor, images in (("heldout", sets.train), ("reconstruction", sets.reconstruction)):
        found = compare(images, sets.heldout, params, seed)
        metrics |= {f"{key}_{floor}": found[key] for key in FLOOR_METRICS}
    if judge.classes is not None and judge.classes > 1:
        metrics["class_accuracy"] = class_accuracy(sets.samples, sets.sample_labels, judge)
        metrics["class_accuracy_heldout"] = class_accuracy(sets.heldout, sets.heldout_labels, judge)
    metrics |= {"num_images": float(len(sets.samples)), "memorised_fraction": memorised.memorised_fraction}
    return metrics | _standard_errors(metrics, names["fd"], sets, memorised, seed)


def _standard_errors(
    metrics: dict[str, float], distance: str, sets: Sets, memorised: Memorisation, seed: int
) -> dict[str, float]:
    """By the names of :func:`score`. All fractions count samples but recall, which counts as many reference images."""
    counts = dict.fromkeys(("class_accuracy", "precision", "recall"), len(sets.samples))
    counts["memorised_fraction"] = len(memorised.table)
    errors = {distance: frechet_error(sets.samples.features, sets.sample_labels, sets.heldout.features, seed)}
    errors |= {name: binomial_error(metrics[name], count) for name, count in counts.items() if name in metrics}
    return {ERROR_PREFIX + name: error for name, error in errors.items()}


def _check_counts(sets: Sets) -> None:
    counts = {name: len(getattr(sets, name)) for name in ("samples", "heldout", "train", "reconstruction")}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"evaluation needs the same number of images in every set, but has {found}; "
            f"take {min(counts.values())} of each"
        )


def _inception_score(logits: Tensor, seed: int) -> float:
    """Mean over random splits; with fewer images than splits, every image is a split of its own and the score is 1."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    splits = min(INCEPTION_SCORE_SPLITS, len(logits))
    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=_numpy_seed(seed, "inception_score"))
    return float(found["inception_score_mean"])


def class_accuracy(images: Features, labels: Tensor, judge: Judge) -> float:
    """Share of images that the judge assigns to their labels ``(N,)``.

    Raises:
        UserError: a label is not among the judge's classes.
    """
    if images.logits is None or images.logits.shape[1] != judge.classes:
        shape = None if images.logits is None else tuple(images.logits.shape)
        raise ValueError(f"judge {judge.name!r} announces {judge.classes} classes, but its logits are {shape}")
    if int(labels.max()) >= judge.classes:
        raise UserError(
            f"labels must be below the judge's number of classes, {judge.classes}, but reach {int(labels.max())}; "
            f"train the judge on the classes of this dataset"
        )
    return float((images.logits.argmax(dim=1) == labels.cpu()).float().mean())


def _numpy_seed(seed: int, purpose: str) -> int:
    """A seed for numpy's RandomState, which takes 32 bits."""
    return derive_seed(seed, f"evaluate/{purpose}") % 2**32
