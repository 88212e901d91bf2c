"""``sfd sweep``: draws and scores every setting of a grid over section ``sample``. No training, no search: what each value does."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sfd.errors import UserError
from sfd.evaluation.enough import count_images
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.protocol import Evaluation
from sfd.generation.images import check_decoder
from sfd.generation.model import DiffusionModel
from sfd.generation.prompts import plan_values
from sfd.generation.samples import TABLE, plan
from sfd.names import (
    RETRIEVAL,
    distance_name,
    inception_score_name,
    is_higher_better,
    is_metric,
    metric_names,
    nearest,
    too_few,
)
from sfd.params import Params, as_yaml, to_tree, with_values
from sfd.pictures import Scale, plot_curves, plot_heat_map
from sfd.pipeline.inputs import STAGES, check_current, digest_facts, digest_path
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.reference import load_judges, open_kept
from sfd.pipeline.stage import Stage, stage
from sfd.precision import Inference
from sfd.tables import as_text
from sfd.text_file import replace_text
from sfd.tuning.apply import apply_values
from sfd.tuning.grid import Grid, Setting, make_grid
from sfd.tuning.scorer import SampleScorer
from sfd.workspace import Workspace

NAME = "sweep"
BEST = "best.json"
SPEED = "seconds_per_image"
SHOWN = ("class_accuracy", "text_recall_5", "precision", "recall", SPEED)
"""Metrics that the printed table has beside the chosen one."""

Row = dict[str, float]


def sweep(workspace: Workspace, axes: Sequence[str], num_images: int | None = None, metric: str | None = None) -> str:
    """Draws and scores all settings of a grid; returns a table with the best one.

    Every setting draws the images of stage ``sample``, with its seeds, from ``results/diffusion``, and they are compared with the same
    reference as in stage ``evaluate``. A setting that was scored before, with this model, judge and code, is not drawn again.
    ``results/sweep`` holds ``sweep.csv``, ``best.json``, and for one or two axes ``sweep.png``. Interrupted, it continues.

    Args:
        axes: the grid, see :func:`sfd.tuning.grid.make_grid`.
        num_images: images of every setting; None: ``sample.num_images``.
        metric: decides which setting is best; None: the Frechet distance.

    Raises:
        UserError: the grid is not valid; the judge gives no such metric, or too few images are compared for it; or a result is missing
            or out of date.
    """
    params = workspace.load_params()
    metric = metric or distance_name(params.first_judge.name)
    _check_metric(metric, params)
    grid = make_grid(_with_images(params, num_images), axes)
    check_current(workspace, STAGES[NAME].upstream, params)
    for reason in grid.left_out:
        print(f"sweep: left out: {reason}", file=sys.stderr)
    options = {"axes": list(axes), "num_images": num_images, "metric": metric}
    with stage(NAME, workspace=workspace, options=options) as current:
        grid = make_grid(_with_images(current.params, num_images), axes)
        rows = _Sweep(current, metric).rows(grid)
        best = _leave(current, grid, rows, metric)
    return _report(workspace, grid, rows, metric, best)


def apply_sweep(workspace: Workspace) -> str:
    """Writes the best setting of the last sweep into params.yaml; returns the difference.

    Raises:
        UserError: no sweep has ended, or the values do not fit params.yaml. The file is then not changed.
    """
    file = workspace.result(NAME) / BEST
    if not file.is_file():
        raise UserError(f"{file} does not exist: no sweep has ended; run `sfd sweep KEY=VALUE,VALUE,...`")
    best = json.loads(file.read_text(encoding="utf-8"))
    name = workspace.params_file
    return apply_values(name, best["values"]) or f"{name} has the values of the best setting already\n"


def _with_images(params: Params, num_images: int | None) -> Params:
    return params if num_images is None else with_values(params, {"sample.num_images": num_images})


def _check_metric(metric: str, params: Params) -> None:
    """Raises :class:`UserError` unless a sweep measures this metric of the samples."""
    judge, floors = params.first_judge, ("_heldout", "_reconstruction")
    knows = judge.kind != "inception" and params.diffusion.model.condition not in ("none", "text")
    known = [name for name in metric_names(judge.name, knows) if not name.endswith(floors)]
    known = [name for name in known if name not in ("kid_std", "num_images", "memorised_fraction")] + [SPEED]
    known += ["density", "coverage"] if params.evaluate.density else []
    known += RETRIEVAL if params.is_told_words else []
    if metric not in known:
        raise UserError(
            f"--metric {metric}: judge `{judge.name}` gives a sweep no such metric; nearest metric: `{nearest(metric, known)}`"
        )


class _Sweep:
    """The settings' scores: those that are known, and those that are still to be drawn."""

    def __init__(self, current: Stage, metric: str) -> None:
        self.current, self.metric, runtime = current, metric, current.params.runtime
        self.sampling, self.judging = Inference.of(runtime.sample), Inference.of(runtime.evaluate)
        self.files: dict[str, str] = {}

    def rows(self, grid: Grid) -> list[Row]:
        """The metrics of each setting of the grid."""
        waiting = [setting for setting in grid.settings if not self._file(setting).is_file()]
        if waiting:
            self._draw(waiting)
        rows: list[Row] = [json.loads(self._file(setting).read_text(encoding="utf-8")) for setting in grid.settings]
        self._check_enough(rows[0])
        return rows

    def _draw(self, settings: list[Setting]) -> None:
        current, params = self.current, settings[0].params  # they differ in nothing that is read here
        judges = load_judges(current.workspace, params.judges[:1], self.judging)
        scorer = SampleScorer(current.workspace, judges, self.sampling)
        model = DiffusionModel.load(current.workspace.sampled_model(params))
        check_decoder(model, current.upstream("texture_vae") / "model", params.sample.other_networks)
        values = plan_values(model.condition, current.workspace.resolve_sample(params))
        planned = current.work / "planned"
        planned.mkdir(exist_ok=True)
        plan(values, model.condition, params.seed).to_csv(planned / TABLE, index=False)
        runtime, features = params.runtime.evaluate, current.work / "features"
        evaluation = Evaluation.open(
            current.workspace.resolve_paths(params.evaluate),
            open_prepared(current.workspace, params),
            scorer.decoder,
            planned,
            params.seed,
            [
                FeatureStore(features / each.name, each, runtime.batch_size, 0, 1, runtime.num_workers)
                for each in scorer.judges
            ],
            open_kept(current.workspace, scorer.judges),
        )
        for line in evaluation.comparison.notes:
            print(f"sweep: {line}", file=sys.stderr)
        judge, count = scorer.judges[0], evaluation.comparison.count
        compared = {"num_images": float(count)}
        self._check_enough(compared | count_images(compared | {self.metric: 0.0}, {}, params.evaluate, judge))
        evaluation.extract_reference()
        references, captions = [evaluation.compared_with()], None
        if evaluation.words is not None:
            captions = [evaluation.words.heldout[row] for row in evaluation.comparison.heldout_rows]
        names = {"fd": distance_name(judge.name), "is": inception_score_name(judge.name)}
        for number, setting in enumerate(settings):
            scored = scorer.score(model, setting.params, values[:count], params.seed, references, captions=captions)
            found = scored.metrics
            if self.metric in RETRIEVAL and self.metric not in found:
                raise UserError(
                    f"--metric {self.metric}: no sample has a prompt that is a caption of a held-out image: set sample.prompts to null"
                )
            metrics = {names.get(key, key): value for key, value in found.items()} | compared
            self._write(setting, metrics | count_images(metrics, {}, params.evaluate, judge))
            said = ", ".join(f"{key} {as_yaml(value)}" for key, value in setting.values.items())
            place = f"{number + 1} of {len(settings)}"
            print(f"sweep: {place}: {said}: {self.metric} {metrics[self.metric]:.4g}", file=sys.stderr, flush=True)

    def _check_enough(self, counted: Row) -> None:
        said = too_few(self.metric, counted)
        if said is not None:
            raise UserError(
                f"{self.metric}: {said}, so it cannot say which setting is best: raise --images or data.holdout_fraction, set "
                "sample.class_mix to `natural`, choose another --metric, or lower evaluate.min_images"
            )

    def _file(self, setting: Setting) -> Path:
        """Where the scores of a setting are kept. The name stands for all that they depend on."""
        facts = dict(self.current.facts)
        del facts["options"]
        types = [self.sampling.computed_in, self.judging.computed_in]
        if set(types) != {"fp32"}:  # which older scores are, without saying it
            facts["precision"] = types
        facts["params"] = facts["params"] | {"sample": to_tree(setting.params)["sample"]}
        facts["files"] = {str(path): self._digest(path) for path in setting.params.paths(*STAGES[NAME].params)}
        return self.current.workspace.scores / f"{digest_facts(facts)}.json"

    def _digest(self, path: Path) -> str:
        """That of a file of weights, which is read once."""
        if str(path) not in self.files:
            self.files[str(path)] = digest_path(self.current.workspace.resolve(path))
        return self.files[str(path)]

    def _write(self, setting: Setting, metrics: Row) -> None:
        file = self._file(setting)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(metrics, indent=2) + "\n")


def _leave(current: Stage, grid: Grid, rows: list[Row], metric: str) -> int:
    """Writes and logs the table, the picture and the best setting; returns the number of its row."""
    sign = -1 if is_higher_better(metric) else 1
    best = min(range(len(rows)), key=lambda n: sign * rows[n][metric])
    table, chosen = current.out / "sweep.csv", current.out / BEST
    with table.open("w", newline="", encoding="utf-8") as stream:
        keys = [key for axis in grid.axes for key in axis.keys]
        writer = csv.DictWriter(stream, fieldnames=[*keys, *dict.fromkeys(name for row in rows for name in row)])
        writer.writeheader()
        for setting, row in zip(grid.settings, rows, strict=True):
            writer.writerow({key: as_yaml(value) for key, value in setting.values.items()} | row)
    facts = {"metric": metric, "value": rows[best][metric], "values": grid.settings[best].values}
    chosen.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    pictures = _draw_picture(current.out / "sweep.png", grid, rows, metric, best)
    if current.run is not None:
        axes = {f"sweep.{key}": ", ".join(axis.labels) for axis in grid.axes for key in axis.keys}
        current.run.log_params({"sweep.num_images": grid.settings[0].params.sample.num_images, "sweep.metric": metric})
        current.run.log_params(axes)
    for number, row in enumerate(rows):
        current.log(row, number)
    current.log({f"best/{metric}": rows[best][metric]})
    current.log_artifacts(table, chosen, *pictures)
    return best


def _draw_picture(file: Path, grid: Grid, rows: list[Row], metric: str, best: int) -> list[Path]:
    """A curve over one axis of numbers, a heat map over any other one axis or two; there is none for more."""
    places, values = [setting.place for setting in grid.settings], [row[metric] for row in rows]
    first = grid.axes[0]
    if len(grid.axes) == 1 and all(type(value) in (int, float) for value in first.values):
        points = sorted((float(first.values[n]), value) for (n,), value in zip(places, values, strict=True))
        plot_curves({metric: points}, file, first.name, metric)
        return [file]
    if len(grid.axes) > 2:
        return []
    second = Scale(grid.axes[1].name, grid.axes[1].labels) if len(grid.axes) == 2 else Scale("", [""])
    cells = [[float("nan")] * len(first.values) for _ in second.labels]
    for place, value in zip(places, values, strict=True):
        cells[(*place, 0)[1]][place[0]] = value
    marked = (*places[best], 0)[1], places[best][0]
    plot_heat_map(cells, second, Scale(first.name, first.labels), marked, file, metric)
    return [file]


def _report(workspace: Workspace, grid: Grid, rows: list[Row], metric: str, best: int) -> str:
    shown = [metric, *(name for name in SHOWN if name in rows[0] and name != metric)]
    cells: list[list[str]] = [[*(axis.name for axis in grid.axes), *shown, ""]]
    for number, (setting, row) in enumerate(zip(grid.settings, rows, strict=True)):
        labels = [axis.labels[n] for axis, n in zip(grid.axes, setting.place, strict=True)]
        cells.append([*labels, *(f"{row[name]:.4g}" for name in shown), "best" if number == best else ""])
    flagged = [f"{name}: {said}" for name in shown if is_metric(name) and (said := too_few(name, rows[0]))]
    folder, values = workspace.result(NAME), grid.settings[best].values
    files = " and ".join(name for name in ("sweep.csv", "sweep.png") if (folder / name).is_file())
    lines = [f"best: {', '.join(f'{key} {as_yaml(value)}' for key, value in values.items())}"]
    lines.append(
        f"files: {files} in {folder}; `sfd sweep --apply` writes the best setting into {workspace.params_file}"
    )
    return "\n".join([as_text(cells), "", *flagged, *lines])
