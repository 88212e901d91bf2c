"""Stage ``sample``: images, and the table that says what each one is."""

import json
from pathlib import Path

import pandas as pd
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sfd.data.images import to_tensor_uint8
from sfd.errors import UserError
from sfd.generation.images import ImageGenerator, image_seed
from sfd.params import SampleParams
from sfd.pictures import labelled_grid, save_png

TABLE = "samples.csv"
FACTS = "sampling.json"
GRID_PER_CLASS, GRID_CLASSES = 10, 10
"""Size of the sample grid."""


def plan(num_images: int, classes: list[str], seed: int) -> pd.DataFrame:
    """The table: image i has class ``i % num_classes``, so that any first n images are balanced, and a seed of its own."""
    rows = range(num_images)
    return pd.DataFrame(
        {
            "file": [f"{i:06d}.png" for i in rows],
            "class_index": [i % len(classes) for i in rows],
            "class": [classes[i % len(classes)] for i in rows],
            "seed": [image_seed(seed, i) for i in rows],
        }
    )


def write_samples(
    out: Path, images: ImageGenerator, params: SampleParams, seed: int, rank: int, world_size: int
) -> pd.DataFrame:
    """Writes ``images/*.png`` and ``samples.csv``; returns the table. Batches are shared among processes; finished ones are kept."""
    table = plan(params.num_images, images.model.classes, seed)
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(rank * params.batch_size, params.num_images, world_size * params.batch_size)
    for start in tqdm(starts, unit="batch", disable=None):
        rows = table.iloc[start : start + params.batch_size]
        done = out / f".batch-{start:06d}"
        if done.exists():
            continue
        (pixels,) = images.sample(rows["class_index"].tolist(), rows["seed"].tolist(), params)
        for file, image in zip(rows["file"], pixels, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / file)
        done.touch()
    return table


def finish_samples(out: Path, table: pd.DataFrame) -> Path:
    """Closes a complete set: the table and a grid with one row per class; returns the grid's file."""
    for mark in out.glob(".batch-*"):
        mark.unlink()
    table.to_csv(out / TABLE, index=False)
    shown = (
        table[table["class_index"] < GRID_CLASSES]
        .groupby("class_index")
        .head(GRID_PER_CLASS)
        .sort_values("class_index", kind="stable")
    )
    per_class = int(shown.groupby("class_index").size().min())
    shown = shown.groupby("class_index").head(per_class)
    grid = labelled_grid(read_images(out, shown["file"].tolist()), shown["class"].tolist(), per_class)
    save_png(grid, out / "grid.png")
    return out / "grid.png"


def write_facts(out: Path, table: pd.DataFrame, params: SampleParams, seed: int) -> Path:
    """What a reader must know to compare the samples with others': how many of each class, the seed, and how they were sampled."""
    sizes = table.groupby("class_index").size()
    facts = {
        "num_images": len(table),
        "num_classes": len(sizes),
        "images_per_class": [int(sizes.min()), int(sizes.max())],
        "seed": seed,
        **params.model_dump(mode="json", exclude={"num_images", "batch_size"}),
    }
    (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return out / FACTS


def read_images(folder: Path, files: list[str]) -> Tensor:
    """Sampled images uint8 ``(B, 3, S, S)``."""
    return to_tensor_uint8([Image.open(folder / "images" / file).convert("RGB") for file in files])


def read_table(folder: Path) -> pd.DataFrame:
    """The table of a finished set of samples. Raises :class:`UserError` if it is missing."""
    if not (folder / TABLE).is_file():
        raise UserError(f"{folder / TABLE} is missing; run `dvc repro sample` first")
    return pd.read_csv(folder / TABLE, dtype={"class": str})
