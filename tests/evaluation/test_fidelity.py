"""Metrics against closed forms, against torch-fidelity's front door, and against their own names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.evaluation.balanced import balanced_accuracy
from sfd.evaluation.fidelity import Features, FeatureStatistics, Reference, Sets, extract, score
from sfd.evaluation.fidelity import compare as compare_with
from sfd.evaluation.memorisation import memorisation
from sfd.evaluation.uncertainty import balanced_error, binomial_error
from sfd.names import has_error, metric_names
from sfd.params import EvaluateParams
from sfd.seeding import derive_seed

PARAMS = EvaluateParams(kid_subsets=20, kid_subset_size=50)


class SmallJudge(Judge):
    """A fixed random network on 8x8 images."""

    def __init__(self, name: str = "small", classes: int | None = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name, self.digest, self.classes, self.num_features = name, "0" * 64, classes, 16
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16))
        self.head = nn.Linear(16, classes) if classes else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.body(images.float() / 64)
        return features, self.head(features) if self.head else None


def digits(start: int, count: int) -> Tensor:
    pixels = torch.from_numpy(load_digits().images[start : start + count] * 255 / 16).to(torch.uint8)
    return pixels[:, None].repeat(1, 3, 1, 1)


def gaussian(count: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Features:
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return Features(mean + scale * noise, None)


def compare(samples: Features, reference: Features, params: EvaluateParams, seed: int) -> dict[str, float]:
    return compare_with(samples, Reference.of(reference), params, seed)


def with_spatial(images: Features, seed: int) -> Features:
    return replace(images, spatial=torch.randn(len(images), 12, generator=torch.Generator().manual_seed(seed)))


def published(images: Features, has_images: bool = True) -> Reference:
    """Statistics taken by other means, float64 as in a file."""
    pixels = [images.features.double().numpy(), with_spatial(images, 9).spatial.double().numpy()]
    features, spatial = (FeatureStatistics(each.mean(0), np.cov(each.T)) for each in pixels)
    return Reference(features, spatial, images if has_images else None)


def digit_sets(judge: SmallJudge, count: int = 60) -> Sets:
    parts = [extract(judge, digits(start, count).split(25)) for start in range(0, 4 * count, count)]
    labels = torch.from_numpy(load_digits().target).long()
    return Sets(*parts, sample_labels=labels[:count], heldout_labels=labels[count : 2 * count])


def score_digits(judge: SmallJudge, sets: Sets) -> dict[str, float]:
    checked = memorisation(sets.samples.features, [sets.train.features], sets.heldout.features)
    return score(judge, sets, checked, PARAMS, seed=0)


def test_a_set_compared_with_itself_is_at_distance_zero_with_full_precision_and_recall() -> None:
    images = gaussian(200)
    metrics = compare(images, images, PARAMS, seed=0)
    assert metrics["fd"] == pytest.approx(0.0, abs=1e-4)
    assert abs(metrics["kid"]) < 0.1
    assert (metrics["precision"], metrics["recall"]) == (1.0, 1.0)


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """For N(m, s^2 I) and N(0, I) in D dimensions: D * m^2 + D * (s - 1)^2."""
    metrics = compare(gaussian(4_000, mean=0.5, scale=2.0, seed=1), gaussian(4_000), PARAMS, seed=0)
    assert metrics["fd"] == pytest.approx(8 * 0.25 + 8 * 1.0, rel=0.03)


def test_sets_far_apart_have_neither_precision_nor_recall_and_a_large_kid() -> None:
    metrics = compare(gaussian(200, mean=20.0, seed=1), gaussian(200), PARAMS, seed=0)
    assert (metrics["precision"], metrics["recall"]) == (0.0, 0.0)
    assert metrics["kid"] > 100


def test_samples_that_cover_one_mode_of_two_are_precise_but_lack_recall() -> None:
    one, other = gaussian(100), gaussian(100, mean=20.0, seed=1)
    both = Features(torch.cat([one.features, other.features]), None)
    metrics = compare(Features(gaussian(200, seed=2).features, None), both, PARAMS, seed=0)
    assert metrics["precision"] > 0.8
    assert metrics["recall"] < 0.6


@pytest.mark.parametrize("metric", ["isc", "fid", "kid", "prc"])
def test_every_metric_is_what_torch_fidelity_gives_for_the_same_judge(metric: str) -> None:
    import torch_fidelity

    judge = SmallJudge()

    class Extractor(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)
            self.judge = judge

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = dict(zip(("features", "logits"), self.judge(images), strict=True))
            return tuple(found[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

    torch_fidelity.register_feature_extractor(f"judge-for-{metric}", Extractor)
    samples, reference = digits(0, 300), digits(300, 300)
    expected = torch_fidelity.calculate_metrics(
        input1=_Images(samples),
        input2=_Images(reference),
        feature_extractor=f"judge-for-{metric}",
        **{metric: True},
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        kid_subsets=PARAMS.kid_subsets,
        kid_subset_size=PARAMS.kid_subset_size,
        prc_neighborhood=PARAMS.neighbours,
        rng_seed=derive_seed(7, {"kid": "evaluate/kid", "isc": "evaluate/inception_score"}.get(metric, "")) % 2**32,
    )
    ours = compare(extract(judge, samples.split(64)), extract(judge, reference.split(64)), PARAMS, seed=7)
    keys = {
        "isc": {"is": "inception_score_mean"},
        "fid": {"fd": "frechet_inception_distance"},
        "kid": {"kid": "kernel_inception_distance_mean", "kid_std": "kernel_inception_distance_std"},
        "prc": {"precision": "precision", "recall": "recall"},
    }[metric]
    assert {key: ours[key] for key in keys} == pytest.approx(
        {key: expected[theirs] for key, theirs in keys.items()}, rel=1e-4, abs=1e-6
    )


class _Images(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_another_kid() -> None:
    samples, reference = gaussian(100, seed=1), gaussian(100)
    first = compare(samples, reference, PARAMS, seed=0)
    assert compare(samples, reference, PARAMS, seed=0) == first
    other = compare(samples, reference, PARAMS, seed=1)
    assert other["kid"] != first["kid"]
    assert other["fd"] == first["fd"]


def test_a_kid_subset_has_at_most_half_of_the_set_so_that_subsets_differ() -> None:
    samples, reference = gaussian(20, seed=1), gaussian(20)
    metrics = compare(samples, reference, EvaluateParams(kid_subset_size=1000), seed=0)
    assert metrics["kid_std"] > 1e-3
    assert metrics["kid"] == compare(samples, reference, EvaluateParams(kid_subset_size=10), seed=0)["kid"]


def test_as_many_images_as_neighbours_are_refused_and_one_more_is_accepted() -> None:
    with pytest.raises(UserError, match=r"at least 4 images.*there are 3; .*lower evaluate.neighbours"):
        compare(gaussian(3), gaussian(3, seed=1), PARAMS, seed=0)
    assert compare(gaussian(4), gaussian(4, seed=1), PARAMS, seed=0)["fd"] > 0


def test_one_image_is_refused_whatever_the_neighbours() -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        compare(gaussian(1), gaussian(9, seed=1), EvaluateParams(neighbours=1), seed=0)


def test_extraction_keeps_the_order_of_images_over_batches() -> None:
    judge, images = SmallJudge(), digits(0, 50)
    whole, parts = extract(judge, [images]), extract(judge, images.split(7))
    assert len(parts) == 50
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.logits, whole.logits)
    assert extract(SmallJudge(classes=None), [images]).logits is None


def test_extraction_refuses_no_images_and_features_that_are_not_finite() -> None:
    judge = SmallJudge()
    with pytest.raises(UserError, match="at least one image"):
        extract(judge, [])
    nn.init.constant_(judge.body[-1].bias, torch.nan)
    with pytest.raises(UserError, match="must be finite"):
        extract(judge, [digits(0, 2)])


def test_the_keys_of_a_classifying_judge() -> None:
    judge = SmallJudge()
    metrics = score_digits(judge, digit_sets(judge))
    floors = {
        f"{name}_{floor}" for name in ("fd", "kid", "precision", "recall") for floor in ("heldout", "reconstruction")
    }
    own = {"fd_small", "kid", "kid_std", "precision", "recall", "is_small", "num_images", "memorised_fraction"}
    accuracies = {"class_accuracy", "class_accuracy_heldout"}
    errors = {f"se_{name}" for name in ("fd_small", "class_accuracy", "precision", "recall", "memorised_fraction")}
    assert set(metrics) == own | floors | accuracies | errors
    assert own | floors | accuracies == set(metric_names("small", knows_classes=True))
    assert errors == {f"se_{name}" for name in metrics if not name.startswith("se_") and has_error(name)}
    assert metrics["num_images"] == 60
    assert all(type(value) is float for value in metrics.values())


def test_fid_and_inception_score_are_names_for_inception_only() -> None:
    judge = SmallJudge("inception")
    judge.classes = None
    sets = digit_sets(judge)
    spatial = {name: with_spatial(getattr(sets, name), seed) for seed, name in enumerate(("samples", "heldout"))}
    metrics = score_digits(judge, replace(sets, **spatial))
    assert {"fid", "sfid", "se_fid", "inception_score", "fd_heldout"} <= set(metrics)
    assert set(metric_names("inception", knows_classes=False)) == {key for key in metrics if not key.startswith("se_")}
    assert not {"fd_inception", "is_inception", "class_accuracy"} & set(metrics)
    assert not {"fid", "inception_score"} & set(score_digits(SmallJudge(), digit_sets(SmallJudge())))


@pytest.mark.parametrize("classes", [None, 1])
def test_a_judge_that_cannot_tell_classes_apart_gives_neither_accuracy_nor_inception_score(classes: int | None) -> None:
    judge = SmallJudge(classes=classes)
    metrics = score_digits(judge, digit_sets(judge))
    assert not {"class_accuracy", "class_accuracy_heldout", "is_small"} & set(metrics)


def test_statistics_stand_for_the_images_that_they_were_taken_from() -> None:
    samples, reference = with_spatial(gaussian(200, 0.3, seed=1), 3), gaussian(150)
    found = compare_with(samples, published(reference), PARAMS, seed=0)
    expected = compare(samples, with_spatial(reference, 9), PARAMS, seed=0)
    assert found == pytest.approx(expected, rel=1e-5) and {"sfid", "kid", "recall"} <= set(found)
    assert found["sfid"] != pytest.approx(found["fd"])


def test_statistics_without_images_give_distances_and_nothing_that_needs_images() -> None:
    samples = with_spatial(gaussian(200, 0.3, seed=1), 3)
    found = compare_with(samples, published(gaussian(150), has_images=False), PARAMS, seed=0)
    assert set(found) == {"fd", "sfid"}


def test_with_a_published_reference_its_size_and_that_of_the_held_out_images_are_free_but_the_floors_are_not() -> None:
    judge = SmallJudge("inception")
    judge.classes = None
    sets = digit_sets(judge)
    free = replace(
        sets, heldout=extract(judge, [digits(0, 90)]), reference=published(extract(judge, [digits(500, 140)]))
    )
    metrics = score_digits(judge, free)
    assert metrics["fid"] == compare_with(sets.samples, free.reference, PARAMS, seed=0)["fd"]
    assert metrics["fd_heldout"] == compare_with(sets.train, free.reference, PARAMS, seed=0)["fd"]
    recall = metrics["recall"]
    assert metrics["se_recall"] == pytest.approx((recall * (1 - recall) / 140) ** 0.5)
    assert 0.0 < metrics["se_fid"] < metrics["fid"]
    bare = score_digits(judge, replace(free, reference=published(extract(judge, [digits(500, 140)]), has_images=False)))
    assert bare["fid"] == metrics["fid"] and bare["se_fid"] == metrics["se_fid"]
    assert not {"kid", "precision", "recall", "kid_heldout", "se_recall"} & set(bare)
    with pytest.raises(UserError, match="same number of images.*train 59"):
        score_digits(judge, replace(free, train=extract(judge, [digits(300, 59)])))


def test_class_accuracy_counts_the_samples_that_are_what_was_asked_for() -> None:
    judge = SmallJudge()
    sets = digit_sets(judge)
    asked = sets.samples.logits.argmax(dim=1)
    seen = asked.clone()
    asked[:15] = (asked[:15] + 1) % 10
    expected = np.mean([float((seen[asked == label] == label).float().mean()) for label in set(asked.tolist())])
    assert score_digits(judge, replace(sets, sample_labels=asked))["class_accuracy"] == pytest.approx(expected)


def test_class_accuracy_is_the_mean_over_the_classes_and_of_equal_classes_the_share() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    always_zero = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    assert balanced_accuracy(always_zero, labels) == 0.5
    right = torch.nn.functional.one_hot(labels, 2).float()
    assert balanced_accuracy(right, labels) == 1.0
    equal = torch.tensor([0] * 50 + [1] * 50)
    logits = torch.nn.functional.one_hot(equal, 2).float()
    logits[:20] = logits[:20].flip(1)
    assert balanced_accuracy(logits, equal) == pytest.approx(0.8)


def test_a_class_accuracy_is_less_certain_where_a_class_has_few_images() -> None:
    equal, unequal = torch.tensor([0] * 50 + [1] * 50), torch.tensor([0] * 90 + [1] * 10)
    assert balanced_error(0.8, equal) == pytest.approx(binomial_error(0.8, 100))
    assert balanced_error(0.8, unequal) == pytest.approx((0.16 * (1 / 90 + 1 / 10)) ** 0.5 / 2)


def test_a_fraction_has_the_standard_error_of_its_count_and_a_distance_that_of_fresh_samples() -> None:
    judge = SmallJudge()
    sets = digit_sets(judge)
    metrics = score_digits(judge, sets)
    assert metrics["se_class_accuracy"] == balanced_error(metrics["class_accuracy"], sets.sample_labels)
    for name in ("precision", "recall", "memorised_fraction"):
        assert metrics[f"se_{name}"] == pytest.approx((metrics[name] * (1 - metrics[name]) / 60) ** 0.5)
    assert 0.0 < metrics["se_fd_small"] < metrics["fd_small"]


def test_labels_beyond_the_classes_of_the_judge_are_refused() -> None:
    judge = SmallJudge()
    sets = digit_sets(judge)
    with pytest.raises(UserError, match="below 10, the number of the judge's classes, but the largest is 10"):
        score_digits(judge, replace(sets, sample_labels=sets.sample_labels + 1))


def test_floors_put_training_images_and_reconstructions_in_the_place_of_samples() -> None:
    judge = SmallJudge()
    sets = digit_sets(judge)
    metrics = score_digits(judge, replace(sets, reconstruction=sets.heldout))
    assert metrics["fd_reconstruction"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["fd_heldout"] == compare(sets.train, sets.heldout, PARAMS, seed=0)["fd"]
    assert metrics["fd_small"] == compare(sets.samples, sets.heldout, PARAMS, seed=0)["fd"]


@pytest.mark.parametrize("name", ["samples", "heldout", "train", "reconstruction"])
def test_sets_of_different_counts_are_refused(name: str) -> None:
    judge = SmallJudge()
    sets = digit_sets(judge)
    with pytest.raises(UserError, match=f"same number of images.*{name} 59.*use 59 of each"):
        score_digits(judge, replace(sets, **{name: extract(judge, [digits(0, 59)])}))
