"""Standard errors of metrics: how much a metric would vary over other sets of samples of the same model.

Only the samples count as random. Models are compared on the same reference, so its randomness affects both alike.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sfd.seeding import generator

RESAMPLES = 20
"""Number of bootstrap resamples. A standard error from B of them has a relative error of about 1 / sqrt(2 * (B - 1)), whatever the metric
and the number of images: 16 % for 20, enough to tell noise from progress. One resample of 50,000 images with 2,048 features costs 450 GFLOP
in float64. All of them take seconds on a data centre's GPU, and minutes on a CPU."""

GROUP_RESAMPLES = 1_000
"""Number of bootstrap resamples of fractions and medians, which cost little: enough for the ends of a 95 % interval."""


def binomial_error(fraction: float, count: int) -> float:
    """Standard error of the fraction of ``count`` independent images that have a property."""
    return math.sqrt(fraction * (1.0 - fraction) / count)


def balanced_error(fraction: float, labels: Tensor) -> float:
    """Standard error of a mean over classes of the share of each class's images that have a property. ``labels`` ``(N,)``.

    Every class is taken to have the mean share, because a class of few images may show 0 or 1 by chance. With equally many images per
    class it is :func:`binomial_error`.
    """
    sizes = labels.unique(return_counts=True)[1].double()
    return math.sqrt(fraction * (1.0 - fraction) * float((1.0 / sizes).sum())) / len(sizes)


def frechet_error(
    samples: Tensor, labels: Tensor, reference: tuple[Tensor, Tensor], seed: int, device: torch.device | None = None
) -> float:
    """Standard error of the Frechet distance: the spread of :func:`frechet_resamples`."""
    return float(frechet_resamples(samples, labels, reference, seed, device).std())


def frechet_resamples(
    samples: Tensor, labels: Tensor, reference: tuple[Tensor, Tensor], seed: int, device: torch.device | None = None
) -> Tensor:
    """Frechet distances (B,) float64 of resamples of samples (N, D) from a reference (bootstrap). ``labels`` (N,): their classes.

    ``reference``: mean (D,) and covariance (D, D), float64. ``device``: where to compute; None: where the samples are.

    Each of :data:`RESAMPLES` resamples draws with replacement (Efron 1979), from every class as many samples as it has: the samples'
    class mix is set by design, so class counts are not random. On the digits the plain bootstrap gave seven times the
    spread over new samples; this one gives twice that spread. Close to the floors it is too large, so it errs on the side of caution.
    The rows that are drawn depend on seed and classes alone, so resample b of one judge is that of another.

    With R the square root of the reference's covariance S2, ``trace(sqrt(S1 S2))`` is the sum of the square roots of the eigenvalues of the
    symmetric ``R S1 R``: several times cheaper than those of ``S1 S2``, which torch-fidelity computes.
    """
    features = samples.to(device or samples.device, torch.float64)
    mean, covariance = (each.to(features.device) for each in reference)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    distances = []
    for number in range(RESAMPLES):
        drawn = _draw_within_classes(labels, generator(seed, "evaluate/bootstrap/frechet", number))
        counts = torch.bincount(drawn, minlength=len(features)).to(features.device, torch.float64)
        resampled_mean, resampled = _moments(features, counts)
        overlap = torch.linalg.eigvalsh(root @ resampled @ root).clamp_min(0.0).sqrt().sum()
        distances.append(
            (resampled_mean - mean).square().sum() + resampled.trace() + covariance.trace() - 2.0 * overlap
        )
    return torch.stack(distances).cpu()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) float64 of features (N, D)."""
    return _moments(features.double(), torch.ones(len(features), dtype=torch.float64))


def _draw_within_classes(labels: Tensor, random: torch.Generator) -> Tensor:
    """Draws rows (N,) with replacement, within each class as many as it has; among all rows if a class has a single image."""
    sizes = torch.bincount(labels)
    if (sizes == 1).any():
        return torch.randint(len(labels), (len(labels),), generator=random)
    by_class, ends = labels.argsort(stable=True), sizes.cumsum(0)
    of_class = labels[by_class]
    places = torch.rand(len(labels), generator=random, dtype=torch.float64) * sizes[of_class]
    return by_class[(ends - sizes)[of_class] + places.long()]


def _moments(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in which each row occurs ``counts`` (N,) times."""
    number = counts.sum()
    mean = counts @ features / number
    centred = (features - mean) * counts.sqrt()[:, None]
    return mean, centred.T @ centred / (number - 1.0)


def group_weights(groups: Tensor, seed: int, purpose: str) -> Iterator[Tensor]:
    """How often each image is drawn (N,) float64 in :data:`GROUP_RESAMPLES` resamples that draw whole groups with replacement.

    ``groups`` (N,): what images share that makes them alike, such as their prompt; numbered from 0, none empty. Images of one group are not
    independent: two samples of a hard prompt both miss. With one image per group this is the plain bootstrap over images (Efron 1979).
    """
    number, random = int(groups.max()) + 1, generator(seed, f"evaluate/bootstrap/{purpose}")
    for _ in range(GROUP_RESAMPLES):
        drawn = torch.randint(number, (number,), generator=random)
        yield torch.bincount(drawn, minlength=number).double()[groups]
