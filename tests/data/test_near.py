"""Near duplicates are found among many images, and pictures that only resemble each other are not."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from sfd.data.near import NEAR_BITS, NEAR_LEVELS, Thumbnails, find_near, thumbnail


def scene(seed: int, side: int = 96) -> Image.Image:
    """Soft blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def thumbnails(*images: Image.Image) -> Thumbnails:
    return Thumbnails.of([thumbnail(image) for image in images])


@pytest.mark.parametrize(
    "change",
    [
        lambda image: as_jpeg(image, 30),
        lambda image: image.resize((40, 40), Image.Resampling.BICUBIC),
        lambda image: Image.eval(image, lambda value: min(value + 3, 255)),
    ],
    ids=["compressed", "resized", "brightened"],
)
def test_a_changed_copy_is_a_near_duplicate_of_its_original_and_of_nothing_else(change) -> None:  # type: ignore[no-untyped-def]
    originals = [scene(seed) for seed in range(50)]
    rows, levels = find_near(thumbnails(change(originals[7])), thumbnails(*originals))
    assert rows.tolist() == [7] and levels[0] <= NEAR_LEVELS
    assert (find_near(thumbnails(*originals), thumbnails(*originals), earlier=True)[0] == -1).all()


def test_images_of_other_colours_are_not_near_although_their_hashes_are_equal() -> None:
    image = scene(0)
    dark = Image.eval(image, lambda value: value // 2)
    assert np.bitwise_count(thumbnails(image).hashes ^ thumbnails(dark).hashes)[0] <= NEAR_BITS
    rows, levels = find_near(thumbnails(dark), thumbnails(image))
    assert rows.tolist() == [-1] and np.isinf(levels).all()


def test_the_bands_lose_no_pair_that_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**64, 400, dtype=np.uint64)
    for place in range(200, 400):  # copies with up to five bits changed
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            hashes[place] = hashes[place - 200] ^ np.uint64(1 << int(bit)) if bit % 2 else hashes[place] ^ np.uint64(0)
    equal = Thumbnails(np.zeros((400, 216), dtype=np.uint8), hashes)
    rows, _ = find_near(equal, equal, earlier=True)
    close = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= NEAR_BITS
    expected = [int(np.flatnonzero(close[row, :row])[0]) if close[row, :row].any() else -1 for row in range(400)]
    assert rows.tolist() == expected and max(expected) >= 0


def test_flat_images_have_no_near_duplicates() -> None:
    flat = thumbnails(*(Image.new("RGB", (20, 20), (shade, 90, 90)) for shade in range(100, 140)))
    assert (find_near(flat, flat, earlier=True)[0] == -1).all()


def test_the_find_near_several_is_taken_and_of_equal_ones_the_first() -> None:
    image = scene(3)
    brighter = [Image.eval(image, lambda value, more=more: min(value + more, 255)) for more in (3, 1, 1)]
    assert find_near(thumbnails(image), thumbnails(*brighter))[0].tolist() == [1]


def test_nothing_is_near_in_an_empty_set() -> None:
    none = thumbnails()
    assert find_near(none, none)[0].tolist() == []
    assert find_near(thumbnails(scene(0)), none)[0].tolist() == [-1]


def test_the_time_grows_slower_than_the_number_of_pairs() -> None:
    def seconds(number: int) -> float:
        rng = np.random.default_rng(0)
        hashes = rng.integers(1, 2**64, number, dtype=np.uint64)
        many = Thumbnails(np.zeros((number, 216), dtype=np.uint8), hashes)
        start = time.process_time()
        find_near(many, many, earlier=True)
        return time.process_time() - start

    small, large = (seconds(number) for number in (4_000, 16_000))
    assert large < 10 * small
