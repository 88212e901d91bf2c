"""Less training for the same picture: TREAD, iREPA, Muon, and the best two of them together against the project's own training, at equal wall time.

    python benchmarks/less_training.py                # by estimate 4 hours on two cores
    python benchmarks/less_training.py --minutes 0.1 --seeds 1 --num-images 60    # a quick try

It works on the finished stages of a project with stored features. For a folder of images: `sfd init emo --images FOLDER`, set
`latents.store_features: true` in `emo/params.yaml`, and run `dvc repro latents reference` and then this script in `emo`.

- Equal wall time: a few steps of each method are timed in turns, several times over, and each method trains as many steps as take
  ``--minutes`` at its median. The time that a training really took is measured as well; the picture shows that one.
- All methods have REPA at weight 1 and otherwise the project's own options. The learning rate follows the project's schedule to the end of each
  training, so a moment before the end is not what a shorter training would give.
- The trainings of a seed see the same images, noise and times, and their samples start from the same noise.
- The distance is that of samples from all training images, by the first judge. With few samples it is too large for all methods alike.

A training that is finished is kept in ``--points``. Stopped, the same command goes on with the next one. The best two together come last.
"""

import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import trainings
import typer
from trainings import MEASURED, Point, Values, save_json

from sfd.errors import UserError
from sfd.params import Params, with_values
from sfd.pictures import PALETTE, plain_numbers, plain_pair, save_figure
from sfd.statistics import compare, estimate
from sfd.workspace import Workspace

PROJECT = Workspace(Path())
BASE = "base"
METHODS: dict[str, Values] = {
    BASE: {},
    "TREAD": {"diffusion.token_routing": {"share": 0.5, "first_blocks": 2, "last_blocks": 1}},
    "iREPA": {"diffusion.loss.repa_projector": "conv", "diffusion.loss.repa_target_norm": "tokens"},
    "Muon": {"diffusion.training.optimizer": "muon"},
}
"""Name to what it changes. A further method is a further line."""
PAIRS: dict[str, Values] = {
    f"{one} + {other}": METHODS[one] | METHODS[other]
    for one, other in itertools.combinations([name for name in METHODS if name != BASE], 2)
}
SHARED = MEASURED | {
    "diffusion.loss.repa_weight": 1.0,
    "diffusion.loss.repa_target": "stored",
}
LOOKS = 4
"""Moments of a training at which its distance is measured, equally far apart; the last one is its end."""
ROUNDS = 3


def options(changes: Values, steps: int, report_every: int, num_images: int) -> Params:
    """The project's parameters with what all methods share, and with ``changes``. Raises :class:`UserError` if a rule refuses them."""
    own = {
        "diffusion.training.num_steps": steps,
        "tune.report_every": report_every,
        "tune.num_images": num_images,
    }
    return with_values(PROJECT.load_params(), SHARED | own | changes)


class Trainings:
    """The trainings of the project, by what a method changes."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.project = trainings.Trainings(PROJECT, options({}, LOOKS, 1, num_images), "less_training")

    def seconds_per_step(self, changes: Values) -> float:
        """The time of one step."""
        return self.project.seconds_per_step(options(changes, LOOKS, 1, self.num_images))

    def run(self, changes: Values, seed: int, steps: int) -> list[Point]:
        """One training, measured at :data:`LOOKS` moments."""
        with tempfile.TemporaryDirectory() as work:
            return self.project.run(options(changes, steps, steps // LOOKS, self.num_images), seed, Path(work))


class Kept:
    """The file of finished trainings: the setup, the seconds per step, and the points of each training."""

    def __init__(self, file: Path, setup: Values) -> None:
        """Raises :class:`UserError` if the file holds trainings of another setup."""
        self.file = file
        self.seconds: dict[str, float] = {}
        self.points: dict[str, list[Point]] = {}
        self.setup = setup
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["setup"] != setup:
                differ = ", ".join(key for key in setup if content["setup"].get(key) != setup[key])
                raise UserError(f"{file} holds trainings of another setup ({differ}): name another file with --points")
            self.seconds, self.points = content["seconds_per_step"], content["points"]

    def save(self) -> None:
        """Writes the file in one rename."""
        save_json(self.file, {"setup": self.setup, "seconds_per_step": self.seconds, "points": self.points})

    def steps(self, method: str) -> int:
        """As many steps as take the wall time of the setup, a multiple of :data:`LOOKS`."""
        return LOOKS * max(1, int(60.0 * self.setup["minutes"] / self.seconds[method] / LOOKS))

    def of(self, method: str) -> list[list[Point]]:
        """The trainings of a method, by seed."""
        return [self.points[f"{method}, seed {seed}"] for seed in range(self.setup["seeds"])]

    def final(self, method: str) -> list[float]:
        """The distances at the end of the trainings of a method, by seed."""
        return [points[-1]["fd"] for points in self.of(method)]


def time_all(project: Trainings, kept: Kept) -> None:
    """Times the steps of all methods and pairs, in turns, so that a slower minute of the machine meets all of them."""
    variants = METHODS | PAIRS
    if set(kept.seconds) == set(variants):
        return
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, changes in variants.items():
            seconds[name].append(project.seconds_per_step(changes))
    kept.seconds = {name: statistics.median(values) for name, values in seconds.items()}
    kept.save()


def train_all(project: Trainings, kept: Kept, variants: dict[str, Values]) -> None:
    """The trainings that are not kept yet."""
    for seed, (name, changes) in itertools.product(range(kept.setup["seeds"]), variants.items()):
        key = f"{name}, seed {seed}"
        if key not in kept.points:
            kept.points[key] = project.run(changes, seed, kept.steps(name))
            kept.save()
        last = kept.points[key][-1]
        print(f"{key}: {last['step']:,} steps in {last['seconds'] / 60:.1f} min, FD {last['fd']:.2f}", flush=True)


def best_pair(kept: Kept) -> str:
    """The name of the two methods whose trainings end nearest to the training images, on average."""
    ranked = sorted((name for name in METHODS if name != BASE), key=lambda name: statistics.fmean(kept.final(name)))
    return next(pair for pair in PAIRS if set(pair.split(" + ")) == set(ranked[:2]))


def _mean(values: list[float]) -> str:
    found = estimate(values)
    return f"{found.mean:.2f}" + ("" if found.error is None else f" ± {found.error:.2f}")


def table(kept: Kept, names: list[str]) -> str:
    """A row per method: steps, time per step, the distance at each moment, and the difference from the base within a seed at the end."""
    moments = [f"FD after {share}/{LOOKS} of the time" for share in range(1, LOOKS)]
    lines = [
        "| | " + " | ".join(["steps", "ms per step", *moments, "FD at the end", "minus base", "verdict"]) + " |",
        "|---" * (LOOKS + 5) + "|",
    ]
    for name in names:
        distances = [_mean([point["fd"] for point in at_moment]) for at_moment in zip(*kept.of(name), strict=True)]
        gap = compare(kept.final(name), kept.final(BASE), "minimize")
        error = "" if gap.difference.error is None else f" ± {gap.difference.error:.2f}"
        minus = ["-", "-"] if name == BASE else [f"{gap.difference.mean:+.2f}{error}", gap.verdict]
        cells = [name, f"{kept.steps(name):,}", f"{1000 * kept.seconds[name]:.0f}", *distances, *minus]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(kept: Kept, names: list[str], file: Path) -> None:
    """The distance against images seen and against time; bars are standard errors over the seeds."""
    figure, left, right = plain_pair(
        ("training images seen, thousands", "Frechet distance"), ("minutes of training", "Frechet distance")
    )
    for (name, colour), axes in itertools.product(zip(names, itertools.cycle(PALETTE), strict=False), (left, right)):
        moments = list(zip(*kept.of(name), strict=True))
        found = [estimate([point["fd"] for point in at_moment]) for at_moment in moments]
        key, unit = ("images", 1000.0) if axes is left else ("seconds", 60.0)
        axes.errorbar(
            [statistics.fmean(point[key] for point in at_moment) / unit for at_moment in moments],
            [each.mean for each in found],
            yerr=[each.error or 0.0 for each in found],
            fmt="o-",
            color=colour,
            linewidth=1.6,
            markersize=4,
            capsize=3,
            label=name,
        )
    for axes in (left, right):
        axes.set_yscale("log")
        plain_numbers(axes, log_y=True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    save_figure(figure, file)


def main(
    minutes: Annotated[float, typer.Option(min=0.01, help="Wall time of each training.")] = 10.0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per method.")] = 3,
    num_images: Annotated[int, typer.Option(min=10, help="Images that a model is scored with, at each moment.")] = 500,
    points: Annotated[Path, typer.Option(help="File that keeps the finished trainings.")] = Path("less-training.json"),
    picture: Annotated[Path, typer.Option(help="File of the picture.")] = Path("less-training.png"),
) -> None:
    """Prints one table and draws one picture."""
    try:
        project = Trainings(num_images)
        setup: dict[str, Any] = {"minutes": minutes, "seeds": seeds, "num_images": num_images}
        setup |= {"methods": METHODS, "project": project.project.digest}
        kept = Kept(points, setup)
        time_all(project, kept)
        train_all(project, kept, METHODS)
        together = best_pair(kept)
        train_all(project, kept, {together: PAIRS[together]})
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
    names = [*METHODS, together]
    print(f"\n{minutes:g} minutes per training, {seeds} seeds, {project.project.tokens} tokens, {num_images} samples\n")
    print(table(kept, names))
    draw(kept, names, picture)


if __name__ == "__main__":
    typer.run(main)
