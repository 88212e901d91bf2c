"""The names of an evaluation's metrics, and which way each gets better. Imports nothing heavy: params.yaml is checked by it."""

import math

FLOORS = ("heldout", "reconstruction")
"""Metrics `fd_heldout` and `fd_reconstruction` are floors, so no judge may have these names."""
FLOOR_METRICS = ("fd", "kid", "precision", "recall")
_KIND_OF_FLOOR = {f"{kind}_{floor}": kind for floor in FLOORS for kind in FLOOR_METRICS}
INCEPTION = "inception"

HIGHER_IS_BETTER = {
    "fd": False,
    "fid": False,
    "sfid": False,
    "kid": False,
    "kid_std": False,
    "precision": True,
    "recall": True,
    "is": True,
    "inception_score": True,
    "class_accuracy": True,
    "class_accuracy_heldout": True,
    "memorised_fraction": False,
    "num_images": True,
    "seconds_per_image": False,
}
"""By kind: `fd` stands for every `fd_JUDGE`, `is` for every `is_JUDGE`; a floor is of the kind of its metric."""

MEASURED_WITH_ERROR = ("fd", "fid", "precision", "recall", "class_accuracy", "memorised_fraction")
ERROR_PREFIX = "se_"
"""`se_METRIC` is the standard error of METRIC. A prefix, so that `fd_...` and `is_...` stay names of metrics."""


def distance_name(judge: str) -> str:
    """The key of the Frechet distance: ``fid`` for Inception-v3, and no other judge."""
    return "fid" if judge == INCEPTION else f"fd_{judge}"


def inception_score_name(judge: str) -> str:
    """The key of the inception score."""
    return "inception_score" if judge == INCEPTION else f"is_{judge}"


def metric_names(judge: str, knows_classes: bool) -> list[str]:
    """All keys that :func:`sfd.evaluation.fidelity.score` can give for a judge, without standard errors."""
    spatial = ["sfid"] if judge == INCEPTION else []
    own = [distance_name(judge), *spatial, "kid", "kid_std", "precision", "recall", inception_score_name(judge)]
    accuracy = ["class_accuracy", "class_accuracy_heldout"] if knows_classes else []
    return [*own, *_KIND_OF_FLOOR, *accuracy, "num_images", "memorised_fraction"]


def _kind(metric: str) -> str:
    if metric in HIGHER_IS_BETTER:
        return metric
    return _KIND_OF_FLOOR.get(metric, metric.split("_")[0])


def is_higher_better(metric: str) -> bool:
    """Whether a larger value is the better one. Raises :class:`KeyError` for a name that is none of ours."""
    return HIGHER_IS_BETTER[_kind(metric)]


def has_error(metric: str) -> bool:
    """Whether the evaluation gives a standard error of this metric; floors have none."""
    return _kind(metric) in MEASURED_WITH_ERROR and metric not in _KIND_OF_FLOOR


def main_distance(metrics: dict[str, float]) -> str:
    """The key of the samples' distance among the keys of one evaluation."""
    return next(key for key in metrics if _kind(key) in ("fd", "fid") and key not in _KIND_OF_FLOOR)


def combined_error(first: float, second: float) -> float:
    """Standard error of the difference of two independent values with these standard errors."""
    return math.hypot(first, second)
