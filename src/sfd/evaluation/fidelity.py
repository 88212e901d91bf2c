"""How close samples come to held-out images, or to published statistics, in the features of a judge.

torch-fidelity computes every metric, from features that are extracted here. Its entry point ``calculate_metrics`` is not used: it
would extract features again for every comparison, and its cache is keyed by name, so a judge that was trained again would be scored
with old features.

Shapes: N images, D features of the judge, S spatial features of Inception-v3, K classes of the judge's logits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.evaluation.balanced import balanced_accuracy
from sfd.evaluation.memorisation import Memorisation
from sfd.evaluation.neighbours import density_and_coverage
from sfd.evaluation.uncertainty import balanced_error, binomial_error, frechet_resamples, moments
from sfd.names import ERROR_PREFIX, FLOOR_METRICS, distance_name, inception_score_name
from sfd.params import EvaluateParams
from sfd.seeding import derive_seed

# Number of splits that the inception score averages over, as in its publication (arXiv 1606.03498).
INCEPTION_SCORE_SPLITS = 10

# Rows of one block of distances in precision and recall; 2,000 rows by 50,000 images take 0.4 GB.
PRECISION_RECALL_ROWS = 2_000


@dataclass(frozen=True)
class Features:
    """What a judge computes for N images, on the CPU.

    Features (N, D) float32; logits (N, K), if it has them; spatial features (N, S), if they were requested.
    """

    features: Tensor
    logits: Tensor | None
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Sequence[int]) -> "Features":
        """Some of the images."""
        chosen = (None if each is None else each[list(rows)] for each in (self.logits, self.spatial))
        return Features(self.features[list(rows)], *chosen)

    @classmethod
    def joined(cls, parts: Sequence["Features"]) -> "Features":
        """The images of all parts, one after the other; at least one part."""
        logits = [part.logits for part in parts if part.logits is not None]
        spatial = [part.spatial for part in parts if part.spatial is not None]
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat(logits) if logits else None,
            torch.cat(spatial) if spatial else None,
        )


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and covariance (D, D) of features. A Frechet distance is between two of these."""

    mean: "np.ndarray[Any, Any]"
    covariance: "np.ndarray[Any, Any]"

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """The statistics of features (N, D)."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(features)
        return cls(found["mu"], found["sigma"])

    def distance(self, other: "FeatureStatistics") -> float:
        """Frechet distance (arXiv 1706.08500)."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        precision = np.result_type(self.mean, other.mean)  # torch-fidelity refuses two different ones
        mine, theirs = ({"mu": each.mean.astype(precision), "sigma": each.covariance} for each in (self, other))
        return float(fid_statistics_to_metric(mine, theirs, verbose=False)[KEY_METRIC_FID])


@dataclass(frozen=True)
class Reference:
    """What images are compared with: statistics of features and of spatial features (for sFID), and features of its images.

    ``images`` is None if only statistics were published; then kernel distance, precision and recall are absent.
    """

    statistics: FeatureStatistics
    spatial: FeatureStatistics | None
    images: Features | None

    @classmethod
    def of(cls, images: Features) -> "Reference":
        """The reference that consists of these images."""
        spatial = None if images.spatial is None else FeatureStatistics.of(images.spatial)
        return cls(FeatureStatistics.of(images.features), spatial, images)


@dataclass(frozen=True)
class Sets:
    """The image sets of one evaluation, all of the same count N.

    Samples, training images and texture-VAE reconstructions of training images are each compared with the held-out
    images, or with ``reference`` if there is one: then only these three sets have the same count.
    Labels (N,) are class indices: those for which samples were drawn (None: without a class), and those of the held-out images.
    """

    samples: Features
    heldout: Features
    train: Features
    reconstruction: Features
    sample_labels: Tensor | None
    heldout_labels: Tensor
    reference: Reference | None = None


@torch.no_grad()
def extract(judge: Judge, images: Iterable[Tensor], spatial: bool = False) -> Features:
    """The judge's features of batches of images (B, 3, H, W) uint8 on its device; images keep their order.

    ``spatial``: also keep spatial features; the judge must have them.

    Raises:
        UserError: there are no images, or a feature is not finite.
    """
    features, logits, maps = [], [], []
    for batch in images:
        if spatial:
            batch_features, batch_logits, batch_maps = judge.with_spatial(batch)
            maps.append(batch_maps.float().cpu())
        else:
            batch_features, batch_logits = judge(batch)
        features.append(batch_features.float().cpu())
        if batch_logits is not None:
            logits.append(batch_logits.float().cpu())
    if not features:
        raise UserError(f"judge {judge.name!r} needs at least one image, but was given none; fill the folder of images")
    result = Features(torch.cat(features), torch.cat(logits) if logits else None, torch.cat(maps) if maps else None)
    if not result.features.isfinite().all():
        raise UserError(
            f"features must be finite, but judge {judge.name!r} gives NaN or infinity; make the judge again"
        )
    return result


def check_num_images(num_images: int, params: EvaluateParams) -> None:
    """Raises :class:`UserError` unless there are at least 2 images, and more than ``params.neighbours``."""
    needed = max(2, params.neighbours + 1)
    if num_images < needed:
        raise UserError(
            f"evaluation needs at least {needed} images in every set (evaluate.neighbours is {params.neighbours}), "
            f"but there are {num_images}; give it more images or lower evaluate.neighbours"
        )


def compare(samples: Features, reference: Reference, params: EvaluateParams, seed: int) -> dict[str, float]:
    """Distances of samples from a reference, and the quality of the samples on their own.

    Returns:
        ``fd``: Frechet distance (arXiv 1706.08500). It falls with the number of images, so compare only values with equal counts.
        ``sfid``: the same on spatial features (arXiv 2103.03841, as ADM computes it), only if both sides have them.
        ``kid``, ``kid_std``: squared kernel distance, mean and standard deviation over random subsets (arXiv 1801.01401);
        it is unbiased, so it can be slightly negative. A subset has at most half of the images, so that subsets differ.
        ``precision``: share of samples among the reference's neighbours; ``recall``: the reverse (arXiv 1904.06991).
        ``is``: inception score (arXiv 1606.03498) of the samples, only if the judge distinguishes two or more classes.
        ``density``, ``coverage`` (arXiv 2002.09797): see :func:`sfd.evaluation.neighbours.density_and_coverage`; only if ``params.density``.
        Kernel distance, precision, recall, density and coverage are absent if the reference has no images.

    Raises:
        UserError: either set has fewer than 2 images, or no more images than ``params.neighbours``.
    """
    for images in (samples, reference.images):
        if images is not None:
            check_num_images(len(images), params)
    metrics = {"fd": FeatureStatistics.of(samples.features).distance(reference.statistics)}
    if samples.spatial is not None and reference.spatial is not None:
        metrics["sfid"] = FeatureStatistics.of(samples.spatial).distance(reference.spatial)
    if reference.images is not None:
        metrics |= _compare_images(samples, reference.images, params, seed)
    if samples.logits is not None and samples.logits.shape[1] > 1:
        metrics["is"] = _inception_score(samples.logits, seed)
    return metrics


def _compare_images(samples: Features, reference: Features, params: EvaluateParams, seed: int) -> dict[str, float]:
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    kid = kid_features_to_metric(
        samples.features,
        reference.features,
        kid_subsets=params.kid_subsets,
        kid_subset_size=max(2, min(params.kid_subset_size, len(samples) // 2, len(reference) // 2)),
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
    found = {
        "kid": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": neighbours["precision"],
        "recall": neighbours["recall"],
    }
    if params.density:
        density, coverage = density_and_coverage(samples.features, reference.features, params.neighbours)
        found |= {"density": density, "coverage": coverage}
    return found


def score(
    judge: Judge,
    sets: Sets,
    memorised: Memorisation | None,
    params: EvaluateParams,
    seed: int,
    spread: Tensor | None = None,
) -> dict[str, float]:
    """All metrics of the first judge, by the names under which they are logged.

    ``memorised``: None if that was not asked for. ``spread``: :func:`resampled_distances`, if they are there already.

    Returns:
        Samples against the reference: ``fid`` for Inception-v3 and ``fd_JUDGE`` for any other judge, ``sfid`` for Inception-v3, ``kid``,
        ``kid_std``, ``precision``, ``recall``; ``inception_score`` or ``is_JUDGE`` if the judge classifies.
        Floors: what a perfect model could reach. ``fd_heldout``, ``kid_heldout``, ``precision_heldout`` and ``recall_heldout``
        score real training images as if they were samples; ``fd_reconstruction`` and so on score those images after the VAE round
        trip. Equal counts give floors and samples the same finite-sample bias.
        ``class_accuracy``: share of samples that the judge assigns to the class for which they were drawn;
        ``class_accuracy_heldout``: share of held-out images that it assigns to their class. Both are means over the classes, and absent
        unless the judge distinguishes two or more classes of this data set.
        ``num_images``, ``memorised_fraction``.
        ``se_METRIC``: standard errors of the distance and of the samples' fractions. KID and the inception score have none: their
        subsets overlap, so the spread over subsets is not a standard error.

    Raises:
        UserError: counts differ or are too small, or a label is not among the judge's classes.
    """
    _check_counts(sets)
    names = {"fd": distance_name(judge.name), "is": inception_score_name(judge.name)}

    reference = sets.reference or Reference.of(sets.heldout)
    found = compare(sets.samples, reference, params, seed)
    metrics = {names.get(key, key): value for key, value in found.items()}
    for floor, images in (("heldout", sets.train), ("reconstruction", sets.reconstruction)):
        found = compare(images, reference, params, seed)
        metrics |= {f"{key}_{floor}": found[key] for key in FLOOR_METRICS if key in found}
    if judge.knows_classes:
        if sets.sample_labels is not None:
            metrics["class_accuracy"] = class_accuracy(sets.samples, sets.sample_labels, judge)
        metrics["class_accuracy_heldout"] = class_accuracy(sets.heldout, sets.heldout_labels, judge)
    metrics["num_images"] = float(len(sets.samples))
    counts = dict.fromkeys(("precision", "recall"), len(sets.samples))
    if sets.reference is not None and sets.reference.images is not None:
        counts["recall"] = len(sets.reference.images)
    if memorised is not None:
        metrics["memorised_fraction"] = memorised.memorised_fraction
        counts["memorised_fraction"] = len(memorised.table)
    spread = resampled_distances(sets, seed) if spread is None else spread
    return metrics | _standard_errors(metrics, names["fd"], sets, counts, spread)


def resampled_distances(sets: Sets, seed: int, device: torch.device | None = None) -> Tensor:
    """Frechet distances of resampled samples, see :func:`sfd.evaluation.uncertainty.frechet_resamples`. ``device``: where to compute."""
    if sets.reference is None:
        reference = moments(sets.heldout.features)
    else:
        given = sets.reference.statistics
        reference = torch.from_numpy(given.mean).double(), torch.from_numpy(given.covariance).double()
    labels = sets.sample_labels
    if labels is None:  # as if all were of one class: a plain bootstrap
        labels = torch.zeros(len(sets.samples), dtype=torch.int64)
    return frechet_resamples(sets.samples.features, labels, reference, seed, device)


def _standard_errors(
    metrics: dict[str, float], distance: str, sets: Sets, counts: dict[str, int], spread: Tensor
) -> dict[str, float]:
    """Standard errors by metric, as :func:`score` names them. ``counts``: of fractions, how many images they are of."""
    errors = {distance: float(spread.std())}
    errors |= {name: binomial_error(metrics[name], count) for name, count in counts.items() if name in metrics}
    if "class_accuracy" in metrics and sets.sample_labels is not None:
        errors["class_accuracy"] = balanced_error(metrics["class_accuracy"], sets.sample_labels)
    return {ERROR_PREFIX + name: error for name, error in errors.items()}


def _check_counts(sets: Sets) -> None:
    names = (
        ("samples", "train", "reconstruction") if sets.reference else ("samples", "heldout", "train", "reconstruction")
    )
    counts = {name: len(getattr(sets, name)) for name in names}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"evaluation needs the same number of images in every set, but has {found}; "
            f"use {min(counts.values())} of each"
        )


def _inception_score(logits: Tensor, seed: int) -> float:
    """Mean over random splits. With fewer images than splits, every image is its own split and the score is 1."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    splits = min(INCEPTION_SCORE_SPLITS, len(logits))
    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=_numpy_seed(seed, "inception_score"))
    return float(found["inception_score_mean"])


def class_accuracy(images: Features, labels: Tensor, judge: Judge) -> float:
    """Share of images that the judge assigns to their labels ``(N,)``: the mean over the classes.

    Raises:
        UserError: a label is not among the judge's classes.
    """
    if images.logits is None or images.logits.shape[1] != judge.classes:
        shape = None if images.logits is None else tuple(images.logits.shape)
        raise ValueError(f"judge {judge.name!r} declares {judge.classes} classes, but its logits have shape {shape}")
    if int(labels.max()) >= judge.classes:
        raise UserError(
            f"labels must be below {judge.classes}, the number of the judge's classes, but the largest is {int(labels.max())}; "
            f"train the judge on the classes of this data set"
        )
    return balanced_accuracy(images.logits, labels)


def _numpy_seed(seed: int, purpose: str) -> int:
    """A seed for numpy's RandomState, which takes 32 bits."""
    return derive_seed(seed, f"evaluate/{purpose}") % 2**32
