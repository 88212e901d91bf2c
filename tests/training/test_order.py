"""Which samples make up a batch."""

import pytest

from sfd.training.order import SeededBatchSampler


def order(
    seed: int = 0, samples: int = 37, batch: int = 8, start: int = 0, steps: int = 20, rows: slice = slice(None)
) -> SeededBatchSampler:
    return SeededBatchSampler(seed, "test", samples, batch, start, steps, rows)


def test_every_sample_comes_once_an_epoch_and_a_batch_may_span_two() -> None:
    sequence = [index for batch in order(steps=37) for index in batch]
    epochs = [sequence[start : start + 37] for start in range(0, len(sequence), 37)]
    assert len(epochs) == 8
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_a_batch_larger_than_the_data_set_spans_several_epochs() -> None:
    sequence = [index for batch in order(samples=3, batch=8, steps=3) for index in batch]
    assert all(sorted(sequence[start : start + 3]) == [0, 1, 2] for start in range(0, 24, 3))


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_processes_share_the_rows_of_the_same_batch(processes: int) -> None:
    share = 8 // processes
    parts = [list(order(rows=slice(rank * share, (rank + 1) * share))) for rank in range(processes)]
    joined = [[index for part in batch for index in part] for batch in zip(*parts, strict=True)]
    assert joined == list(order())


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    assert list(order(seed=5)) == list(order(seed=5))
    assert list(order(seed=5)) != list(order(seed=6))


def test_two_purposes_have_two_orders() -> None:
    assert SeededBatchSampler(0, "one", 37, 8, 0, 5, slice(None)).batch(0) != order().batch(0)


def test_starting_later_gives_the_rest_of_the_sequence() -> None:
    assert list(order(start=13)) == list(order())[13:]
    assert len(order(start=13)) == 7


def test_a_finished_training_has_no_batches_left() -> None:
    assert list(order(start=20)) == []
