"""What metrics.json says of the number of images that each metric rests on."""

from typing import Any

import pytest

from sfd.evaluation.enough import count_images, least_images
from sfd.names import FLOORS, kind_of, metric_names, too_few
from sfd.params import EvaluateParams


class FewFeatures:
    num_features, num_spatial_features = 16, 0


class ManyFeatures:
    num_features, num_spatial_features = 2048, 2023


def options(**limits: int | None) -> EvaluateParams:
    return EvaluateParams.model_validate({"min_images": limits})


def count(metrics: dict[str, float], judge: Any = FewFeatures, **limits: int | None) -> dict[str, float]:
    return count_images(metrics, {"recall": 40}, options(**limits), judge)


def test_a_precision_of_one_from_eight_images_is_flagged_and_one_from_many_is_not() -> None:
    few = count({"precision": 1.0, "num_images": 8.0})
    assert few == {"too_few_precision": 200.0}
    assert too_few("precision", {"num_images": 8.0} | few) == "too few images (8, needs 200)"
    assert count({"precision": 1.0, "num_images": 200.0}) == {}


def test_a_metric_with_a_number_of_its_own_says_so() -> None:
    found = count({"recall": 0.5, "precision": 0.5, "num_images": 500.0})
    assert found == {"n_recall": 40.0, "too_few_recall": 200.0}


def test_a_frechet_distance_needs_more_images_than_features_and_its_floors_do_too() -> None:
    assert least_images("fd_eye", options(), FewFeatures) == 200  # type: ignore[arg-type]
    assert least_images("fid", options(), ManyFeatures) == 2049  # type: ignore[arg-type]
    assert least_images("sfid", options(), ManyFeatures) == 2024  # type: ignore[arg-type]
    found = count({"fid": 1.0, "fd_heldout": 1.0, "num_images": 2048.0}, ManyFeatures)
    assert found == {"too_few_fid": 2049.0, "too_few_fd_heldout": 2049.0}


def test_many_neighbours_need_many_images() -> None:
    params = EvaluateParams(neighbours=10)
    assert least_images("precision", params, FewFeatures) == 500  # type: ignore[arg-type]


def test_a_limit_of_null_flags_nothing() -> None:
    limits = dict.fromkeys(("fd", "kid", "precision", "inception_score", "class_accuracy", "memorised_fraction"))
    metrics = {name: 1.0 for name in metric_names("eye", knows_classes=True)} | {"num_images": 2.0}
    assert not any(key.startswith("too_few_") for key in count(metrics, **limits))


@pytest.mark.parametrize("judge", ["eye", "inception"])
def test_every_metric_of_samples_has_a_limit(judge: str) -> None:
    for name in metric_names(judge, knows_classes=True):
        has_limit = least_images(name, options(), FewFeatures) is not None  # type: ignore[arg-type]
        assert has_limit == (name not in ("num_images", "kid_std")), name
    assert all(kind_of(f"fd_{floor}") == "fd" for floor in FLOORS)
