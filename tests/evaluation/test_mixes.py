"""Unequal classes: samples, reference and floors have the same class mix, balanced or natural."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import draw_images
from torch import Tensor, nn

from sfd.class_mix import ClassMix
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import FeatureStatistics
from sfd.evaluation.protocol import Evaluation
from sfd.generation.samples import plan
from sfd.models.conditions import ClassCondition, Condition, NoCondition
from sfd.params import DataParams, EvaluateParams

OPTIONS = {"kid_subsets": 4, "kid_subset_size": 8}


class Stripes(Judge):
    """Sees where the light is: the means of four rows and four columns."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.digest, self.classes, self.num_features = "stripes", "0" * 64, 2, 8
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float().mean(dim=1) * self.scale
        rows, columns = pixels.mean(dim=2).unflatten(1, (4, 4)), pixels.mean(dim=1).unflatten(1, (4, 4))
        upright = columns.flatten(1).var(dim=1) - rows.flatten(1).var(dim=1)
        return torch.cat([rows.mean(2), columns.mean(2)], dim=1), torch.stack([-upright, upright], dim=1)


class Copies:
    """A texture VAE that loses nothing."""

    def latent_shape(self, number: int, size: int) -> tuple[int, ...]:
        return (number, 3, size, size)

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """180 and 60 images to train on, 60 and 20 held out."""
    folder = tmp_path_factory.mktemp("mixes")
    draw_images(folder / "images/lying", 240, 1, vertical=False)
    draw_images(folder / "images/upright", 80, 2, vertical=True)
    options = {"source": "folder", "root": str(folder / "images"), "image_size": 16, "holdout_fraction": 0.25}
    params = DataParams.model_validate(options | {"mirror": False})
    prepare(params, 0, folder / "prepare")
    return Prepared.load(params, folder / "prepare")


def condition_of(data: Prepared) -> ClassCondition:
    counts = data.images(TRAIN).class_indices.bincount().tolist()
    return ClassCondition.from_data(data.summary.classes, counts)


def draw(data: Prepared, out: Path, condition: Condition, num_images: int, mix: ClassMix) -> Path:
    """What stage `sample` would leave of a model that has learnt its training images by heart."""
    train, values = data.images(TRAIN), condition.plan(num_images, mix)
    table = plan(values, condition, seed=0)
    (out / "images").mkdir(parents=True)
    given: Counter[Any] = Counter()
    for file, value in zip(table["file"], values, strict=True):
        rows = [row for row, label in enumerate(train.class_indices.tolist()) if value in (None, label)]
        pixels = train.__getitems__([rows[given[value] % len(rows)]]).images[0]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(out / "images" / file)
        given[value] += 1
    table.to_csv(out / "samples.csv", index=False)
    return out


def open_evaluation(data: Prepared, samples: Path, **options: Any) -> Evaluation:
    store = FeatureStore(samples / "features", Stripes(), 16, 0, 1)
    params = EvaluateParams.model_validate(OPTIONS | options)
    vae: Any = Copies()
    return Evaluation.open(params, data, vae, samples, 0, store)


def labels_of(evaluation: Evaluation) -> list[Counter[int]]:
    heldout, train = (evaluation.data.images(split).class_indices.tolist() for split in (HELDOUT, TRAIN))
    rows = ((heldout, evaluation.heldout_rows), (train, evaluation.train_rows))
    return [Counter(labels[row] for row in chosen) for labels, chosen in rows]


def measure(evaluation: Evaluation) -> dict[str, float]:
    evaluation.extract()
    return evaluation.measure(evaluation.samples)[0]


def test_balanced_samples_are_compared_with_balanced_images_as_many_as_the_smallest_class_gives(
    data: Prepared, tmp_path: Path
) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, "balanced"))
    assert evaluation.count == 41, "20 held-out images are upright"
    assert labels_of(evaluation) == [Counter({0: 21, 1: 20})] * 2
    (note,) = evaluation.notes
    assert "41 of 80 samples are compared" in note and "class 'upright'" in note and "`natural`" in note


def test_natural_samples_are_compared_with_all_images(data: Prepared, tmp_path: Path) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, "natural"))
    assert (evaluation.count, evaluation.notes) == (80, [])
    assert labels_of(evaluation) == [Counter({0: 60, 1: 20})] * 2


def test_samples_without_a_class_are_compared_with_images_at_random(data: Prepared, tmp_path: Path) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", NoCondition(), 90, "balanced"))
    assert (evaluation.count, evaluation.notes) == (80, [])
    assert labels_of(evaluation)[0] == Counter({0: 60, 1: 20})


@pytest.mark.parametrize("mix", ["balanced", "natural"])
def test_the_floor_is_that_of_real_images_of_the_same_mix_and_not_of_another_one(
    data: Prepared, tmp_path: Path, mix: ClassMix
) -> None:
    evaluation = open_evaluation(data, draw(data, tmp_path / "s", condition_of(data), 80, mix))
    metrics = measure(evaluation)
    wrong = "natural" if mix == "balanced" else "balanced"
    rows = open_evaluation(data, draw(data, tmp_path / "w", condition_of(data), 80, wrong)).heldout_rows
    store = evaluation.store
    floor = FeatureStatistics.of(store.read(TRAIN, evaluation.train_rows).features)
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
    assert open_evaluation(data, samples).count == 20
    with pytest.raises(UserError, match=r"at least 21 images in every set.*there are 20.*class 'upright'"):
        open_evaluation(data, samples, neighbours=20)
