"""The data report as one picture: images per class, sizes, and a contact sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from sfd.data.images import ManifestImages
from sfd.data.report import DataReport
from sfd.data.sources.source import DataSource
from sfd.names import HELDOUT, TRAIN
from sfd.pictures import INK, PALETTE, drawn, in_one_line, labelled_grid, plain_pair, save_png, sheet

PICTURE_NAME = "report.png"
_MAX_ROWS = 24
_PER_ROW = 10
_ROWS_OF_ONE_CLASS = 6
_CELL = 72
_MAX_LABEL = 24
_BINS = 40
Item = TypeVar("Item")


def write_picture(report: DataReport, rows: pd.DataFrame, source: DataSource, file: Path) -> None:
    """Draws images per class, the shorter sides, and up to ten images of each of up to 24 classes, as centre crops.

    Args:
        report: of these rows.
        rows: the manifest.
        source: where the images are.
        file: the PNG; equal images give equal bytes.

    Raises:
        UserError: an image has changed since it was scanned.
    """
    labels = _spread(report.classes, _MAX_ROWS)
    per_class = _PER_ROW if len(report.classes) > 1 else _PER_ROW * _ROWS_OF_ONE_CLASS
    chosen = pd.concat(
        [part.iloc[_spread(range(len(part)), per_class)] for part in (rows[rows["label"] == label] for label in labels)]
    )
    size = min(report.image_size, _CELL)
    images = ManifestImages(chosen, source.open_store(chosen), size, source.params.max_pixels)
    names = _short(chosen["label"].tolist()) if len(report.classes) > 1 else [""] * len(chosen)
    grid = labelled_grid(images.__getitems__(list(range(len(chosen)))).images, names, _PER_ROW)
    shown = f"{len(labels)} of {len(report.classes)} classes" if len(labels) < len(report.classes) else "every class"
    parts = [
        (report.lines()[0], _charts(report, rows)),
        (f"up to {per_class} images of {shown}, cropped to squares of {size} pixels", grid),
    ]
    save_png(sheet(parts), file)


def _charts(report: DataReport, rows: pd.DataFrame) -> Image.Image:
    """Images per class, largest first, and the sizes."""
    figure, bars, sizes = plain_pair(("", "images per class"), ("shorter side, pixels", "images"))
    names = sorted(report.classes, key=lambda name: -sum(report.counts[name].values()))
    bottom = np.zeros(len(names), dtype=np.int64)
    for split, colour, word in ((TRAIN, PALETTE[0], "to train on"), (HELDOUT, PALETTE[1], "held out")):
        heights = np.array([report.counts[name][split] for name in names])
        bars.bar(range(len(names)), heights, bottom=bottom, color=colour, width=0.8, label=word)
        bottom += heights
    if len(names) <= _MAX_ROWS:
        bars.set_xticks(range(len(names)), _short(names), rotation=45, ha="right", parse_math=False)
    else:
        bars.set_xlabel("class, largest first", color=INK)
    shorter = rows[["width", "height"]].min(axis=1)
    edges = np.linspace(0.0, 1.05 * max(shorter.max(), report.image_size), _BINS + 1)
    sizes.hist(shorter, bins=edges.tolist(), color=PALETTE[0])
    sizes.axvline(report.image_size, color=PALETTE[1], linestyle="--", label=f"data.image_size {report.image_size}")
    for axes in (bars, sizes):
        axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return drawn(figure)


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    """At most ``number`` items, evenly spread over all."""
    places = np.linspace(0, len(items) - 1, min(number, len(items)))
    return [items[round(place)] for place in places]


def _short(labels: Sequence[str]) -> list[str]:
    """Class names, cut where they are long if they stay apart."""
    lines = list(map(in_one_line, labels))
    short = [line if len(line) <= _MAX_LABEL else f"{line[: _MAX_LABEL - 1]}…" for line in lines]
    return short if len(set(short)) == len(set(labels)) else lines
