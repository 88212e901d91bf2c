"""Frechet distances on several judges, and their mean in units of what real images reach (FDr, arXiv 2604.28190)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfd.evaluation.fidelity import FeatureStatistics, Sets
from sfd.names import ERROR_PREFIX, FDR, distance_name, floor_name, ratio_name


def score_distance(judge: str, sets: Sets, spread: Tensor) -> dict[str, float]:
    """The distance of a judge that is not the first one, its floors and its standard error.

    ``spread``: :func:`sfd.evaluation.fidelity.resampled_distances`.
    """
    reference = FeatureStatistics.of(sets.heldout.features)
    floors = {"heldout": sets.train, "reconstruction": sets.reconstruction}
    images = {distance_name(judge): sets.samples} | {
        floor_name(judge, floor, is_first=False): each for floor, each in floors.items()
    }
    metrics = {key: FeatureStatistics.of(each.features).distance(reference) for key, each in images.items()}
    return metrics | {ERROR_PREFIX + distance_name(judge): float(spread.std())}


def ratios(metrics: Mapping[str, float], spreads: Mapping[str, Tensor], counted: Sequence[str]) -> dict[str, float]:
    """Each judge's distance divided by its floor `heldout`, and the mean of that over the judges that count, with standard errors.

    Args:
        metrics: distances and floors.
        spreads: resampled distances (B,) by judge, the first judge first. Resample b of all judges has the same samples, so that the
            error of the mean knows how the judges agree.
        counted: the judges of the mean; there is none for less than two.

    A floor of 0, where the held-out images are those of the floor, gives no ratio and no mean.
    """
    found: dict[str, float] = {}
    relative: dict[str, Tensor] = {}
    for number, (judge, spread) in enumerate(spreads.items()):
        floor = metrics[floor_name(judge, "heldout", is_first=number == 0)]
        if floor > 0.0:
            relative[judge] = spread / floor
            found[ratio_name(judge)] = metrics[distance_name(judge)] / floor
            found[ERROR_PREFIX + ratio_name(judge)] = float(relative[judge].std())
    if len(counted) > 1 and all(judge in relative for judge in counted):
        found[FDR] = sum(found[ratio_name(judge)] for judge in counted) / len(counted)
        found[ERROR_PREFIX + FDR] = float(torch.stack([relative[judge] for judge in counted]).mean(dim=0).std())
    return found
