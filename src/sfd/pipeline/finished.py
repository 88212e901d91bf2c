"""A finished training goes on when its number of steps is raised: what is kept of it beside its result, which DVC deletes before a rerun.

Each stage that trains keeps its last training in ``.sfd/finished/STAGE``: the checkpoint, the sample grids, the weights that were kept
on the way, and the facts that it was made from.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sfd.network_files import link
from sfd.pipeline.inputs import Facts, first_change, needs_length, num_steps, with_steps
from sfd.pipeline.stage import Stage
from sfd.processes import barrier, rank

FACTS, CHECKPOINT = "facts.json", "checkpoint.pt"
GRIDS, STEPS = "grids", "steps"
"""Folders of a result with one entry per step: pictures, and folders of weights."""


def entry(step: int) -> str:
    """The name of a step's entry, without an ending; in order of name is in order of steps."""
    return f"step-{step:07d}"


def step_of(path: Path) -> int:
    """Inverse of :func:`entry`."""
    return int(path.stem.removeprefix("step-"))


def take_up(stage: Stage, grid_every: int = 1) -> None:
    """Puts the finished training into the stage's work folder, if it can go on from there, and says so; else says why it cannot.

    What the stage is at work on already comes first. All processes must call it. ``grid_every``: grids of other steps are left out; a
    training of the whole length would not have drawn the one at the end of the first part.
    """
    folder = stage.finished
    if rank() == 0 and not (stage.work / CHECKPOINT).is_file() and (folder / FACTS).is_file():
        before: Facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        now: Facts = json.loads(json.dumps(stage.facts))  # as `before` was written
        done, wanted = num_steps(before), num_steps(now)
        obstacle = _obstacle(before, now)
        if obstacle is None:
            _link_entries(folder / GRIDS, stage.out / GRIDS, lambda step: step % grid_every == 0)
            for name in _kept_weights(folder):
                _link_entries(folder / name, stage.out / name, lambda _step: True)
            link(folder / CHECKPOINT, stage.work / CHECKPOINT)  # last: once it is there, the rest is
            _log_again(stage)
            print(
                f"{stage.name}: goes on after step {done:,} of the finished training in {folder}; remove that folder to start from the beginning",
                file=sys.stderr,
            )
        elif wanted > done:
            print(
                f"{stage.name}: the finished training of {done:,} steps cannot go on to {wanted:,}, because {obstacle}; it is trained anew",
                file=sys.stderr,
            )
    if rank() == 0:
        _drop_later(stage)
    barrier()


def _obstacle(before: Facts, now: Facts) -> str | None:
    """Why a training with the facts ``before`` cannot go on as ``now``; None if it can."""
    done, wanted = num_steps(before), num_steps(now)
    change = first_change(with_steps(before, wanted), now)
    if change:
        return change
    if done == wanted:
        return None
    if done > wanted:
        return f"num_steps is {wanted:,} now"
    return needs_length(now) or None


def keep(stage: Stage) -> None:
    """Keeps what is needed to go on, instead of the training that was kept before. Process 0 calls it before the result is published.

    Files are linked, so that they take no room twice as long as the result is there.
    """
    folder = stage.finished
    fresh = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    link(stage.work / CHECKPOINT, fresh / CHECKPOINT)
    for name in (Path(GRIDS), *_kept_weights(stage.out)):
        _link_entries(stage.out / name, fresh / name, lambda _step: True)
    (fresh / FACTS).write_text(json.dumps(stage.facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def _drop_later(stage: Stage) -> None:
    """Removes entries of steps that this training will not reach: its ``num_steps`` was lowered."""
    for name in (Path(GRIDS), *_kept_weights(stage.out)):
        for path in (stage.out / name).glob("step-*"):
            if step_of(path) > num_steps(stage.facts):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _kept_weights(result: Path) -> list[Path]:
    """The folders of weights of single steps, relative to the result: one per average of the weights."""
    return [folder.relative_to(result) for folder in (result / STEPS, *sorted(result.glob(f"averages/*/{STEPS}")))]


def _log_again(stage: Stage) -> None:
    """The curve of the first part, to the run of this one."""
    for row in torch.load(stage.work / CHECKPOINT, map_location="cpu", weights_only=True, mmap=True)["curve"]:
        stage.log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))


def _link_entries(source: Path, target: Path, wanted: Callable[[int], bool]) -> None:
    for path in sorted(source.glob("step-*")):
        if wanted(step_of(path)):
            for file in [path] if path.is_file() else sorted(path.iterdir()):
                place = target / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                link(file, place)
