"""Successive halving (arXiv 1502.07943) of candidate schedules, whose trainings go on from one shared start.

A short training says little of an offset when most of it is spent on learning to denoise at all. That part is shared here: one training along
the schedule of params.yaml, from whose checkpoint each candidate goes on along its own schedule. A candidate of the better half is continued
from its own checkpoint, exactly as if it had been longer from the beginning.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sfd.generation.model import DiffusionModel
from sfd.params import Params, candidate_values
from sfd.tracking import Run
from sfd.tuning.evaluator import CandidateEvaluator
from sfd.tuning.queue import Queue, run
from sfd.tuning.rounds import HALVING, Round, rounds_of
from sfd.tuning.trials import Trials, work_folder
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna import Trial

CHECKPOINT = "checkpoint.pt"
"""What :func:`sfd.training.loop.train` leaves in its work folder."""


class WarmStarts:
    """Trainings that share their start. They are kept in ``folder``, so that they go on; whoever lacks one makes it again, with the same bytes."""

    def __init__(self, params: Params, evaluator: CandidateEvaluator, folder: Path) -> None:
        assert params.tune.halving is not None
        self.params, self.evaluator, self.folder = params, evaluator, folder
        self.base_steps = params.tune.halving.base_steps

    def model(self, candidate: Params, name: str, steps: int) -> DiffusionModel:
        """The model that was trained for ``steps`` steps along the candidate's schedule after the shared start. ``name``: of its folder."""
        own = self.folder / name
        own.mkdir(parents=True, exist_ok=True)
        with FileLock(own.with_suffix(".lock")):
            if not (own / CHECKPOINT).is_file():
                fresh = own / "start.part"
                shutil.copyfile(self._base() / CHECKPOINT, fresh)
                fresh.replace(own / CHECKPOINT)
            return self._train(candidate, self.base_steps + steps, own)

    def _base(self) -> Path:
        """The folder of the finished shared start."""
        base = self.folder / "base"
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base.with_suffix(".lock")):
            self._train(self.params, self.base_steps, base)
        return base

    def _train(self, params: Params, num_steps: int, folder: Path) -> DiffusionModel:
        """The rate does not fall, because a training that may go on must not depend on where it ends."""
        changes = {"num_steps": num_steps, "decay": "constant", "decay_start": None, "more_ema_decays": ()}
        training = params.diffusion.training.model_copy(update=changes)
        diffusion = params.diffusion.model_copy(update={"training": training})
        return self.evaluator.train(params.model_copy(update={"diffusion": diffusion}), self.params.seed, folder)


class HalvingTrials(Trials):
    """A trial is the training of one candidate up to the end of one round."""

    def __init__(
        self, workspace: Workspace, params: Params, evaluator: CandidateEvaluator, queue: Queue, parent: str | None
    ) -> None:
        study_id = queue.study.user_attrs["id"]
        super().__init__(workspace, params, evaluator, study_id, parent)
        self.queue = queue
        self.starts = WarmStarts(params, evaluator, work_folder(workspace, study_id))

    def settled(self, proposed: Mapping[str, Any]) -> dict[str, Any]:
        """A candidate is sampled along its own schedule."""
        return candidate_values(self.params, dict(proposed))

    def model(self, trial: "Trial", candidate: Params, _folder: Path, run: Run) -> DiffusionModel:
        """Continues the candidate's training; the trial's attributes keep the round."""
        slot = trial.user_attrs["slot"]
        current = next(each for each in reversed(rounds_of(self.queue.study)) if each.first_slot <= slot)
        number = current.candidates[slot - current.first_slot]
        for key, value in {"round": current.place, "candidate": number, "steps": current.steps}.items():
            trial.set_user_attr(key, value)
            run.log_params({f"halving.{key}": value})
        return self.starts.model(candidate, f"candidate-{number:03d}", current.steps)


def run_rounds(queue: Queue, trials: HalvingTrials, deadline: float) -> None:
    """Runs all rounds, together with other workers, until the last one is over, or the deadline has passed, or others must go on first."""
    while time.monotonic() < deadline:
        current = rounds_of(queue.study)
        enqueue(queue, current)
        run(queue, trials, deadline)
        reached = rounds_of(queue.study)
        if (reached[-1].last and reached[-1].over) or len(reached) == len(current):
            return


def enqueue(queue: Queue, rounds: list[Round]) -> None:
    """Enqueues every training of these rounds that is not there yet, or was interrupted."""
    candidates = queue.study.user_attrs[HALVING]["candidates"]
    starts = [candidates[number] for each in rounds for number in each.candidates]
    queue.extend(len(starts), starts)
