"""Progress of long loops: a plain line every half minute where there is no terminal."""

import sys
import time
from collections.abc import Iterator

import pytest

from sfd.progress import describe_seconds, progress, track


class Clock:
    """Stands until a test moves it."""

    now = 100.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)


def slow(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        Clock.now += seconds
        yield number


def test_without_a_terminal_a_line_comes_every_half_minute_and_says_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(track(slow(10, 10.0), "sample", "batch", 10)) == list(range(10))
    assert capsys.readouterr().err.splitlines() == [
        "sample: 3 of 10 batches, 0.1 batches/s, 1 min 10 s left",
        "sample: 6 of 10 batches, 0.1 batches/s, 40 s left",
        "sample: 9 of 10 batches, 0.1 batches/s, 10 s left",
    ]


def test_a_loop_of_unknown_length_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(slow(4, 20.0), "prepare", "image"))
    assert capsys.readouterr().err.splitlines() == [
        "prepare: 2 images, 0.05 images/s",
        "prepare: 4 images, 0.05 images/s",
    ]


def test_what_was_done_before_does_not_count_as_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("latents", "image", 1000, 100) as shown:
        shown.skip(500)
        Clock.now += 30.0
        shown.update(60)
        Clock.now += 29.0
        shown.update(60, lambda: pytest.fail("no line is due"))
        Clock.now += 1.0
        shown.update(60, lambda: "step 7 of 10, loss 0.5000")
    assert capsys.readouterr().err.splitlines() == [
        "latents: 660 of 1,000 images, 2 images/s, 2 min 50 s left",
        "latents: step 7 of 10, loss 0.5000, 4 images/s, 55 s left",
    ]


@pytest.mark.parametrize("silent", ["a quick loop", "a process that is not the first", "a terminal"])
def test_nothing_is_printed_by(
    silent: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if silent == "a process that is not the first":
        monkeypatch.setenv("RANK", "1")
    if silent == "a terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(track(slow(5, 1.0 if silent == "a quick loop" else 60.0), "sample", "image", 5))
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert not [line for line in lines if " of 5 images" in line]


def test_times_are_said_in_their_two_largest_units() -> None:
    assert [describe_seconds(seconds) for seconds in (0.4, 59, 61, 7260)] == ["0 s", "59 s", "1 min 1 s", "2 h 1 min"]
