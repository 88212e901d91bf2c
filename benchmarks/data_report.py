"""How long do the manifest and the data report of a folder of images take?

    python benchmarks/data_report.py                      # 10,000 JPEG files of 256 pixels, 0.2 GB in the temporary folder
    python benchmarks/data_report.py --images-from PATH   # a folder of yours

The files are random pieces of scikit-learn's two sample photographs, in ten classes. The clock runs from the first look at the folder to
the finished files of stage `prepare`, picture and near duplicates included.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from sfd.data.detect import detect
from sfd.data.prepare import prepare
from sfd.data.report import DataReport
from sfd.params import DataParams

CLASSES = 10


def measure(
    images_from: Annotated[Path | None, typer.Option(help="read this folder instead of making one")] = None,
    num_images: Annotated[int, typer.Option(help="files to make")] = 10_000,
    side: Annotated[int, typer.Option(help="their width and height, pixels")] = 256,
    image_size: Annotated[int, typer.Option(help="data.image_size")] = 64,
) -> None:
    """Prints the report and the time."""
    with tempfile.TemporaryDirectory() as folder:
        root = images_from or write_photos(Path(folder) / "images", num_images, side)
        start = time.monotonic()
        params = DataParams.model_validate({**detect(root), "image_size": image_size})
        prepare(params, 0, Path(folder) / "out")
        seconds = time.monotonic() - start
        report = DataReport.read(Path(folder) / "out")
    print("\n".join(report.lines()))
    print("\n| images | shorter side, median | seconds | images per second |\n|---|---|---|---|")
    print(f"| {report.num_images:,} | {report.shorter_side[1]} | {seconds:.1f} | {report.num_images / seconds:.0f} |")


def write_photos(root: Path, number: int, side: int) -> Path:
    """Random pieces of two photographs, from a quarter to the whole of their height and tinted, as JPEG files in class folders."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    for index in range(number):
        photo = photos[index % len(photos)]
        cut = int(rng.integers(photo.height // 4, photo.height))
        left, top = int(rng.integers(photo.width - cut + 1)), int(rng.integers(photo.height - cut + 1))
        file = root / f"class {index % CLASSES}" / f"{index:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        piece = photo.resize((side, side), box=(left, top, left + cut, top + cut))
        tinted = np.asarray(piece) * rng.uniform(0.6, 1.0, 3)  # so that no two files are equal
        Image.fromarray(tinted.astype(np.uint8)).save(file, quality=90)
    return root


if __name__ == "__main__":
    typer.run(measure)
