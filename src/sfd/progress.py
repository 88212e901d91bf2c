"""How far a long loop is: a bar on a terminal, and elsewhere (a log, a scheduler) a plain line every half minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from sfd.processes import rank

Item = TypeVar("Item")

EVERY_S = 30.0
"""Seconds between two lines."""


class Progress:
    """Progress of one loop, in process 0. Use :func:`progress`."""

    def __init__(self, name: str, unit: str, total: int | None, done: int) -> None:
        self.name, self.unit, self.total, self.done = name, unit, total, done
        shown = rank() == 0
        has_terminal = sys.stderr.isatty()
        self.bar: tqdm[Any] = tqdm(
            total=total, initial=done, unit=unit, unit_scale=True, desc=name, disable=not (shown and has_terminal)
        )
        self.speaks = shown and not has_terminal
        self._said, self._said_at = done, time.monotonic()

    def skip(self, count: int) -> None:
        """``count`` more were done before."""
        self.done += count
        self._said += count
        self.bar.update(count)

    def update(self, count: int, place: Callable[[], str] | None = None) -> None:
        """``count`` more are done. ``place()`` says how far that is, instead of the count; it is asked only when a line is due."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.speaks and now - self._said_at >= EVERY_S:
            self._say(now, place() if place is not None else self._place())

    def _place(self) -> str:
        of = "" if self.total is None else f"of {self.total:,} "
        return f"{self.done:,} {of}{_plural(self.unit)}"

    def _say(self, now: float, place: str) -> None:
        speed = (self.done - self._said) / (now - self._said_at)
        self._said, self._said_at = self.done, now
        left = (
            f", {describe_seconds((self.total - self.done) / speed)} left" if self.total is not None and speed else ""
        )
        print(f"{self.name}: {place}, {speed:.4g} {_plural(self.unit)}/s{left}", file=sys.stderr, flush=True)


@contextmanager
def progress(name: str, unit: str, total: int | None, done: int = 0) -> Iterator[Progress]:
    """Progress of the loop in the block, over ``total`` units (None: unknown) of which ``done`` were done before."""
    shown = Progress(name, unit, total, done)
    with shown.bar:
        yield shown


def track(items: Iterable[Item], name: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """The items; each counts when the next is asked for."""
    with progress(name, unit, total) as shown:
        for item in items:
            yield item
            shown.update(1)


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def describe_seconds(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
