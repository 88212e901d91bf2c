"""The answer about tau: should semantics lead texture, by how much, and is a learnt curve better? With error bars, on real pictures.

    python benchmarks/answer.py --out answer                          # the digits, with the encoder that the graph trains
    python benchmarks/answer.py --out answer --data digits --data emoji64 --encoder train --encoder package
    python benchmarks/answer.py --out answer --dry-run                # the points that are left, and the hours that they take
    python benchmarks/answer.py --out answer --report                 # the table and the picture of all that is finished there

`emoji64` is a folder of class folders, of 64 pixels; `python benchmarks/emoji64.py emoji64` makes one. It needs the extra `offline`.

- Everything before the trainings is done once: a project in ``OUT/COMBINATION/projects``, and copies of it for the points that need other
  latents, in which only those stages run that differ.
- All trainings have the same number of steps: ``--steps``, or as many as take ``--minutes`` for `sync`. Those of a seed see the same images,
  noise and times. The learning rate is constant, so that a moment on the way is what a shorter training gives.
- The distance is that of samples from all training images, by both judges; the class accuracy is the mean over the classes.
- Each finished training is one JSON file in ``OUT/COMBINATION/points``. Stopped (Ctrl-C, SIGTERM, killed) and started again, the same command
  goes on; a training goes on within itself.
- Started twice, the two share the trainings. Networks as small as these train at the same speed on one core as on two, so on two cores start
  ``OMP_NUM_THREADS=1 python benchmarks/answer.py ...`` twice, with ``--steps``.
"""

import ctypes
import fcntl
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from answer_points import (
    BASE,
    DIGITS,
    ENCODERS,
    POINTS,
    ROUNDS,
    SYNC,
    TAUS,
    TUNED,
    VARIANTS,
    Budget,
    Values,
    offset,
    parse_values,
    point_params,
    project_params,
)
from answer_report import Finished, write_report
from trainings import Trainings, save_json

from sfd.data.manifest import HELDOUT
from sfd.errors import UserError
from sfd.names import distance_name
from sfd.params import Params, dump_params
from sfd.pipeline.inputs import check_current
from sfd.processes import terminable
from sfd.scaffold import make_project
from sfd.workspace import Workspace

STAGES = ("prepare", "encoder", "texture_vae", "judge", "features", "semantic", "latents", "schedule", "reference")
"""What comes before the trainings. A schedule that is given needs no stage."""
IN_ONE_PROCESS = "import runpy, sys\nfor name in sys.argv[1:]: runpy.run_path(f'stages/{name}.py')"
LOOKS = 8
PROBE_SHARE, LEAST_PROBE = 20, 400
"""The probe of the learnt schedule has one step in so many of a training's, and at least so many."""
SEARCH_SEED = 1000
"""Of the trainings of the search; no point has it."""


class Combination:
    """One data set with one encoder: its projects, its budget, and its finished points."""

    def __init__(self, out: Path, data: str, encoder: str, setup: Values) -> None:
        """Raises :class:`UserError` if ``out`` holds another setup."""
        self.name = f"{Path(data).name}-{encoder}"
        self.folder, self.data, self.encoder = out / self.name, data, encoder
        self.setup = setup | {"data": data if data == DIGITS else str(Path(data).resolve()), "encoder": encoder}
        self._trainings: dict[str, Trainings] = {}
        file = self.folder / "setup.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            differ = [f"{key}: {found.get(key)} there" for key in self.setup if found.get(key) != self.setup[key]]
            if differ:
                raise UserError(f"{self.folder} holds another setup ({', '.join(differ)}): name another --out")

    def begin(self) -> None:
        """Notes the setup."""
        save_json(self.folder / "setup.json", self.setup)

    def file(self, point: str, seed: int) -> Path:
        """Where a finished training is kept."""
        return self.folder / "points" / f"{point}-seed-{seed}.json"

    def left(self, points: Sequence[str], seeds: int) -> list[tuple[str, int]]:
        """The trainings that are not finished, seed by seed."""
        return [(point, seed) for seed in range(seeds) for point in points if not self.file(point, seed).is_file()]

    def workspace(self, variant: str) -> Workspace:
        """The project of a variant."""
        return Workspace(self.folder / "projects" / variant)

    def steps(self) -> int | None:
        """Of each training; None if they are not known yet."""
        if self.setup["steps"] is not None:
            return int(self.setup["steps"])
        file = self.folder / "budget.json"
        return int(json.loads(file.read_text(encoding="utf-8"))["steps"]) if file.is_file() else None

    def params(self, variant: str) -> Params:
        """The parameters of a project."""
        probe = max(LEAST_PROBE, (self.steps() or 0) // PROBE_SHARE)
        return project_params(self.data, self.encoder, variant, probe, self.setup["set"])

    def locked(self, name: str, wait: bool) -> AbstractContextManager[int | None]:
        """As :func:`locked`, for a part of the work."""
        return locked(self.folder / "locks" / name, wait)

    def budget(self) -> Budget:
        """What each training has; of an equal time, the steps are found by timing `sync`."""
        looks = self.setup["looks"]
        with self.locked("budget", wait=True):
            steps = self.steps()
            if steps is None:
                params = self.point(SYNC, Budget(looks, looks, self.setup["num_images"]), {})
                seconds = self.trainings(BASE).seconds_per_step(params)
                steps = looks * max(1, int(60.0 * self.setup["minutes"] / seconds / looks))
                save_json(self.folder / "budget.json", {"seconds_per_step": seconds, "steps": steps})
        return Budget(steps, looks, self.setup["num_images"])

    def point(self, point: str, budget: Budget, found: Values) -> Params:
        """The parameters of a training."""
        return point_params(self.params(POINTS[point].variant), point, budget, found)

    def trainings(self, variant: str) -> Trainings:
        """What the trainings of a variant share, after the stages before them."""
        if variant not in self._trainings:
            self.prepare(variant)
            params = point_params(self.params(variant), TUNED, Budget(LOOKS, LOOKS, self.setup["num_images"]), {})
            self._trainings[variant] = Trainings(self.workspace(variant), params, "answer")
        return self._trainings[variant]

    def prepare(self, variant: str) -> None:
        """Makes the project, and runs those of its stages that are missing or out of date. Waits for another process that does so."""
        with self.locked("projects", wait=True) as lock:
            assert lock is not None  # it has waited
            self._prepare(variant, lock)

    def _prepare(self, variant: str, lock: int) -> None:
        """``lock``: an open file that the programs hold that this one starts."""
        workspace, params, copied = self.workspace(variant), self.params(variant), VARIANTS[variant].copied
        if not workspace.root.is_dir():
            if copied is not None:
                self._prepare(copied, lock)
            _make(workspace.root, params, None if copied is None else self.workspace(copied).root)
        if workspace.load_params() != params:
            workspace.params_file.write_text(dump_params(params), encoding="utf-8")
        names = [name for name in STAGES if name != "schedule" or VARIANTS[variant].learns_schedule]
        stale = [name for name in names if not _is_current(workspace, name, params)]
        if stale:
            # Whatever reads the first of them is out of date as well.
            first = names.index(stale[0])
            chosen = [name for name in names[first:] if name in stale or _reads(name, stale)]
            print(f"{self.name}: project {variant}: {', '.join(chosen)}", flush=True)
            _run([sys.executable, "-c", IN_ONE_PROCESS, "scan", *chosen], workspace.root, lock)

    def search(self, budget: Budget) -> Values:
        """The offset that successive halving finds: short trainings of all candidates, and longer ones of the better half, three times.

        Each goes on where it was. They are scored against the held-out images, which no point is compared with.
        """
        file = self.folder / "search.json"
        found: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        taus: list[float] = list(TAUS)
        for share, number in ROUNDS:
            taus = taus[:number]
            steps = max(1, int(budget.steps * share))
            row = found.setdefault(str(steps), {})
            for tau in taus:
                if f"{tau:g}" not in row:
                    row[f"{tau:g}"] = self._candidate(tau, Budget(steps, 1, budget.num_images))
                    save_json(file, found)
                    print(f"{self.name}: search, tau {tau:g}, {steps:,} steps: FD {row[f'{tau:g}']:.3f}", flush=True)
            taus.sort(key=lambda tau: row[f"{tau:g}"])
        shutil.rmtree(self.folder / "search", ignore_errors=True)
        return offset(taus[0])

    def _candidate(self, tau: float, budget: Budget) -> float:
        params = self.point(TUNED, budget, offset(tau))
        work = self.folder / "search" / f"tau-{tau:g}"
        work.mkdir(parents=True, exist_ok=True)
        return self.trainings(BASE).run(params, SEARCH_SEED, work, HELDOUT)[-1]["fd"]

    def run(self, point: str, seed: int) -> bool:
        """One training, from where it was stopped, to its file. False: another process is at it, or at the search that it needs."""
        self.prepare(BASE)
        budget = self.budget()
        with self.locked(f"{point}-seed-{seed}", wait=False) as lock:
            if lock is None:
                return False
            if self.file(point, seed).is_file():
                return True
            found: Values = {}
            if point == TUNED:
                with self.locked("search", wait=False) as searching:
                    if searching is None:
                        return False
                    found = self.search(budget)
            self._train(point, seed, budget, found)
        return True

    def _train(self, point: str, seed: int, budget: Budget, found: Values) -> None:
        params, trainings = self.point(point, budget, found), self.trainings(POINTS[point].variant)
        work = self.folder / "work" / f"{point}-seed-{seed}"
        work.mkdir(parents=True, exist_ok=True)
        others = [judge.name for judge in trainings.evaluator.judges[1:]]
        looks = trainings.run(params, seed, work, others=others, kept=work / "looks.json")
        content = {
            "point": point,
            "seed": seed,
            "steps": budget.steps,
            "num_images": budget.num_images,
            "schedule": params.schedule.model_dump(mode="json"),
            "judges": [distance_name(judge.name) for judge in trainings.evaluator.judges],
            "floors": trainings.floors(HELDOUT),
            "texture_vae": _quality(self.workspace(POINTS[point].variant)),
            "looks": looks,
        }
        save_json(self.file(point, seed), content)
        shutil.rmtree(work)

    def tidy(self) -> None:
        """Removes the work folders of trainings that were stopped after their file was written."""
        for folder in (self.folder / "work").glob("*"):
            with self.locked(folder.name, wait=False) as lock:
                if lock is not None and (self.folder / "points" / f"{folder.name}.json").is_file():
                    shutil.rmtree(folder)


def _quality(workspace: Workspace) -> Any:
    return json.loads((workspace.result("texture_vae") / "quality.json").read_text(encoding="utf-8"))


def _make(folder: Path, params: Params, copied: Path | None) -> None:
    """A new project; with the results of another one, if it is given. It is whole or not there."""
    fresh = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    make_project(fresh, "answer", {"params.yaml": dump_params(params)}, with_git=False)
    if copied is not None:
        shutil.copytree(copied / "results", fresh / "results")
    fresh.rename(folder)


def _is_current(workspace: Workspace, name: str, params: Params) -> bool:
    try:
        check_current(workspace, [name], params)
    except UserError:
        return False
    return True


def _reads(name: str, stale: Sequence[str]) -> bool:
    """Whether a stage reads one of those, at first or second hand."""
    from sfd.pipeline.inputs import STAGES as GRAPH

    upstream = GRAPH[name].upstream
    return any(each in stale or _reads(each, stale) for each in upstream)


def _run(command: list[str], folder: Path, lock: int) -> None:
    """Runs a program that ends when this one does, however that ends. Raises :class:`UserError` if it fails."""

    def die_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    process = subprocess.Popen(command, cwd=folder, pass_fds=[lock], preexec_fn=die_with_parent)
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status:
        raise UserError(f"a stage of {folder} failed with status {status}; what it printed says why")


@contextmanager
def locked(file: Path, wait: bool) -> Iterator[int | None]:
    """An open file, locked: whoever else did this part of the work has ended, with the programs that it started.

    None: another process is at it, and this one is not to wait.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield None
                return
            print(f"another process works on {file.name}; waiting for its end", flush=True)
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened.fileno()


def plan(combinations: Sequence[Combination], points: Sequence[str], seeds: int) -> str:
    """The trainings that are left, and their hours. Measuring, and what comes before the trainings, are not in them."""
    lines, total = ["| combination | point | what it is | seeds left | hours |", "|---|---|---|---|---|"], 0.0
    is_timed = True
    for each in combinations:
        left, minutes = each.left(points, seeds), _minutes(each)
        for point in points:
            number = sum(1 for name, _ in left if name == point)
            hours = None if minutes is None else number * minutes / 60.0
            total += hours or 0.0
            is_timed &= hours is not None
            shown = "not timed yet" if hours is None else f"{hours:.2f}"
            lines.append(f"| {each.name} | {point} | {POINTS[point].meaning} | {number} | {shown} |")
        if TUNED in points and not (each.folder / "search.json").is_file():
            hours = None if minutes is None else search_cost() * minutes / 60.0
            total += hours or 0.0
            lines.append(
                f"| {each.name} | | the search for `{TUNED}` | | {'not timed yet' if hours is None else f'{hours:.2f}'} |"
            )
    end = (
        f"{total:.1f} hours of training are planned"
        if is_timed
        else "hours are known once a step was timed, or with --minutes"
    )
    return "\n".join([*lines, "", end])


def search_cost() -> float:
    """Of the search, in trainings of a point: every round goes on where the one before was."""
    before, cost = 0.0, 0.0
    for share, number in ROUNDS:
        cost, before = cost + number * (share - before), share
    return cost


def _minutes(each: Combination) -> float | None:
    """Of one training; None if it is not known yet."""
    if each.setup["steps"] is None:
        return float(each.setup["minutes"])
    known = [finished.looks[-1]["seconds"] for finished in read_finished(each.folder)]
    return sum(known) / len(known) / 60.0 if known else None


def run_all(combinations: Sequence[Combination], points: Sequence[str], seeds: int) -> None:
    """All trainings that are left, seed by seed; those that another process is at are left to it."""
    for each in combinations:
        each.tidy()
    for seed in range(seeds):
        for each in combinations:
            for point, number in each.left(points, seeds):
                if number != seed or each.file(point, seed).is_file():
                    continue
                if not each.run(point, seed):
                    print(f"{each.name}: {point}, seed {seed}: another process is at it", flush=True)
                    continue
                last = json.loads(each.file(point, seed).read_text(encoding="utf-8"))["looks"][-1]
                print(
                    f"{each.name}: {point}, seed {seed}: {last['seconds'] / 60:.1f} min, FD {last['fd']:.3f}",
                    flush=True,
                )


def read_finished(folder: Path) -> list[Finished]:
    """All finished trainings of a combination's folder."""
    files = sorted((folder / "points").glob("*.json"))
    return [Finished(folder.name, json.loads(file.read_text(encoding="utf-8"))) for file in files]


def _checked(points: str | None, encoders: Sequence[str], data: Sequence[str]) -> list[str]:
    """The chosen points, in the order of the table. Raises :class:`UserError` for a name that is unknown."""
    chosen = list(POINTS) if points is None else [name.strip() for name in points.split(",")]
    for name in chosen:
        if name not in POINTS:
            raise UserError(f"--points {name}: there is no such point; choose among {', '.join(POINTS)}")
    for encoder in encoders:
        if encoder not in ENCODERS:
            raise UserError(f"--encoder {encoder}: choose {' or '.join(ENCODERS)}")
    for each in data:
        if each != DIGITS and not Path(each).is_dir():
            raise UserError(f"--data {each}: write `{DIGITS}`, or name a folder of class folders")
    return [name for name in POINTS if name in chosen]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the projects, the finished points and the report.")],
    data: Annotated[
        list[str] | None, typer.Option(help="`digits` (without it), or a folder of class folders; repeatable.")
    ] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="`train` (without it) or `package`; repeatable.")] = None,
    points: Annotated[str | None, typer.Option(help="Names, with commas between; without it all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per point.")] = 3,
    minutes: Annotated[float, typer.Option(min=0.01, help="Length of each training, without --steps.")] = 10.0,
    steps: Annotated[int | None, typer.Option(min=8, help="Steps of each training.")] = None,
    num_images: Annotated[int, typer.Option(min=10, help="Images that a model is measured with, each time.")] = 500,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value in all projects; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the points that are left, and the hours.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write the report of all that is finished in --out.")
    ] = False,
) -> None:
    """Trains what is left, and writes report.md and answer.png."""
    try:
        sources, encoders = data or [DIGITS], encoder or ["train"]
        chosen = _checked(points, encoders, sources)
        setup: Values = {"minutes": None if steps is not None else minutes, "steps": steps, "num_images": num_images}
        setup |= {"looks": LOOKS, "set": parse_values(values or [])}
        with terminable("stopped; the same command goes on"):
            if not report:
                combinations = [Combination(out, one, other, setup) for one in sources for other in encoders]
                if dry_run:
                    for each in combinations:
                        for point in chosen:
                            each.params(POINTS[point].variant)  # the rules
                    print(plan(combinations, chosen, seeds))
                    return
                with locked(out / ".lock", wait=True):
                    for each in combinations:
                        each.begin()
                run_all(combinations, chosen, seeds)
            with locked(out / ".lock", wait=True):
                print(
                    write_report(
                        [one for folder in sorted(out.glob("*")) for one in read_finished(folder)], chosen, out
                    )
                )
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None


if __name__ == "__main__":
    typer.run(main)
