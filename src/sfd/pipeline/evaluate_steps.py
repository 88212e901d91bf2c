"""``sfd evaluate-steps``: the metrics over the steps of training, the curve with which papers compare how fast models learn.

Where several averages of the weights are kept, there is a curve for each.
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfd.errors import UserError
from sfd.evaluation.protocol import SAMPLES
from sfd.generation.samples import finish_samples, write_samples
from sfd.names import SWAP_ACCURACY, distance_name, is_higher_better, kind_of, nearest, too_few
from sfd.params import Params, known_metrics
from sfd.pictures import plot_curves
from sfd.pipeline.evaluate import open_evaluation
from sfd.pipeline.finished import entry
from sfd.pipeline.inference import start_inference
from sfd.pipeline.inputs import STAGES, check_current
from sfd.pipeline.sample import load_generator
from sfd.pipeline.stage import Stage, stage
from sfd.precision import Inference
from sfd.tables import as_text
from sfd.workspace import Workspace, average_name

NAME = "evaluate_steps"
CURVE = "curve.csv"
SHOWN = ("class_accuracy", "text_recall_5", "precision", "recall")
"""Metrics that the printed table has beside the chosen one."""

Row = Mapping[str, float]


@dataclass(frozen=True)
class Weights:
    """One set of weights that was kept. ``decay``: of a further average of them; None: the average of ``diffusion.training.ema_decay``."""

    step: int
    decay: float | None

    @property
    def name(self) -> Path:
        """Where results have what belongs to these weights, without an ending."""
        return Path("" if self.decay is None else Path(average_name(self.decay)).name, entry(self.step))


def evaluate_steps(workspace: Workspace, metric: str | None = None) -> str:
    """Samples and scores every set of weights that was kept; returns a table, in which the best one is marked.

    The settings are those of stages ``sample`` and ``evaluate``, with the same seeds for all. ``results/evaluate_steps`` holds
    ``curve.csv``, ``curve.png`` and all metrics of each set. Interrupted, it continues.

    Args:
        metric: what the picture shows, and decides which weights are best; None: the Frechet distance.

    Raises:
        UserError: no weights were kept, the judge gives no such metric, or a result is missing or out of date.
    """
    params = workspace.load_params()
    metric = _known_metric(params, metric)
    check_current(workspace, STAGES[NAME].upstream, params)
    kept = _kept(workspace, params)
    if not kept:
        raise UserError(
            f"{workspace.result('diffusion')} holds no weights of steps: set diffusion.training.keep_every, then run `dvc repro diffusion`"
        )
    with stage(NAME, workspace=workspace) as current:
        sampling, judging = start_inference(current, "sample", "evaluate")
        for weights in kept:
            _score(current, weights, sampling, judging)
        rows = {weights: _read(current, weights) for weights in kept}
        if any(metric not in row for row in rows.values()):
            raise UserError(f"--metric {metric} was not measured, see {current.out / 'metrics'}: choose another metric")
        _write_curve(current, rows, metric)
    return _report(workspace, params, rows, metric)


def best_weights(workspace: Workspace, metric: str | None = None) -> dict[str, object]:
    """The values of ``sample.step`` and ``sample.ema_decay`` that draw from the best weights of the last :func:`evaluate_steps`.

    Raises:
        UserError: there is no curve of these parameters, the judge gives no such metric, or the metric rests on too few images.
    """
    params = workspace.load_params()
    metric = _known_metric(params, metric)
    rows: dict[Weights, Row] = {}
    for weights in _kept(workspace, params):
        file = workspace.result(NAME) / _metrics_name(weights)
        if not file.is_file():
            raise UserError(f"{file} does not exist, so which weights are best is not known: run `sfd evaluate-steps`")
        rows[weights] = json.loads(file.read_text(encoding="utf-8"))
    if not rows:
        raise UserError(f"{workspace.result('diffusion')} holds no weights of steps: set diffusion.training.keep_every")
    best = _best(rows, metric)
    said = too_few(metric, rows[best])
    if said is not None:
        raise UserError(f"{metric}: {said}, so it cannot say which weights are best: choose another --metric")
    return {"sample.step": best.step, "sample.ema_decay": best.decay}


def _known_metric(params: Params, metric: str | None) -> str:
    """The metric, or the distance if it is None. Raises :class:`UserError` if the judge gives no such metric."""
    # Attribute swaps are drawn by stage `sample` alone.
    first, known = params.first_judge.name, [each for each in known_metrics(params) if kind_of(each) != SWAP_ACCURACY]
    if metric is not None and metric not in known:
        raise UserError(
            f"--metric {metric}: judge `{first}` gives no such metric; nearest metric: `{nearest(metric, known)}`"
        )
    return metric or distance_name(first)


def _kept(workspace: Workspace, params: Params) -> list[Weights]:
    decays = (None, *params.diffusion.training.more_ema_decays)
    return [Weights(step, decay) for decay in decays for step in workspace.kept_steps()]


def _best(rows: Mapping[Weights, Row], metric: str) -> Weights:
    sign = -1 if is_higher_better(metric) else 1
    return min(rows, key=lambda weights: sign * rows[weights][metric])


def _metrics_name(weights: Weights) -> Path:
    return Path("metrics", f"{weights.name}.json")


def _read(current: Stage, weights: Weights) -> Row:
    found: dict[str, float] = json.loads((current.out / _metrics_name(weights)).read_text(encoding="utf-8"))
    return found


def _score(current: Stage, weights: Weights, sampling: Inference, judging: Inference) -> None:
    """Writes the metrics of one set of weights, unless they are there. Features of all images but the samples are shared by all."""
    file = current.out / _metrics_name(weights)
    if file.is_file():
        return
    params, drawn = current.params, current.work / "drawn" / weights.name
    images = load_generator(current, current.workspace.model(weights.step, weights.decay), sampling)
    sample = current.workspace.resolve_sample(params)
    table = write_samples(drawn, images, sample, params.runtime.sample.batch_size, params.seed, 0, 1)
    grid = finish_samples(drawn, table, images.model.condition, sample)
    evaluation = open_evaluation(current, drawn, current.work / "features", judging)
    evaluation.extract()
    metrics, _ = evaluation.measure(drawn)
    group = "" if weights.decay is None else f"{weights.name.parent}/"
    current.log({f"{group}{name}": value for name, value in metrics.items()}, weights.step)
    kept_grid = current.out / "grids" / f"{weights.name}.png"
    kept_grid.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(grid, kept_grid)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    # Before these weights count as done, so that the next ones find none of their features.
    for store in evaluation.stores:
        store.forget(SAMPLES)
    fresh.replace(file)
    shutil.rmtree(drawn)


def _decay_of(params: Params, weights: Weights) -> float:
    return params.diffusion.training.ema_decay if weights.decay is None else weights.decay


def _write_curve(current: Stage, rows: Mapping[Weights, Row], metric: str) -> None:
    """Writes and logs the table and the picture; where there are several averages, the table has a column for them."""
    table, picture = current.out / CURVE, current.out / "curve.png"
    several = len({weights.decay for weights in rows}) > 1
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=["step", *(["ema_decay"] if several else []), *names])
        writer.writeheader()
        for weights, row in rows.items():
            decay = {"ema_decay": _decay_of(current.params, weights)} if several else {}
            writer.writerow({"step": weights.step} | decay | dict(row))
    curves: dict[str, list[tuple[int, float]]] = {}
    for weights, row in rows.items():
        name = f"ema_decay {_decay_of(current.params, weights)}" if several else metric
        curves.setdefault(name, []).append((weights.step, row[metric]))
    is_positive = all(row[metric] > 0.0 for row in rows.values())
    plot_curves(curves, picture, xlabel="steps of training", ylabel=metric, log_y=is_positive)
    current.log_artifacts(table, picture)


def _report(workspace: Workspace, params: Params, rows: Mapping[Weights, Row], metric: str) -> str:
    first, best = next(iter(rows.values())), _best(rows, metric)
    several = len({weights.decay for weights in rows}) > 1
    shown = [metric, *(name for name in SHOWN if name in first and name != metric)]
    cells: list[Sequence[str]] = [["step", *(["ema_decay"] if several else []), *shown, ""]]
    for weights, row in rows.items():
        decay = [f"{_decay_of(params, weights)}"] if several else []
        values = [f"{row[name]:.4f}" for name in shown]
        cells.append([f"{weights.step:,}", *decay, *values, "best" if weights == best else ""])
    flagged = [f"{name}: {said}" for name in shown if (said := too_few(name, first))]
    end = f"picture: {workspace.result(NAME) / 'curve.png'}; `sfd evaluate-steps --apply` has the best weights sampled"
    return "\n".join([as_text(cells), "", *flagged, end])
