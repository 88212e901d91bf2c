"""Attribute swaps: images for prompts that differ in one colour word, from the same seeds. Stage ``sample`` draws them, ``evaluate`` scores them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sfd.generation.images import ImageGenerator
from sfd.generation.samples import PART, draw_images
from sfd.params import SampleParams
from sfd.seeding import derive_seed

SWAPS = "swaps"
"""Folder of the images, and of their table, in the results of stage ``sample``."""
TABLE = "swaps.csv"

Swaps = Mapping[str, Sequence[str]]
"""``evaluate.swap_words``: template with one place to colour words."""


def plan_swaps(swaps: Swaps, images_per_word: int, seed: int) -> pd.DataFrame:
    """The table of the images: ``file``, ``template``, ``word``, ``prompt`` and ``seed``. Image j of every word has the same seed."""
    seeds = [derive_seed(seed, "sample/swap", j) for j in range(images_per_word)]
    rows = [
        (template, word, template.replace("{}", word), each)
        for template, words in swaps.items()
        for word in words
        for each in seeds
    ]
    table = pd.DataFrame(rows, columns=["template", "word", "prompt", "seed"])
    table.insert(0, "file", [f"{place:06d}.png" for place in range(len(table))])
    return table


def write_swaps(
    out: Path,
    images: ImageGenerator,
    table: pd.DataFrame,
    params: SampleParams,
    batch_size: int,
    rank: int,
    world_size: int,
) -> None:
    """Draws this process's share of the images of :func:`plan_swaps` to ``out/swaps/images``."""
    draw_images(out / SWAPS, table, table["prompt"].tolist(), images, params, batch_size, rank, world_size)


def finish_swaps(out: Path, table: pd.DataFrame) -> Path:
    """Writes the table, when all images are there; returns its file."""
    for part in (out / SWAPS / "images").glob(f"*{PART}"):
        part.unlink()  # of a run that was killed while it wrote the image
    table.to_csv(out / SWAPS / TABLE, index=False)
    return out / SWAPS / TABLE


def read_swaps(samples: Path) -> pd.DataFrame | None:
    """The table in the results of stage ``sample``; None if it drew no swaps."""
    file = samples / SWAPS / TABLE
    return (
        pd.read_csv(file, dtype=dict.fromkeys(("file", "template", "word", "prompt"), str), keep_default_na=False)
        if file.is_file()
        else None
    )
