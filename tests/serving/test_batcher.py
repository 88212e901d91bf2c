"""The queue: who is drawn with whom, in which order, and what happens to those who leave."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from served import Gate, gated, untrained
from support import wait_until
from torch import Tensor

from sfd.data.images import png_bytes
from sfd.registry.load import RegisteredModel
from sfd.serving.batcher import DynamicBatcher, QueueFull
from sfd.serving.metrics import Metrics

MODEL = untrained()
MORE_STEPS = MODEL.sample.model_copy(update={"num_steps": 4})


@pytest.fixture
def batcher() -> Iterator[DynamicBatcher]:
    made = DynamicBatcher(batch_size=4, max_queue=10, metrics=Metrics())
    made.start()
    yield made
    made.stop(60)


def occupy(batcher: DynamicBatcher, model: RegisteredModel, gate: Gate) -> None:
    """Holds the worker with an image of seed 0, so that what follows waits in the queue."""
    batcher.submit(model, model.sample, 0, [0])
    assert gate.entered.wait(60)


def test_images_of_equal_settings_are_drawn_together_and_others_by_themselves_oldest_first(
    batcher: DynamicBatcher,
) -> None:
    model, gate = gated(MODEL)
    occupy(batcher, model, gate)
    first = batcher.submit(model, model.sample, 0, [1])
    other = batcher.submit(model, MORE_STEPS, 1, [2])
    later = batcher.submit(model, model.sample, 1, [3, 4, 5, 6])
    gate.open.set()
    assert all(png.result(60) for png in [*first, *other, *later])
    assert gate.calls == [[0], [1, 3, 4, 5], [2], [6]]


def test_two_versions_are_never_drawn_by_one_call(batcher: DynamicBatcher) -> None:
    model, gate = gated(MODEL)
    occupy(batcher, model, gate)
    twin = replace(model, version="2")
    pngs = [*batcher.submit(model, model.sample, 0, [1]), *batcher.submit(twin, model.sample, 0, [2])]
    gate.open.set()
    assert pngs[0].result(60) != pngs[1].result(60)
    assert gate.calls == [[0], [1], [2]]


def test_with_dopri5_whose_steps_depend_on_the_batch_every_image_is_drawn_alone(batcher: DynamicBatcher) -> None:
    model, gate = gated(untrained(sample={"sampler": "dopri5"}))
    gate.open.set()
    together = batcher.submit(model, model.sample, 0, [1, 2])
    (alone,) = batcher.submit(model, model.sample, 0, [2])
    assert together[1].result(60) == alone.result(60)
    assert gate.calls == [[1], [2], [2]]


def test_an_image_has_the_same_bytes_alone_and_in_company(batcher: DynamicBatcher) -> None:
    (alone,) = batcher.submit(MODEL, MODEL.sample, 1, [3])
    assert alone.result(60)
    company = batcher.submit(MODEL, MODEL.sample, 1, [1, 2, 3, 4, 5])
    assert company[2].result(60) == alone.result(60) != company[3].result(60)
    (pixels,) = MODEL.images.sample([1], [3], MODEL.sample, 4, fill=True)
    assert alone.result() == png_bytes(pixels[0])


def test_a_full_queue_refuses_a_request_whole_and_takes_one_that_fits(batcher: DynamicBatcher) -> None:
    model, gate = gated(MODEL)
    occupy(batcher, model, gate)
    batcher.submit(model, model.sample, 0, range(1, 9))
    with pytest.raises(QueueFull) as full:
        batcher.submit(model, model.sample, 0, [9, 10, 11])
    assert full.value.retry_after >= 1
    kept = batcher.submit(model, model.sample, 0, [12, 13])
    gate.open.set()
    assert all(png.result(60) for png in kept)
    assert sorted(seed for call in gate.calls for seed in call) == [*range(9), 12, 13]


def test_the_wait_of_a_full_queue_follows_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("sfd.serving.batcher.time", clock)

    class Slow(Gate):
        def sample(self, *arguments: Any, **options: Any) -> Iterator[Tensor]:
            clock.now += 40.0
            return self.real.sample(*arguments, **options)

    slow: Any = Slow(MODEL)
    batcher = DynamicBatcher(4, 4, Metrics())
    pngs = batcher.submit(replace(MODEL, images=slow), MODEL.sample, 0, range(4))
    batcher.start()
    assert all(png.result(60) for png in pngs)
    assert batcher.seconds_for(10) == 100, "four images took 40 s"
    batcher.stop(60)


def test_a_cancelled_image_leaves_the_queue_and_makes_room() -> None:
    metrics = Metrics()
    batcher = DynamicBatcher(4, 2, metrics)
    pngs = batcher.submit(MODEL, MODEL.sample, 0, [1, 2])
    assert metrics.registry.get_sample_value("sfd_queue_images") == 2
    pngs[0].cancel()
    assert metrics.registry.get_sample_value("sfd_queue_images") == 1
    batcher.submit(MODEL, MODEL.sample, 0, [3])
    batcher.start()
    assert pngs[1].result(60)
    batcher.stop(60)


def test_a_call_that_fails_is_told_to_its_images_and_the_next_one_is_drawn(batcher: DynamicBatcher) -> None:
    model, gate = gated(MODEL)
    gate.open.set()
    gate.failure = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.submit(model, model.sample, 0, [1])[0].result(60)
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.try_out(model)
    gate.failure = None
    assert batcher.submit(model, model.sample, 0, [1])[0].result(60)
    assert batcher.works


def test_stopping_ends_the_worker_and_cancels_what_still_waits(batcher: DynamicBatcher) -> None:
    model, gate = gated(MODEL)
    occupy(batcher, model, gate)
    (waiting,) = batcher.submit(model, model.sample, 0, [1])
    batcher.stop(0.0)
    assert waiting.cancelled() and not batcher.works
    gate.open.set()
    batcher.stop(60)
    assert gate.calls == [[0]]


def test_calls_and_their_images_are_counted() -> None:
    metrics = Metrics()
    batcher = DynamicBatcher(4, 10, metrics)
    pngs = batcher.submit(MODEL, MODEL.sample, 0, range(6))
    batcher.start()
    wait_until(lambda: all(png.done() for png in pngs), 60)
    batcher.stop(60)
    value = metrics.registry.get_sample_value
    assert value("sfd_batch_images_count") == 2 and value("sfd_batch_images_sum") == 6
    assert (value("sfd_sampling_seconds_sum") or 0.0) > 0.0
