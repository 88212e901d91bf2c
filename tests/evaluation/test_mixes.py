"""Unequal classes: samples, reference and floors have the same class mix, balanced or natural."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mixes import OPTIONS, Copies, Stripes, condition_of, draw

from sfd.class_mix import ClassMix
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.errors import UserError
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import FeatureStatistics
from sfd.evaluation.protocol import Evaluation
from sfd.models.conditions import ClassCondition, NoCondition
from sfd.params import EvaluateParams


def open_evaluation(data: Prepared, samples: Path, **options: Any) -> Evaluation:
    store = FeatureStore(samples / "features", Stripes(), 16, 0, 1)
    params = EvaluateParams.model_validate(OPTIONS | options)
    vae: Any = Copies()
    return Evaluation.open(params, data, vae, samples, 0, [store])


def labels_of(evaluation: Evaluation) -> list[Counter[int]]:
    comparison = evaluation.comparison
    heldout, train = (comparison.data.images(split).class_indices.tolist() for split in (HELDOUT, TRAIN))
    rows = ((heldout, comparison.heldout_rows), (train, comparison.train_rows))
    return [Counter(labels[row] for row in chosen) for labels, chosen in rows]


def measure(evaluation: Evaluation) -> dict[str, float]:
    evaluation.extract()
    return evaluation.measure(evaluation.samples)[0]


def test_balanced_samples_are_compared_with_balanced_images_as_many_as_the_smallest_class_gives(
    data: Prepared, tmp_path: Path
) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, "balanced"))
    assert evaluation.comparison.count == 41, "20 held-out images are upright"
    assert labels_of(evaluation) == [Counter({0: 21, 1: 20})] * 2
    (note,) = evaluation.comparison.notes
    assert "41 of 80 samples are compared" in note and "class 'upright'" in note and "`natural`" in note


def test_natural_samples_are_compared_with_all_images(data: Prepared, tmp_path: Path) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, "natural"))
    assert (evaluation.comparison.count, evaluation.comparison.notes) == (80, [])
    assert labels_of(evaluation) == [Counter({0: 60, 1: 20})] * 2


def test_samples_without_a_class_are_compared_with_images_at_random(data: Prepared, tmp_path: Path) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", NoCondition(), 90, "balanced"))
    assert (evaluation.comparison.count, evaluation.comparison.notes) == (80, [])
    assert labels_of(evaluation)[0] == Counter({0: 60, 1: 20})


@pytest.mark.parametrize("mix", ["balanced", "natural"])
def test_the_floor_is_that_of_real_images_of_the_same_mix_and_not_of_another_one(
    data: Prepared, tmp_path: Path, mix: ClassMix
) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, mix))
    metrics = measure(evaluation)
    wrong = "natural" if mix == "balanced" else "balanced"
    other = open_evaluation(data, draw(data, tmp_path / "w", condition_of(data), 80, wrong))
    rows, (store,) = other.comparison.heldout_rows, evaluation.stores
    floor = FeatureStatistics.of(store.read(TRAIN, evaluation.comparison.train_rows).features)
    mixed_up = floor.distance(FeatureStatistics.of(store.read(HELDOUT, rows).features))
    assert metrics["fd_heldout"] < 0.7 * mixed_up
    assert metrics["fd_heldout"] == pytest.approx(metrics["fd_reconstruction"])


def test_both_accuracies_count_every_class_alike_and_the_file_says_on_how_many_images_they_rest(
    data: Prepared, tmp_path: Path
) -> None:
    metrics = measure(open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, "natural")))
    heldout = data.images(HELDOUT)
    logits = Stripes()(heldout.__getitems__(list(range(len(heldout)))).images)[1]
    right = logits.argmax(dim=1) == heldout.class_indices
    shares = [float(right[heldout.class_indices == label].float().mean()) for label in (0, 1)]
    assert metrics["class_accuracy_heldout"] == pytest.approx(sum(shares) / 2)
    assert metrics["num_images"] == 80 and metrics["too_few_precision"] == 200 and metrics["too_few_fd_stripes"] == 200
    assert metrics == json.loads((tmp_path / "s" / "metrics.json").read_text())


def test_limits_are_options_and_change_no_record_of_how_it_was_measured(data: Prepared, tmp_path: Path) -> None:
    samples = draw(data, tmp_path / "s", condition_of(data), 80, "natural")
    measure(open_evaluation(data, samples))
    strict = (samples / "measurement.json").read_bytes()
    limits = dict.fromkeys(("fd", "kid", "precision", "inception_score", "class_accuracy", "memorised_fraction"))
    metrics = measure(open_evaluation(data, samples, min_images=limits))
    assert not any(key.startswith("too_few_") for key in metrics)
    assert (samples / "measurement.json").read_bytes() == strict


def test_samples_that_leave_nothing_to_compare_are_refused_with_the_class_that_is_short(
    data: Prepared, tmp_path: Path
) -> None:
    only = ClassCondition(("lying", "upright"), counts=(0, 1))
    samples = draw(data, tmp_path / "s", only, 30, "natural")
    assert open_evaluation(data, samples).comparison.count == 20
    with pytest.raises(UserError, match=r"at least 21 images in every set.*there are 20.*class 'upright'"):
        open_evaluation(data, samples, neighbours=20)
