"""How fast images are read: JPEG files of 500 x 375 pixels, decoded, checked and cut to 256 x 256, by 0, 1 and as many processes as there are cores.

    python benchmarks/reading.py --images 3000

The yardstick is plain Pillow with the same crop, which checks nothing and sends nothing to another process: on one core, and on all of them at
once, which is less than as many times that of one where cores share what they need. Files are in the page cache.
"""

import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from PIL import Image

from sfd.data.batches import in_batches, read_ahead
from sfd.data.files import FolderStore
from sfd.data.images import ManifestImages, center_crop
from sfd.network_files import file_digest
from sfd.processes import cores

WIDTH, HEIGHT, SIDE = 500, 375, 256
BATCH = 50
ONE, ALL = "plain Pillow, one core", "plain Pillow, all cores at once"
QUALITY = 90


def make_files(folder: Path, number: int) -> list[Path]:
    """JPEG files of about the size of ImageNet's (110 kB): smooth shapes with some noise."""
    random = np.random.default_rng(0)
    files = []
    for place in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.float32)
        pixels = (smooth + random.normal(0.0, 12.0, smooth.shape)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{place:05d}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=QUALITY)
    return files


def read_plainly(files: list[Path]) -> None:
    """What a minimal data set does with each file."""
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            torch.from_numpy(np.asarray(center_crop(image.convert("RGB"), SIDE)).copy())


def read_plainly_on_all_cores(files: list[Path]) -> None:
    """The same by one process per core; no image leaves its process."""
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        pool.map(read_plainly, [files[first :: cores()] for first in range(cores())])


def main(
    images: Annotated[int, typer.Option(min=1, help="number of files")] = 3000,
    rounds: Annotated[int, typer.Option(min=1, help="rounds, each of which times every way once")] = 3,
) -> None:
    """Prints the median of images per second, each way."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), images)
        table = pd.DataFrame({"sha256": map(file_digest, files), "class_index": 0})
        dataset = ManifestImages(table, FolderStore(Path(folder), [file.name for file in files]), SIDE, 10**7)
        order = in_batches(range(images), BATCH)

        def read(num_workers: int) -> None:
            with read_ahead(dataset, order, num_workers) as batches:
                assert sum(len(batch.images) for batch in batches) == images

        ways: dict[str, Callable[[], None]] = {
            ONE: lambda: read_plainly(files),
            ALL: lambda: read_plainly_on_all_cores(files),
        }
        ways |= {f"num_workers: {number}": lambda number=number: read(number) for number in sorted({0, 1, cores()})}  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        kib = sum(file.stat().st_size for file in files) / len(files) / 2**10
    speeds = {name: images / statistics.median(found) for name, found in seconds.items()}
    print(f"{images} JPEG files of {WIDTH} x {HEIGHT}, {kib:.0f} KiB each, cut to {SIDE} x {SIDE}; {cores()} cores")
    print("| how | images per second | share of plain Pillow on as many cores |\n|---|---|---|")
    for name, speed in speeds.items():
        plain = speeds[ALL if name in (ALL, f"num_workers: {cores()}") else ONE]
        print(f"| {name} | {speed:.0f} | {speed / plain:.2f} |")


if __name__ == "__main__":
    typer.run(main)
