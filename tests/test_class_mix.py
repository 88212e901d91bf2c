"""Class mixes: any first n images have the proportions, and sets are cut to what all of them can give."""

from collections import Counter

import pytest

from sfd.class_mix import TOLERANCE, count_alike, interleave, scarcest


def test_equal_counts_take_turns() -> None:
    assert interleave([7, 7, 7], 8) == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("counts", [[90, 10], [5, 3, 2, 1, 1], [1000, 1], [3, 0, 7], [17] * 40 + [400]])
def test_any_first_part_has_the_proportions_as_nearly_as_is_possible_for_all_counts(counts: list[int]) -> None:
    order = interleave(counts, 2 * sum(counts))
    given: Counter[int] = Counter()
    bound = 1 - 1 / (2 * sum(count > 0 for count in counts) - 2) + 1e-9
    for number, label in enumerate(order, start=1):
        given[label] += 1
        assert all(abs(given[k] - number * count / sum(counts)) <= bound for k, count in enumerate(counts))
    assert [given[k] for k in range(len(counts))] == [2 * count for count in counts]


def test_a_single_class_fills_every_place() -> None:
    assert interleave([0, 5, 0], 3) == [1, 1, 1]


def test_no_images_are_wanted_and_none_are_given() -> None:
    assert interleave([3, 4], 0) == []


def test_the_smallest_class_limits_a_balanced_set_and_not_a_natural_one() -> None:
    heldout = [0] * 90 + [1] * 10
    assert count_alike(interleave([1, 1], 100), heldout) == 21, "the odd one is of the larger class"
    assert count_alike(interleave([9, 1], 100), heldout) == 100
    assert scarcest(interleave([1, 1], 100), heldout) == 1


def test_a_set_that_lacks_less_than_the_tolerance_is_whole() -> None:
    heldout = [0] * 51 + [1] * 49
    assert count_alike(interleave([1, 1], 100), heldout) == 100
    assert 2 / 100 > TOLERANCE and count_alike(interleave([1, 1], 100), [0] * 52 + [1] * 48) < 100


def test_the_scarcest_of_several_sets_decides() -> None:
    wanted = interleave([1, 1], 40)
    assert count_alike(wanted, [0] * 30 + [1] * 30, [0] * 5 + [1] * 30) == 10
    assert count_alike(wanted, [1] * 30) == 0, "a set without a class has nothing alike"
