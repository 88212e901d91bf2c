"""Kernel distances, against plain formulas on whole matrices."""

import pytest
import torch
from torch import Tensor

from sfd.evaluation import kernel
from sfd.evaluation.kernel import cmmd, kernel_distance


def draw(number: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(seed)) + shift


def test_cmmd_is_a_thousand_times_the_biased_gaussian_mmd_of_unit_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ROWS", 16)
    mine, theirs = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (draw(40, 0, 0.5), draw(53, 1)))

    def mean(first: Tensor, second: Tensor) -> Tensor:
        gap = (first[:, None] - second[None]).square().sum(dim=2)
        return torch.exp(-gap / (2 * 10.0**2)).mean()

    expected = 1000.0 * (mean(mine, mine) + mean(theirs, theirs) - 2 * mean(mine, theirs))
    assert cmmd(3.0 * draw(40, 0, 0.5), draw(53, 1)) == pytest.approx(float(expected), rel=1e-6)
    assert cmmd(draw(40, 0), draw(40, 0)) == pytest.approx(0.0, abs=1e-9)


def test_the_kernel_distance_is_unbiased_so_that_it_is_about_zero_for_one_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "ROWS", 16)
    mine, theirs = draw(40, 0).double(), draw(53, 1).double()
    values = [(first @ second.T / 6 + 1) ** 3 for first, second in ((mine, mine), (theirs, theirs), (mine, theirs))]
    off = [(values[n].sum() - values[n].diagonal().sum()) / (size * (size - 1)) for n, size in ((0, 40), (1, 53))]
    assert kernel_distance(mine, theirs) == pytest.approx(float(sum(off) - 2 * values[2].mean()), rel=1e-9)
    found = [kernel_distance(draw(40, 2 * seed), draw(40, 2 * seed + 1)) for seed in range(40)]
    assert abs(sum(found) / 40) < 0.1 < kernel_distance(draw(40, 0, 1.0), draw(40, 1)) and min(found) < 0


def test_two_images_of_each_are_enough() -> None:
    assert kernel_distance(draw(2, 0), draw(2, 1)) == pytest.approx(kernel_distance(draw(2, 1), draw(2, 0)))
