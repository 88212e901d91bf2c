"""Means, intervals and verdicts, against numbers worked out elsewhere."""

import math

import numpy as np
import pytest

from sfd.statistics import compare, estimate, smallest_effect


def test_mean_error_and_interval_are_the_textbooks() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5 and found.repeats == 4
    assert found.error == pytest.approx(math.sqrt(5 / 3) / 2)
    # Student's t with 3 degrees of freedom: 3.1824 at 97.5 %, from a printed table.
    assert found.interval == pytest.approx((2.5 - 3.1824 * 0.645497, 2.5 + 3.1824 * 0.645497), abs=1e-4)


def test_one_repeat_has_neither_error_nor_interval() -> None:
    found = estimate([0.7])
    assert (found.mean, found.error, found.interval) == (0.7, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_and_numbers_that_are_not_finite_have_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate(values)


@pytest.mark.parametrize(("direction", "verdict"), [("minimize", "better"), ("maximize", "worse")])
def test_a_difference_beyond_noise_is_judged_by_the_objectives_direction(direction: str, verdict: str) -> None:
    candidate, other = [0.50, 0.61, 0.39], [0.60, 0.70, 0.50]  # the seeds move both by far more than they differ
    assert compare(candidate, other, direction).verdict == verdict  # type: ignore[arg-type]
    assert compare(other, candidate, direction).verdict != verdict  # type: ignore[arg-type]
    assert compare(candidate, other, "minimize").difference.mean == pytest.approx(-0.1)


def test_a_difference_within_noise_is_not_told_apart() -> None:
    assert compare([0.5, 0.7, 0.6], [0.6, 0.5, 0.72], "minimize").verdict == "not told apart"
    assert compare([0.5, 0.5], [0.5, 0.5], "minimize").verdict == "not told apart"


def test_one_repeat_tells_nothing_apart() -> None:
    found = compare([0.1], [0.9], "minimize")
    assert (found.verdict, found.reason, found.difference.interval) == ("not told apart", "one repeat", None)


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError):
        compare([0.1, 0.2], [0.9], "minimize")


def test_equal_candidates_are_called_different_in_one_study_of_twenty() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 1000, 5))
    wrong = sum(
        compare(a.tolist(), b.tolist(), "minimize").verdict != "not told apart" for a, b in zip(*draws, strict=True)
    )
    assert 30 <= wrong <= 70


def test_the_smallest_effect_is_that_of_the_textbook_and_shrinks_with_repeats() -> None:
    # Standard deviation 1 and three repeats: (4.3027 + 1.0607) / sqrt(3).
    assert smallest_effect([[-1.0, 0.0, 1.0]]) == pytest.approx(3.0966, abs=1e-3)
    assert smallest_effect([[4.0, 5.0, 6.0], [1.0, 1.0, 1.0]]) == pytest.approx(3.0966 / math.sqrt(2.0), abs=1e-3)
    more = smallest_effect([[-1.0, 0.0, 1.0] * 5])
    assert more is not None and more < 1.0
    assert smallest_effect([[3.0], []]) is None


def test_an_effect_of_that_size_is_found_about_as_often_as_promised() -> None:
    random, size = np.random.default_rng(0), smallest_effect([[-1.0, 0.0, 1.0] * 2])
    assert size is not None
    spread = float(np.std([-1.0, 0.0, 1.0] * 2, ddof=1))
    draws = random.normal(size, spread, (2000, 6))
    share = np.mean([compare(list(row), [0.0] * 6, "maximize").verdict == "better" for row in draws])
    assert 0.7 < share < 0.9
