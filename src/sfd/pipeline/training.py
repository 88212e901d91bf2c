"""What stages share that train a network."""

from collections.abc import Callable, Sequence
from typing import Any

from sfd.data.shards import ShardReader
from sfd.errors import UserError
from sfd.params import TrainingParams, TrainingRuntime
from sfd.pipeline.finished import keep, take_up
from sfd.pipeline.stage import Stage
from sfd.processes import rank, world_size
from sfd.training.curves import write_curve
from sfd.training.loop import Task, Trained, check_nothing, train
from sfd.workspace import Workspace


def check_shards(workspace: Workspace, name: str, readers: Sequence[ShardReader[Any]]) -> None:
    """Checks this process's share of the shards that stage ``name`` left; each is read for that once, and not by every training.

    Raises :class:`UserError` naming a shard that is damaged.
    """
    for reader in readers:
        reader.check(rank(), world_size(), workspace.checked(name))


def train_stage(
    task: Task[Any, Any],
    params: TrainingParams | None,
    runtime: TrainingRuntime,
    stage: Stage,
    check: Callable[[], None] = check_nothing,
) -> Trained:
    """Trains in the stage's work folder and writes the loss curve to its result. ``check``: as in :func:`sfd.training.loop.train`."""
    if params is None:
        raise UserError(f"{stage.name}.training is missing")
    take_up(stage)
    trained = train(task, params, stage.params.seed, stage.work, stage.mark, stage.log, runtime, check=check)
    keep(stage)
    stage.log_artifacts(*write_curve(stage.out, trained.curve))
    return trained
