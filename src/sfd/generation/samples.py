"""Stage ``sample``: images, and a table that describes each one."""

import json
from pathlib import Path

import pandas as pd
from PIL import Image
from torch import Tensor

from sfd.class_mix import evenly_spaced
from sfd.data.images import to_tensor_uint8
from sfd.errors import UserError
from sfd.generation.images import ImageGenerator, image_seed
from sfd.generation.prompts import GRID_PROMPTS, plan_values
from sfd.models.conditions import Condition, Value
from sfd.params import ComputedIn, SampleParams
from sfd.pictures import labelled_grid, save_png
from sfd.progress import track

TABLE = "samples.csv"
FACTS = "sampling.json"
PART = ".part"
"""Ending of an image that is not whole yet."""
GRID_PER_CLASS, GRID_CLASSES = 10, 10
"""Size of the sample grid."""


def plan(values: list[Value], condition: Condition, seed: int) -> pd.DataFrame:
    """The table with one row per image: its file, the condition's columns for its value, and its seed."""
    rows = range(len(values))
    return pd.DataFrame(
        {
            "file": [f"{i:06d}.png" for i in rows],
            **condition.columns(values),
            "seed": [image_seed(seed, i) for i in rows],
        }
    )


def write_samples(
    out: Path, images: ImageGenerator, params: SampleParams, batch_size: int, seed: int, rank: int, world_size: int
) -> pd.DataFrame:
    """Writes ``images/*.png`` and returns the table. Batches are shared among processes.

    A batch whose images are all there is not drawn again. Others are drawn whole, because products round by the shape of their batch.

    ``params``: with its paths resolved.

    Raises:
        UserError: as :func:`plan_values` does.
    """
    values = plan_values(images.model.condition, params)
    table = plan(values, images.model.condition, seed)
    draw_images(out, table, values, images, params, batch_size, rank, world_size)
    return table


def draw_images(
    out: Path,
    table: pd.DataFrame,
    values: list[Value],
    images: ImageGenerator,
    params: SampleParams,
    batch_size: int,
    rank: int,
    world_size: int,
) -> None:
    """Draws the images of a table, with a value each, into ``out/images``, as :func:`write_samples` says."""
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(rank * batch_size, len(table), world_size * batch_size)
    for start in track(starts, "sample", "batch", len(starts)):
        rows = table.iloc[start : start + batch_size]
        if all((folder / file).exists() for file in rows["file"]):
            continue
        (pixels,) = images.sample(values[start : start + batch_size], rows["seed"].tolist(), params, batch_size)
        for file, image in zip(rows["file"], pixels, strict=True):
            part = folder / f"{file}{PART}"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(part, format="png")
            part.replace(folder / file)


def finish_samples(out: Path, table: pd.DataFrame, condition: Condition, params: SampleParams) -> Path:
    """Writes ``samples.csv`` and a grid with one value of the condition per row, when all images are there; returns the grid's file.

    ``params``: those of the table, with their paths resolved.
    """
    for part in (out / "images").glob(f"*{PART}"):
        part.unlink()  # of a run that was killed while it wrote the image
    table.to_csv(out / TABLE, index=False)
    values = plan_values(condition, params)
    rows, per_row = _choose_shown(values)
    labels = [condition.label(values[row]) for row in rows]
    save_png(labelled_grid(read_images(out, table["file"].iloc[rows].tolist()), labels, per_row), out / "grid.png")
    return out / "grid.png"


def _choose_shown(values: list[Value]) -> tuple[list[int], int]:
    """The rows of the table that the grid shows, grouped by value, and the most per value; the first rows if there are no values.

    Of prompts, evenly spaced ones.
    """
    members: dict[Value, list[int]] = {}
    for row, value in enumerate(values):
        members.setdefault(value, []).append(row)
    if None in members:
        return list(range(min(len(values), GRID_PER_CLASS * GRID_CLASSES))), GRID_PER_CLASS
    drawn = list(members.values())
    if any(isinstance(value, str) for value in members):
        chosen = [drawn[place] for place in evenly_spaced(len(drawn), GRID_PROMPTS)]
    else:
        chosen = drawn[:GRID_CLASSES]
    shown = [rows[:GRID_PER_CLASS] for rows in chosen]
    return [row for rows in shown for row in rows], max(map(len, shown))


def write_facts(out: Path, table: pd.DataFrame, params: SampleParams, seed: int, computed_in: ComputedIn) -> Path:
    """Writes what is needed to compare the samples with others: their number per class, the seed, and how they were sampled.

    ``computed_in``: the type in which the networks computed.
    """
    balance: dict[str, object] = {}
    if "class_index" in table:
        sizes = table.groupby("class_index").size()
        balance = {"num_classes": len(sizes), "images_per_class": [int(sizes.min()), int(sizes.max())]}
    facts = {
        "num_images": len(table),
        **balance,
        "seed": seed,
        "precision": computed_in,
        **params.model_dump(mode="json", exclude={"num_images"}),
    }
    (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return out / FACTS


def sampled_in(folder: Path) -> ComputedIn:
    """The type in which the networks computed that drew a finished set of samples; older samples do not say it, and are of float32."""
    file = folder / FACTS
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found: ComputedIn = facts.get("precision", "fp32")
    return found


def read_images(folder: Path, files: list[str]) -> Tensor:
    """Reads sampled images, uint8 ``(B, 3, S, S)``. Raises :class:`UserError` naming a file that is missing or damaged."""
    return to_tensor_uint8([_read_image(folder / "images" / file) for file in files])


def _read_image(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a damaged PNG
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read ({reason}); make the samples again: `dvc repro -f -s sample`") from None


class SampledImages:
    """The images of a folder of samples, by their place in a list of files."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder, self.files = folder, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """These images, uint8 ``(B, 3, S, S)``."""
        return read_images(self.folder, [self.files[index] for index in indices])


def read_table(folder: Path) -> pd.DataFrame:
    """The table of a finished set of samples. Raises :class:`UserError` if it is missing, or no table with a file in each row."""
    if not (folder / TABLE).is_file():
        raise UserError(f"{folder / TABLE} is missing; run `dvc repro sample` first")
    try:
        # A class may be called NA or null, and so may a prompt.
        table = pd.read_csv(folder / TABLE, dtype={"file": str, "class": str, "prompt": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / TABLE} is no table ({reason}); make it again: `dvc repro -f -s sample`") from None
    if "file" not in table:
        raise UserError(
            f"{folder / TABLE} has no column `file`, so stage `sample` did not make it; give another folder, or make it again: "
            "`dvc repro -f -s sample`"
        )
    if table.empty or not all(table["file"]):
        raise UserError(f"{folder / TABLE} names no file in some row; make it again: `dvc repro -f -s sample`")
    return table
