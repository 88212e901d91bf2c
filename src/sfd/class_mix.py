"""Class mixes: how many images of a set belong to each class. Sets are compared only if they have the same mix. And some rows of many. No torch."""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Literal

ClassMix = Literal["balanced", "natural"]
BALANCED: ClassMix = "balanced"
NATURAL: ClassMix = "natural"

TOLERANCE = 0.01
"""Largest share of a set that may be of other classes than its mix asks for, because whole images cannot be divided."""


def evenly_spaced(total: int, most: int) -> list[int]:
    """At most ``most`` of ``total`` rows. Images are stored class by class, so the first ones would be of a few classes only."""
    number = min(total, most)
    return [n * total // number for n in range(number)]


def interleave(counts: Sequence[int], number: int) -> list[int]:
    """Class indices in the proportions of ``counts``, which must not all be 0.

    Whatever n, each class has its share of the first n of them to within ``1 - 1 / (2K - 2)`` images, where K is the number of classes: no
    order does better for all counts (R. Tijdeman, The chairman assignment problem, 1980). Image j of a class of share p may stand in the
    places from ``(j + e) / p`` to ``(j + 1 - e) / p``, where ``e = 1 / (2K - 2)``. Each place goes to the class that has to be served first,
    and among equals to the first one. Equal counts give 0, 1, ..., K-1, 0, 1, ...
    """
    total, fine = sum(counts), 2 * sum(count > 0 for count in counts) - 2
    if fine == 0:
        return [next(index for index, count in enumerate(counts) if count)] * number

    def earliest(index: int, given: int) -> int:
        return -(-total * (given * fine + 1) // (fine * counts[index]))

    waiting = [(earliest(index, 0), index, 0) for index, count in enumerate(counts) if count]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    order = []
    for place in range(1, number + 1):
        while waiting and waiting[0][0] <= place:
            _, index, given = heapq.heappop(waiting)
            latest = total * ((given + 1) * fine - 1) // (fine * counts[index])
            heapq.heappush(ready, (latest, index, given))
        _, index, given = heapq.heappop(ready)
        order.append(index)
        heapq.heappush(waiting, (earliest(index, given + 1), index, given + 1))
    return order


def count_alike(wanted: Sequence[int], *sets: Sequence[int]) -> int:
    """The largest n for which n images with the classes of the first n of ``wanted`` can be drawn from each of ``sets``.

    A share of at most :data:`TOLERANCE` may be of other classes. ``sets``: the class of each image of a set.
    """
    left = [Counter(labels) for labels in sets]
    lacking = [0] * len(sets)
    found, smallest = 0, min(map(len, sets))
    for number, label in enumerate(wanted[:smallest], start=1):
        for place, counts in enumerate(left):
            lacking[place] += counts[label] <= 0
            counts[label] -= 1
        if max(lacking) <= TOLERANCE * number:
            found = number
    return found


def scarcest(wanted: Sequence[int], *sets: Sequence[int]) -> int:
    """The class of which one of ``sets`` has the fewest images, in proportion to those that ``wanted`` has of it."""
    asked = Counter(wanted)
    held = [Counter(labels) for labels in sets]
    return min(asked, key=lambda label: min(counts[label] for counts in held) / asked[label])
