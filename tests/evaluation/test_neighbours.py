"""Density and coverage, against the definition in plain loops."""

import math

import pytest
import torch
from torch import Tensor

from sfd.evaluation import neighbours
from sfd.evaluation.neighbours import density_and_coverage


def draw(number: int, seed: int, shift: float = 0.0, width: int = 3) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(samples: Tensor, reference: Tensor, k: int) -> tuple[float, float]:
    points, others = samples.double().tolist(), reference.double().tolist()
    radii = [sorted(math.dist(each, other) for other in others)[k] for each in others]
    inside = sum(
        math.dist(point, other) < radius for point in points for other, radius in zip(others, radii, strict=True)
    )
    covered = sum(
        any(math.dist(point, other) < radius for point in points) for other, radius in zip(others, radii, strict=True)
    )
    return inside / (k * len(points)), covered / len(others)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_they_are_what_their_definition_says_also_in_blocks_and_for_unequal_counts(
    k: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 16)
    samples, reference = draw(40, 0, shift), draw(53, 1)
    assert density_and_coverage(samples, reference, k) == pytest.approx(by_definition(samples, reference, k))


def test_one_distribution_gives_about_one_and_samples_far_off_give_nothing() -> None:
    density, coverage = density_and_coverage(draw(400, 0), draw(400, 1), 3)
    assert density == pytest.approx(1.0, abs=0.15)
    assert coverage == pytest.approx(1 - 0.5**3, abs=0.05), "as the paper derives for equal counts"
    assert density_and_coverage(draw(400, 0, shift=100.0), draw(400, 1), 3) == (0.0, 0.0)


def test_a_lonely_reference_image_makes_everything_precise_and_hardly_dense() -> None:
    """What precision and recall are blamed for (arXiv 2002.09797, section 3)."""
    reference, samples = torch.cat([draw(300, 1), torch.full((1, 3), 30.0)]), draw(300, 0, shift=15.0)
    inside = torch.cdist(samples, reference) < torch.cdist(reference, reference).kthvalue(4, dim=1).values
    assert inside.any(dim=1).float().mean() == 1.0, "the ball around the lonely image holds all samples"
    density, coverage = density_and_coverage(samples, reference, 3)
    assert density < 0.5 and coverage < 0.01
