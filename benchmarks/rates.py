"""Batch size and learning rate of the diffusion model: equal images seen, so about equal time on a CPU; which ends nearest to the training images?

    python benchmarks/rates.py 32:0.001 16:0.004                  # batch:rate, as many as are to be compared; 9 minutes each on a slow core
    python benchmarks/rates.py 16:0.001 16:0.004 --size XS --images 14112

It runs in a project after its stages `latents` and `reference`. What it does not name is as in the project, but for these: the rate falls to 0 as
a cosine after a warm-up of an eighth of the steps, at most 200; the average of the weights reaches over a twentieth of the steps; samples
take 10 steps, guided by 3 where the model is told classes or words. All start from the same noise.

A training that is finished is kept in ``--points``. Stopped, the same command goes on with the next one.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import trainings
import typer
from trainings import MEASURED, Point, save_json

from sfd.errors import UserError
from sfd.params import Params, with_values
from sfd.tables import as_text
from sfd.workspace import Workspace

PROJECT = Workspace(Path())
TRAINING = "diffusion.training."
GUIDANCE = 3.0
SHARED = MEASURED | {
    "sample.num_steps": 10,
    "tune.pruner": "none",
    "tune.space": {"schedule.tau": {"low": 0.0, "high": 0.5}},
}
SHOWN = ("fd", "kid", "class_accuracy")


def options(project: Params, size: str, batch: int, rate: float, steps: int, num_images: int) -> Params:
    """The project's parameters for one training. Raises :class:`UserError` if a rule refuses them."""
    changes = SHARED | {
        "diffusion.model.size": size,
        f"{TRAINING}batch_size": batch,
        f"{TRAINING}learning_rate": rate,
        f"{TRAINING}num_steps": steps,
        f"{TRAINING}warmup_steps": min(200, steps // 8),
        f"{TRAINING}decay": "cosine",
        f"{TRAINING}ema_decay": 1 - 20 / max(steps, 40),
        "tune.report_every": steps,
        "tune.num_images": num_images,
    }
    if project.sample.guidance.kind == "cfg":
        changes |= dict.fromkeys(("sample.guidance.scale_texture", "sample.guidance.scale_semantic"), GUIDANCE)
    return with_values(project, changes)


def parse(pair: str) -> tuple[int, float]:
    """`BATCH:RATE`. Raises :class:`UserError` for anything else."""
    batch, _, rate = pair.partition(":")
    try:
        found = int(batch), float(rate)
    except ValueError:
        found = 0, 0.0
    if found[0] < 1:
        raise UserError(f"{pair!r} is no batch size with a learning rate; write it as in 16:0.004")
    return found


def table(points: dict[str, Point]) -> str:
    """A row per training. ``points``: by batch and rate."""
    rows = [["batch:rate", "steps", "minutes", *SHOWN]]
    for name, point in points.items():
        shown = [f"{point[key]:.4g}" if key in point else "-" for key in SHOWN]
        rows.append([name, f"{point['step']:,}", f"{point['seconds'] / 60:.1f}", *shown])
    return as_text(rows)


def main(
    pairs: Annotated[list[str], typer.Argument(help="Batch size and learning rate, as in 16:0.004.")],
    images: Annotated[
        int, typer.Option(min=64, help="Training images that each training sees, repeats counted.")
    ] = 38400,
    size: Annotated[str | None, typer.Option(help="Of the model; else that of the project.")] = None,
    num_images: Annotated[int, typer.Option(min=10, help="Samples that a model is scored with.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    points: Annotated[Path, typer.Option(help="File that keeps the finished trainings.")] = Path("rates.json"),
) -> None:
    """Trains once per pair and prints a table."""
    try:
        project = PROJECT.load_params()
        size = size or str(project.diffusion.model.size)
        about = f"{size}, {images:,} images, {num_images} samples, seed {seed}"
        kept = json.loads(points.read_text(encoding="utf-8")) if points.is_file() else {}
        asked = {}
        for pair in pairs:
            batch, rate = parse(pair)
            asked[pair] = options(project, size, batch, rate, images // batch, num_images)
        shared = trainings.Trainings(PROJECT, asked[pairs[0]], "recipe")
        if kept.setdefault("latents", shared.latents) != shared.latents:
            raise UserError(f"{points} holds trainings on other latents: name another file with --points")
        for pair, params in asked.items():
            name = f"{pair}, {about}"
            if name not in kept:
                with tempfile.TemporaryDirectory() as work:
                    kept[name] = shared.run(params, seed, Path(work))[-1]
                save_json(points, kept)
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
    print(f"\n{about}\n\n{table({pair: kept[f'{pair}, {about}'] for pair in asked})}")


if __name__ == "__main__":
    typer.run(main)
