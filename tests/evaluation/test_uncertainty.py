"""Standard errors against what fresh samples really do."""

import pytest
import torch
from torch import Tensor

from sfd.evaluation.fidelity import Features, Reference, compare
from sfd.evaluation.uncertainty import binomial_error, moments
from sfd.evaluation.uncertainty import frechet_error as error_from_moments
from sfd.params import EvaluateParams

REFERENCE_SEED = 999
ONE_CLASS = torch.zeros(400, dtype=torch.int64)


def gaussian(seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return mean + scale * torch.randn(400, 8, generator=torch.Generator().manual_seed(seed))


def frechet_error(samples: Tensor, labels: Tensor, reference: Tensor, seed: int) -> float:
    return error_from_moments(samples, labels, moments(reference), seed)


@pytest.mark.parametrize(("mean", "scale"), [(0.3, 1.0), (0.5, 1.5)])
def test_the_bootstrap_gives_the_spread_of_the_distance_over_fresh_samples(mean: float, scale: float) -> None:
    reference = gaussian(REFERENCE_SEED)
    params = EvaluateParams(kid_subsets=1, kid_subset_size=2)
    sets = [gaussian(seed, mean, scale) for seed in range(40)]
    distances = [
        compare(Features(each, None), Reference.of(Features(reference, None)), params, 0)["fd"] for each in sets
    ]
    spread = float(torch.tensor(distances).std())
    found = sum(frechet_error(each, ONE_CLASS, reference, seed=0) for each in sets[:8]) / 8
    assert found == pytest.approx(spread, rel=0.35)


def test_shares_of_classes_are_no_chance_since_samples_are_balanced() -> None:
    labels = torch.arange(400) % 2
    apart = 20.0 * labels[:, None]
    reference, sets = gaussian(REFERENCE_SEED) + apart, [gaussian(seed, 0.3) + apart for seed in range(40)]
    params = EvaluateParams(kid_subsets=1, kid_subset_size=2)
    distances = [
        compare(Features(each, None), Reference.of(Features(reference, None)), params, 0)["fd"] for each in sets
    ]
    spread = float(torch.tensor(distances).std())
    assert frechet_error(sets[0], labels, reference, seed=0) == pytest.approx(spread, rel=0.6)
    assert frechet_error(sets[0], ONE_CLASS, reference, seed=0) > 3 * spread


def test_classes_of_a_single_image_are_drawn_together() -> None:
    labels = torch.arange(400)
    assert frechet_error(gaussian(1), labels, gaussian(2), seed=0) == frechet_error(
        gaussian(1), torch.arange(400) % 399, gaussian(2), seed=0
    )
    assert frechet_error(gaussian(1), labels, gaussian(2), seed=0) > 0.0


def test_the_same_seed_gives_the_same_error_and_another_seed_another_one() -> None:
    samples, reference = gaussian(1, 0.3), gaussian(REFERENCE_SEED)
    assert frechet_error(samples, ONE_CLASS, reference, seed=0) == frechet_error(samples, ONE_CLASS, reference, seed=0)
    assert frechet_error(samples, ONE_CLASS, reference, seed=0) != frechet_error(samples, ONE_CLASS, reference, seed=1)


def test_fewer_images_than_features_still_have_an_error() -> None:
    assert 0.0 < frechet_error(gaussian(1)[:5], ONE_CLASS[:5], gaussian(2)[:5], seed=0) < 100.0


def test_a_fraction_has_the_error_of_coin_tosses() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_error(0.0, 100) == 0.0
