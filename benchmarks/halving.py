"""Does successive halving rank offsets as separate trainings do, and at what cost?

    python benchmarks/halving.py                                  # by estimate 1 to 2 hours on two cores
    python benchmarks/halving.py --seeds 1 --num-images 60 --steps 16 --tau 0 --tau 0.3 --tau 0.8    # a quick try

It works on the finished stages of a project (`make repro`), and changes nothing there.

- Separate: one training from scratch for each offset and seed, as long as --steps; the mean distance over the seeds is the ranking to find.
- Halving, for each seed: a quarter of --steps along all offsets at once, from which each offset goes on along its own, for an eighth of --steps in
  the first round; the better half goes on, with twice the steps since the start, as `sfd tune` with `tune.halving` does. An offset that came
  further ranks before one that was dropped.
- All models are scored on the same noise, against the half of the held-out images that a study uses.

A training that is finished is kept in --points. Stopped, the same command goes on where it was.
"""

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.params import Params, round_sizes, round_steps, with_values
from sfd.text_file import replace_text
from sfd.tuning.evaluator import STUDY, CandidateEvaluator
from sfd.tuning.halving import WarmStarts
from sfd.workspace import Workspace

TAUS = [0.0, 0.1, 0.2, 0.3, 0.5, 0.8]
Point = dict[str, float]
"""``fd`` and ``class_accuracy``, the ``steps`` that this training added, and their ``seconds``."""


class Kept:
    """Points by name, in a file. They are of one setup."""

    def __init__(self, file: Path, setup: dict[str, Any]) -> None:
        self.file, self.setup = file, setup
        self.points: dict[str, Point] = {}
        if file.is_file():
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["setup"] != setup:
                raise UserError(
                    f"{file} holds points of another setup, {record['setup']}: give another --points, or remove it"
                )
            self.points = record["points"]

    def point(self, name: str, measure: Callable[[], Point]) -> Point:
        """What is kept under this name, or is measured now."""
        if name not in self.points:
            self.points[name] = measure()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.file, json.dumps({"setup": self.setup, "points": self.points}, indent=1) + "\n")
            shown = ", ".join(f"{key} {value:.4g}" for key, value in self.points[name].items())
            print(f"{name}: {shown}", flush=True)
        return self.points[name]


class Trainings:
    """Trains and scores the offsets of a project. ``work``: for checkpoints of what is under way."""

    def __init__(self, taus: list[float], steps: int, num_images: int, work: Path) -> None:
        workspace = Workspace.find()
        self.steps, self.work = steps, work
        ranged = {"low": min(taus), "high": max(taus)}
        self.params = with_values(
            workspace.load_params(),
            {
                "schedule.kind": "offset",
                "schedule.learnt": None,
                "schedule.tau": ranged,
                "sample.schedule": {"kind": "offset", "tau": ranged["high"]},
                "diffusion.training.num_steps": steps,
                "diffusion.training.decay_start": None,
                "diffusion.training.keep_every": None,
                "sample.step": None,
                "sample.ema_decay": None,
                "tune.kind": "training",
                "tune.objectives": ["fd"],
                "tune.num_images": num_images,
                "tune.halving": {"base_steps": max(1, steps // 4), "first_steps": max(1, steps // 8)},
            },
        )
        self.evaluator = CandidateEvaluator(workspace, self.params)

    def candidate(self, tau: float) -> Params:
        """The parameters with one offset."""
        return with_values(self.params, {"schedule.tau": tau, "sample.schedule": None})

    def separate(self, tau: float, seed: int) -> Point:
        """One training from scratch."""
        folder, candidate, started = self.work / f"separate-{tau:g}-{seed}", self.candidate(tau), time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        model = self.evaluator.train(candidate, seed, folder)
        seconds = time.perf_counter() - started
        shutil.rmtree(folder)
        return self.score(model, candidate) | {"steps": float(self.steps), "seconds": seconds}

    def goes_on(self, tau: float, seed: int, before: int, until: int) -> Point:
        """One offset in one round, which ends ``until`` steps after the shared start; ``before``: those of the round before."""
        candidate, started = self.candidate(tau), time.perf_counter()
        starts = WarmStarts(with_values(self.params, {"seed": seed}), self.evaluator, self.work / f"halving-{seed}")
        model = starts.model(candidate, f"{tau:g}", until)
        seconds = time.perf_counter() - started
        return self.score(model, candidate) | {"steps": float(until - before), "seconds": seconds}

    def score(self, model: DiffusionModel, candidate: Params) -> Point:
        """Means over ``tune.repeats``."""
        repeats = range(candidate.tune.repeats)
        found = [self.evaluator.score(model, candidate, STUDY, repeat).metrics for repeat in repeats]
        return {
            key: statistics.fmean(each[key] for each in found) for key in ("fd", "class_accuracy") if key in found[0]
        }


def halve(trainings: Trainings, kept: Kept, taus: list[float], seed: int) -> list[float]:
    """All rounds of one seed; returns the offsets, the best first."""
    halving = trainings.params.tune.halving
    assert halving is not None
    ranking, going, before = list[float](), list(taus), 0
    for place, size in enumerate(round_sizes(len(taus))):
        until = round_steps(halving.first_steps, place)
        scores = dict[float, float]()
        for tau in going[:size]:
            name = f"halving seed {seed} round {place} tau {tau:g}"
            scores[tau] = kept.point(name, partial(trainings.goes_on, tau, seed, before, until))["fd"]
        going, before = sorted(scores, key=lambda tau: scores[tau]), until
        dropped = going[math.ceil(len(going) / 2) :] if len(going) > 2 else going
        ranking = [*dropped, *ranking]
        going = [tau for tau in going if tau not in dropped]
    shutil.rmtree(trainings.work / f"halving-{seed}", ignore_errors=True)
    return ranking


def report(kept: Kept, taus: list[float], seeds: int, rankings: list[list[float]], base_steps: int) -> str:
    """The tables: distances and ranks by offset, and how well the ranks agree at what cost."""
    from scipy.stats import spearmanr

    found = [[kept.points[f"separate tau {tau:g} seed {seed}"]["fd"] for seed in range(seeds)] for tau in taus]
    truth = [statistics.fmean(values) for values in found]
    ranks = [[ranking.index(tau) + 1 for tau in taus] for ranking in rankings]
    mean_ranks = [statistics.fmean(column) for column in zip(*ranks, strict=True)]
    lines = ["| tau | separate trainings: fd | halving: rank of each seed | mean rank |", "|---|---|---|---|"]
    for tau, values, mean, column in zip(taus, found, mean_ranks, zip(*ranks, strict=True), strict=True):
        error = f" ± {statistics.stdev(values) / math.sqrt(seeds):.3f}" if seeds > 1 else ""
        lines.append(
            f"| {tau:g} | {statistics.fmean(values):.3f}{error} | {', '.join(map(str, column))} | {mean:.1f} |"
        )
    each = ", ".join(f"{spearmanr(row, truth).statistic:.2f}" for row in ranks)
    sums = {
        kind: [
            sum(point[key] for name, point in kept.points.items() if name.startswith(kind))
            for key in ("steps", "seconds")
        ]
        for kind in ("separate", "halving")
    }
    sums["halving"][0] += base_steps * seeds
    ratio = [halved / separate for halved, separate in zip(sums["halving"], sums["separate"], strict=True)]
    regret = [truth[taus.index(ranking[0])] - min(truth) for ranking in rankings]
    lines += [
        "",
        "| | |",
        "|---|---|",
        f"| rank correlation with separate trainings: mean ranks over the seeds | {spearmanr(mean_ranks, truth).statistic:.2f} |",
        f"| each seed | {each} |",
        f"| winner of each seed | {', '.join(f'{ranking[0]:g}' for ranking in rankings)} |",
        f"| how much worse it is than the best, by separate trainings | {', '.join(f'{value:.3f}' for value in regret)} |",
        f"| cost, as a share of the steps of separate trainings | {ratio[0]:.2f} |",
        f"| cost, as a share of their training time | {ratio[1]:.2f} |",
    ]
    return "\n".join(lines)


def main(
    points: Annotated[Path, typer.Option(help="Where finished trainings are kept.")] = Path(".sfd/halving/points.json"),
    tau: Annotated[list[float] | None, typer.Option(help="An offset; give at least three.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[
        int | None, typer.Option(min=8, help="Of a separate training; without it, those of params.yaml.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=10, help="Samples per score; without it, `tune.num_images`.")
    ] = None,
) -> None:
    """Trains what is missing, and prints the tables."""
    taus, params = sorted(tau or TAUS), Workspace.find().load_params()
    if len(set(taus)) < max(3, len(taus)):
        raise typer.BadParameter(f"give at least three offsets, each once, not {taus}")
    steps, num_images = steps or params.diffusion.training.num_steps, num_images or params.tune.num_images
    setup = {"taus": taus, "steps": steps, "num_images": num_images, "repeats": params.tune.repeats}
    kept, trainings = Kept(points, setup), Trainings(taus, steps, num_images, points.parent / "work")
    rankings = [halve(trainings, kept, taus, seed) for seed in range(seeds)]
    for seed in range(seeds):
        for each in taus:
            kept.point(f"separate tau {each:g} seed {seed}", partial(trainings.separate, each, seed))
    halving = trainings.params.tune.halving
    assert halving is not None
    print(report(kept, taus, seeds, rankings, halving.base_steps))


if __name__ == "__main__":
    typer.run(main)
