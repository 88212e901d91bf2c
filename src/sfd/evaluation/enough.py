"""How many images each metric rests on, and which metrics rest on too few."""

from collections.abc import Mapping, Sequence

from sfd.encoders.judges.judge import Judge
from sfd.names import (
    COUNT_PREFIX,
    FDR,
    TOO_FEW_PREFIX,
    distance_name,
    is_metric,
    kind_of,
    ratio_name,
    with_floors,
)
from sfd.params import EvaluateParams
from sfd.params.operations import LIMITED

IMAGES_PER_NEIGHBOUR = 50
"""Precision and recall need so many images per neighbour. With fewer, the balls around the images reach so far that they hold nearly
everything: eight images of noise have precision 1."""


def least_images(metric: str, params: EvaluateParams, judge: Judge) -> int | None:
    """The number of images that a metric needs; None: any number is enough. ``judge``: the one that it is measured by.

    A covariance of N images has rank N - 1, so a Frechet distance needs more images than features.
    """
    limit, kind = params.min_images.limit_of(metric), kind_of(metric)
    if limit is None:
        return None
    if kind in LIMITED["fd"]:
        return max(limit, 1 + (judge.num_spatial_features if kind == "sfid" else judge.num_features))
    if kind in LIMITED["precision"]:
        return max(limit, IMAGES_PER_NEIGHBOUR * params.neighbours)
    return limit


def judge_of(metric: str, judge: Judge, more: Sequence[Judge]) -> Judge:
    """The judge that a metric is measured by: the first one, ``judge``, or one of ``more`` if it is its distance. The mean over the judges
    needs as many images as that one of them which needs the most."""
    if metric == FDR:
        return max((judge, *more), key=lambda each: each.num_features)
    for other in more:
        if metric in (ratio_name(other.name), *with_floors(distance_name(other.name))):
            return other
    return judge


def count_images(
    metrics: Mapping[str, float],
    others: Mapping[str, int],
    params: EvaluateParams,
    judge: Judge,
    more: Sequence[Judge] = (),
) -> dict[str, float]:
    """What ``metrics.json`` says of the number of images: ``n_METRIC`` and ``too_few_METRIC``, see :mod:`sfd.names`.

    ``others``: images of the metrics that rest on another number than ``num_images``. ``judge``, ``more``: the first and the other judges.
    """
    usual = int(metrics["num_images"])
    found: dict[str, float] = {}
    for metric in filter(is_metric, metrics):
        number, needed = others.get(metric, usual), least_images(metric, params, judge_of(metric, judge, more))
        if number != usual:
            found[COUNT_PREFIX + metric] = float(number)
        if needed is not None and number < needed:
            found[TOO_FEW_PREFIX + metric] = float(needed)
    return found
