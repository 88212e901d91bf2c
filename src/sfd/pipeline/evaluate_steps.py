"""``sfd evaluate-steps``: the metrics over the steps of training, the curve with which papers compare how fast models learn."""

import csv
import json
import shutil
from pathlib import Path

from sfd.errors import UserError
from sfd.evaluation.protocol import SAMPLES
from sfd.generation.samples import finish_samples, write_samples
from sfd.names import main_distance, too_few
from sfd.pictures import plot_curves
from sfd.pipeline.evaluate import open_evaluation
from sfd.pipeline.finished import entry
from sfd.pipeline.inputs import STAGES, check_current
from sfd.pipeline.sample import load_generator
from sfd.pipeline.stage import Stage, stage
from sfd.workspace import Workspace

NAME = "evaluate_steps"


def evaluate_steps(workspace: Workspace) -> str:
    """Samples and scores every set of weights that was kept; returns a table.

    The settings are those of stages ``sample`` and ``evaluate``, with the same seeds for every step. ``results/evaluate_steps`` holds
    ``curve.csv``, ``curve.png`` and all metrics of each step. Interrupted, it continues.

    Raises:
        UserError: no weights were kept, or a result is missing or out of date.
    """
    params = workspace.load_params()
    check_current(workspace, STAGES[NAME].upstream, params)
    steps = workspace.kept_steps()
    if not steps:
        raise UserError(
            f"{workspace.result('diffusion')} holds no weights of steps: set diffusion.training.keep_every, then run `dvc repro diffusion`"
        )
    with stage(NAME, workspace=workspace) as current:
        for step in steps:
            _score(current, step)
        curve = [{"step": float(step), **_read(current, step)} for step in steps]
        distance = main_distance(curve[0], params.first_judge.name)
        _write_curve(current, curve, distance)
    shown = [distance, *(name for name in ("class_accuracy", "precision", "recall") if name in curve[0])]
    flagged = [f"{name}: {said}" for name in shown if (said := too_few(name, curve[0]))]
    rows = [f"{int(row['step']):>12,}" + "".join(f"  {row[name]:>14.4f}" for name in shown) for row in curve]
    head = f"{'step':>12}" + "".join(f"  {name:>14}" for name in shown)
    return "\n".join([head, *rows, "", *flagged, f"picture: {workspace.result(NAME) / 'curve.png'}"])


def _metrics_file(current: Stage, step: int) -> Path:
    return current.out / "metrics" / f"{entry(step)}.json"


def _read(current: Stage, step: int) -> dict[str, float]:
    found: dict[str, float] = json.loads(_metrics_file(current, step).read_text(encoding="utf-8"))
    return found


def _score(current: Stage, step: int) -> None:
    """Writes the metrics of one step, unless they are there. Features of all images but the samples are shared by the steps."""
    file = _metrics_file(current, step)
    if file.is_file():
        return
    params, drawn = current.params, current.work / entry(step)
    images = load_generator(current, step)
    table = write_samples(drawn, images, params.sample, params.runtime.sample.batch_size, params.seed, 0, 1)
    grid = finish_samples(drawn, table, images.model.condition, params.sample.class_mix)
    evaluation = open_evaluation(current, drawn, current.work / "features")
    evaluation.extract()
    metrics, _ = evaluation.measure(drawn)
    current.log(metrics, step)
    (current.out / "grids").mkdir(exist_ok=True)
    shutil.copyfile(grid, current.out / "grids" / f"{entry(step)}.png")
    file.parent.mkdir(exist_ok=True)
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for store in evaluation.stores:
        store.forget(SAMPLES)  # before the step counts as done, so that the next one finds none of its features
    fresh.replace(file)
    shutil.rmtree(drawn)


def _write_curve(current: Stage, curve: list[dict[str, float]], distance: str) -> None:
    table, picture = current.out / "curve.csv", current.out / "curve.png"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(curve[0]))
        writer.writeheader()
        writer.writerows({**row, "step": int(row["step"])} for row in curve)
    points = [(int(row["step"]), row[distance]) for row in curve]
    plot_curves({distance: points}, picture, xlabel="steps of training", ylabel=distance, log_y=True)
    current.log_artifacts(table, picture)
