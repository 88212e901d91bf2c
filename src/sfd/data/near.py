"""Near duplicates: images that look the same, although their files differ (resized, compressed again, retouched)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

NEAR_BITS = 3
"""Two images are near duplicates if their difference hashes differ in at most so many of 64 bits ..."""
NEAR_LEVELS = 4.0
"""... and their thumbnails by at most this mean of absolute differences, of 255. Small pictures, as digits, often have equal hashes."""
WIDTH, HEIGHT = 9, 8
_BANDS = 4
_BLOCK = 512
_OTHERS = 128

Rows = npt.NDArray[np.int64]


def thumbnail(image: Image.Image) -> bytes:
    """The means of 9x8 areas of an RGB image, 216 bytes."""
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BOX).tobytes()


class Thumbnails(NamedTuple):
    """Thumbnails of N images and their hashes.

    Attributes:
        pixels: uint8 ``(N, 216)``.
        hashes: the difference hash, uint64 ``(N,)``: which of the 9x8 grey values is darker than its right neighbour. It is 0 where
            nothing gets brighter to the right, as in a flat image, and then says nothing. Source: hackerfactor.com/blog, "Kind of Like
            That" (2013).
    """

    pixels: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, thumbnails: Sequence[bytes]) -> "Thumbnails":
        """From the bytes of :func:`thumbnail`."""
        pixels = np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(len(thumbnails), HEIGHT, WIDTH, 3)
        grey = pixels @ np.array([299, 587, 114], dtype=np.int32)
        bits = np.packbits(grey[:, :, :-1] < grey[:, :, 1:], axis=-1)
        return cls(
            pixels.reshape(len(thumbnails), 3 * WIDTH * HEIGHT),
            bits.reshape(len(thumbnails), HEIGHT).view(">u8").astype(np.uint64)[:, 0],
        )

    def at(self, rows: Rows) -> "Thumbnails":
        """Those of some images."""
        return Thumbnails(self.pixels[rows], self.hashes[rows])


def find_near(
    queries: Thumbnails, others: Thumbnails, *, earlier: bool = False
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """For each query the row of a near duplicate in ``others``, and their mean difference in levels of 255; of several the nearest one
    among the first that are compared.

    Row -1 and difference infinite: there is none. Flat images (hash 0) have none. Two hashes that differ in fewer bits than there are
    bands agree in one of four bands of 16 bits, so only such pairs are compared; and a query that has one is compared no more, so that
    many images alike take no longer than others. Memory is bounded.

    Args:
        queries: images.
        others: images.
        earlier: compare a query only with the rows before its own, as within one list.
    """
    rows = np.full(len(queries.hashes), -1)
    levels = np.full(len(queries.hashes), np.inf)
    for mine, theirs in _same_band(queries.hashes, others.hashes):
        mine = mine[rows[mine] < 0]
        is_close = np.bitwise_count(queries.hashes[mine, None] ^ others.hashes[None, theirs]) <= NEAR_BITS
        if earlier:
            is_close &= theirs[None] < mine[:, None]
        one, two = np.nonzero(is_close)
        if not len(one):
            continue
        first, second = mine[one], theirs[two]
        difference = np.abs(queries.pixels[first].astype(np.int16) - others.pixels[second]).mean(axis=1)
        order = np.lexsort((second, difference, first))  # of each query the nearest comes first
        best = order[np.unique(first[order], return_index=True)[1]]
        best = best[difference[best] <= NEAR_LEVELS]
        rows[first[best]], levels[first[best]] = second[best], difference[best]
    return rows, levels


def _same_band(queries: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
    """Rows of both, in blocks, that share the value of a band. A pair may come more than once."""
    for band in range(_BANDS):
        shift, mask = np.uint64(16 * band), np.uint64(0xFFFF)
        one, two = (queries >> shift) & mask, (others >> shift) & mask
        one_rows, two_rows = (
            rows[np.argsort(values[rows], kind="stable")]
            for values, rows in ((one, np.flatnonzero(queries)), (two, np.flatnonzero(others)))
        )
        one, two = one[one_rows], two[two_rows]
        for value in np.intersect1d(one, two):
            mine = one_rows[slice(*np.searchsorted(one, [value, value + np.uint64(1)]))]
            theirs = two_rows[slice(*np.searchsorted(two, [value, value + np.uint64(1)]))]
            for start in range(0, len(mine), _BLOCK):
                for begin in range(0, len(theirs), _OTHERS):
                    yield mine[start : start + _BLOCK], theirs[begin : begin + _OTHERS]
