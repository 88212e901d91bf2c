"""What stages share that train a network."""

from typing import Any

from sfd.errors import UserError
from sfd.params import TrainingParams, TrainingRuntime
from sfd.pipeline.finished import keep, take_up
from sfd.pipeline.stage import Stage
from sfd.training.curves import write_curve
from sfd.training.loop import Task, Trained, train


def train_stage(task: Task[Any, Any], params: TrainingParams | None, runtime: TrainingRuntime, stage: Stage) -> Trained:
    """Trains in the stage's work folder and writes the loss curve to its result."""
    if params is None:
        raise UserError(f"{stage.name}.training is missing")
    take_up(stage)
    trained = train(task, params, stage.params.seed, stage.work, stage.mark, stage.log, runtime)
    keep(stage)
    stage.log_artifacts(*write_curve(stage.out, trained.curve))
    return trained
