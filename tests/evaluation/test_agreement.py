"""Prompts and the real images nearest to a sample: numbers that were worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from sfd.evaluation.agreement import (
    Asked,
    carriers_of,
    measure_fraction,
    measure_median,
    retrieve,
    same_text,
    weighted_median,
)

CAPTIONS = [["A"], ["b "], ["c"], ["a", "a"], ["d", "B  b"]]
CANDIDATES = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
QUERIES = torch.tensor([[0.4], [2.9], [9.0]])
"""Drawn for c, a and b."""


def asked(*prompts: str) -> Asked:
    return Asked.of(prompts, carriers_of(CAPTIONS))


def test_texts_that_differ_in_case_white_space_or_composition_are_the_same_and_others_are_not() -> None:
    assert same_text(" A  Red\theart\n") == same_text("a red heart")
    assert same_text("Cafe\u0301") == same_text("CAFÉ")
    assert same_text("a red heart") != same_text("a red hearts")
    assert carriers_of(CAPTIONS) == {"a": [0, 3], "b": [1], "c": [2], "d": [4], "b b": [4]}


def test_only_queries_whose_prompt_a_candidate_carries_are_asked() -> None:
    found = asked("C", "nobody", "a", "c")
    assert (found.rows, found.prompts.tolist(), found.texts) == ([0, 2, 3], [0, 1, 0], ["c", "a"])
    assert found.carriers == [[2], [0, 3]]
    part = found.part([1])
    assert (part.rows, part.prompts.tolist(), part.texts, part.carriers) == ([2], [0], ["a"], [[0, 3]])
    assert asked("nobody").rows == []


def test_ranks_recall_and_chance_are_those_of_the_hand() -> None:
    found = asked("c", "a", "b")
    result = retrieve(QUERIES, found.prompts, CANDIDATES, found.carriers)
    # 0.4 is nearer to 0 and 1 than to c at 2. 2.9 is nearest to an a. 9 is nearer to 10, 3 and 2 than to b at 1.
    assert result.ranks.tolist() == [3, 1, 4] and result.nearest.tolist() == [0, 3, 4]
    assert result.recall(1) == pytest.approx(1 / 3) and result.recall(5) == 1.0 and result.median == 3
    # The ranks of the others' prompts: a 1, b 2; c 2, b 3; c 3, a 2.
    assert result.chance is not None and result.chance[:, 0].tolist() == [0.5, 0.0, 0.0]
    assert result.chance_recall(1) == pytest.approx(1 / 6) and result.chance_recall(5) == 1.0
    assert result.chance_ranks is not None and result.chance_ranks.tolist() == [0, 1, 3, 2, 0, 0]
    assert result.chance_median == 2


def test_prompts_count_in_chance_as_often_as_they_are_asked_and_not_for_their_own_samples() -> None:
    found = asked("c", "a", "a")
    result = retrieve(torch.tensor([[0.4], [0.4], [1.9]]), found.prompts, CANDIDATES, found.carriers)
    assert result.ranks.tolist() == [3, 1, 3]
    # The first has two others, both for a; the others have one other each, for c.
    assert result.chance is not None and result.chance[:, 0].tolist() == [1.0, 0.0, 1.0]


def test_one_prompt_for_all_has_no_chance() -> None:
    found = asked("a", "a")
    result = retrieve(QUERIES[:2], found.prompts, CANDIDATES, found.carriers)
    assert result.chance is None and result.chance_recall(1) is None and result.chance_median is None
    assert measure_fraction(result.ranks <= 1, found.prompts, 0, "test").above_chance is None


def test_a_judge_that_sees_no_difference_finds_nothing() -> None:
    found = asked("c", "a", "b")
    result = retrieve(torch.zeros(3, 1), found.prompts, torch.zeros(5, 1), found.carriers)
    assert result.ranks.tolist() == [5, 4, 5]
    assert result.recall(1) == 0.0


def test_blocks_and_their_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(50, 4, generator=random), torch.randn(30, 4, generator=random)
    carriers = [[place, 29 - place] for place in range(10)]
    numbers = torch.arange(50) % 10
    whole = retrieve(queries, numbers, candidates, carriers)
    monkeypatch.setattr("sfd.evaluation.agreement.ROWS", 7)
    parts = retrieve(queries, numbers, candidates, carriers)
    assert torch.equal(whole.ranks, parts.ranks) and torch.equal(whole.nearest, parts.nearest)
    assert whole.chance is not None and parts.chance is not None
    torch.testing.assert_close(whole.chance, parts.chance)
    order = torch.argsort(torch.cdist(queries.double(), candidates.double()), dim=1)
    for row, number in enumerate(numbers.tolist()):
        first = [place for place in order[row].tolist()]
        own = min(first.index(place) for place in carriers[number])
        assert int(whole.ranks[row]) == own + 1


def test_chance_is_what_shuffled_prompts_give_on_average() -> None:
    random = torch.Generator().manual_seed(1)
    candidates = torch.randn(20, 3, generator=random)
    queries, carriers = candidates + 0.3 * torch.randn(20, 3, generator=random), [[place] for place in range(20)]
    found = retrieve(queries, torch.arange(20), candidates, carriers)
    shuffled = []
    for _ in range(400):
        order = torch.randperm(20, generator=random)
        moved = order != torch.arange(20)
        ranks = retrieve(queries, order, candidates, carriers).ranks[moved]
        shuffled.append(float((ranks <= 5).double().mean()))
    assert found.chance_recall(5) == pytest.approx(sum(shuffled) / len(shuffled), abs=0.01)
    assert found.recall(5) > 3 * (found.chance_recall(5) or 0.0)


@pytest.mark.parametrize(("weights", "median"), [([0, 1, 1], 1), ([0, 1, 2], 2), ([0, 0, 0, 5], 3), ([0, 2, 0, 1], 1)])
def test_the_median_is_the_lower_one_of_two(weights: list[int], median: int) -> None:
    assert weighted_median(torch.tensor(weights).double()) == median


def hits(count: int, share: float) -> Tensor:
    return (torch.arange(count) < share * count).double()


def test_with_one_image_per_prompt_the_error_is_that_of_independent_images_and_the_interval_holds_the_value() -> None:
    found = measure_fraction(hits(400, 0.3), torch.arange(400), 0, "test", torch.full((400,), 0.1))
    assert found.value == pytest.approx(0.3)
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 400), rel=0.1)
    low, high = found.interval
    assert low < 0.3 < high and high - low == pytest.approx(4 * found.error, rel=0.1)
    assert found.above_chance is not None and found.above_chance == pytest.approx((low - 0.1, high - 0.1))


def test_images_of_one_prompt_are_not_independent() -> None:
    values = hits(400, 0.3)
    alike = measure_fraction(values, torch.arange(400) // 10, 0, "test")
    assert alike.error == pytest.approx(math.sqrt(0.3 * 0.7 / 40), rel=0.15)
    assert alike == measure_fraction(values, torch.arange(400) // 10, 0, "test")
    assert alike != measure_fraction(values, torch.arange(400) // 10, 1, "test")


def test_the_median_has_an_interval_too() -> None:
    found = asked("c", "a", "b")
    measured = measure_median(retrieve(QUERIES, found.prompts, CANDIDATES, found.carriers), 0)
    assert measured.value == 3.0 and measured.interval == (1.0, 4.0) and measured.error > 0.0
