"""What goes on beside the steps of a training: the checkpoint is written, and the data are checked."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.params import TrainingParams, TrainingRuntime
from sfd.seeding import generator
from sfd.training.loop import Trained, check_nothing, log_nothing, train

LONG_S = 60.0
"""Nothing here takes so long, unless two things wait for one another."""


class Numbers:
    """One number per sample: 0, 1, 2, ..."""

    def __len__(self) -> int:
        return 37

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.float32)[:, None] / 37.0


class LineTask:
    """A network of one layer. ``begun`` has an event for each step, which is set when that step begins; the first one is step 1."""

    purpose = "line"

    def __init__(self) -> None:
        self.network, self.dataset = nn.Linear(1, 3), Numbers()
        with torch.no_grad():
            self.network.weight.fill_(0.5)
            self.network.bias.zero_()
        self.weights = {"square": 1.0}
        self.begun = {step: threading.Event() for step in range(1, 100)}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        self.begun[step + 1].set()
        return torch.randn(batch_size, 3, generator=generator(0, "line/step", step, device), device=device)

    def losses(self, network: nn.Module, data: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return {"square": (network(data) - noise).square().mean()}


def run(task: LineTask, num_steps: int, work: Path, every: int = 1000, check: Any = check_nothing) -> Trained:
    work.mkdir(parents=True, exist_ok=True)
    fields = {"batch_size": 8, "learning_rate": 1e-2, "ema_decay": 0.9, "precision": "fp32", "num_steps": num_steps}
    runtime = TrainingRuntime(checkpoint_every=every, log_every=5)
    return train(task, TrainingParams.model_validate(fields), 0, work, "a", log_nothing, runtime, check=check)


def state_of(work: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(work / "checkpoint.pt", weights_only=True)
    return state


class SlowDisk:
    """Replaces ``torch.save``: each file waits until a step has begun. ``wrote``: steps of the files that were written."""

    def __init__(self, task: LineTask, behind: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.task, self.behind, self.save = task, behind, torch.save
        self.wrote: list[int] = []
        self.at_work = self.most_at_work = 0
        monkeypatch.setattr(torch, "save", self)

    def __call__(self, content: dict[str, Any], stream: Any) -> None:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        event = self.task.begun[content["step"] + self.behind]
        assert content["step"] + self.behind > 12 or event.wait(LONG_S), "the steps waited for the disk"
        self.save(content, stream)
        self.wrote.append(content["step"])
        self.at_work -= 1


def test_steps_go_on_while_a_checkpoint_is_written_which_holds_the_state_of_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = LineTask()
    kept: list[dict[str, Any]] = []
    disk = SlowDisk(task, 3, monkeypatch)
    monkeypatch.setattr(
        os, "fsync", lambda number: kept.append(torch.load(f"/proc/self/fd/{number}", weights_only=True))
    )
    run(task, 12, tmp_path / "beside", every=4)
    monkeypatch.undo()
    assert disk.wrote == [4, 8, 12] and disk.most_at_work == 1
    for state, step in zip(kept, (4, 8, 12), strict=True):
        run(LineTask(), step, tmp_path / str(step))
        expected = state_of(tmp_path / str(step))
        assert state["step"] == expected["step"] == step and state["curve"] == expected["curve"][: len(state["curve"])]
        for part in ("network", "averaged"):
            assert all(torch.equal(state[part][name], value) for name, value in expected[part].items())
        for name, moments in expected["optimizer"]["state"].items():
            assert all(torch.equal(state["optimizer"]["state"][name][key], value) for key, value in moments.items())


def test_the_next_checkpoint_waits_for_the_one_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = LineTask()
    disk = SlowDisk(task, 1, monkeypatch)
    run(task, 12, tmp_path, every=1)
    assert disk.wrote == list(range(1, 13)) and disk.most_at_work == 1


def test_an_error_of_the_disk_ends_the_training_with_its_reason_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(LineTask(), 4, tmp_path)
    task, save = LineTask(), torch.save

    def full(content: dict[str, Any], stream: Any) -> None:
        save(content, stream)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        UserError, match=r"^line: the checkpoint of step 6 cannot be written .*the checkpoint before it is kept"
    ):
        run(task, 90, tmp_path, every=6)
    assert state_of(tmp_path)["step"] == 4 and [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert not task.begun[13].is_set(), "it noticed no later than the next checkpoint"


def test_any_other_error_of_the_writer_ends_the_training_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_content: object, _stream: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(ZeroDivisionError):
        run(LineTask(), 12, tmp_path, every=12)


# --- the check of the data ---


def test_the_first_steps_do_not_wait_for_the_check_of_the_data_and_the_first_checkpoint_does(tmp_path: Path) -> None:
    task, seen = LineTask(), []

    def check() -> None:
        assert task.begun[3].wait(LONG_S), "the steps waited for the check"
        seen.append((tmp_path / "checkpoint.pt").exists())

    run(task, 6, tmp_path, every=3, check=check)
    assert seen == [False] and state_of(tmp_path)["step"] == 6


def test_data_that_are_damaged_stop_the_training_and_reach_no_checkpoint(tmp_path: Path) -> None:
    task = LineTask()

    def check() -> None:
        task.begun[2].wait(LONG_S)
        raise UserError("shard 3 is damaged; rerun the stage that writes it")

    with pytest.raises(UserError, match="shard 3 is damaged"):
        run(task, 90, tmp_path, every=4, check=check)
    assert not (tmp_path / "checkpoint.pt").exists() and not task.begun[5].is_set()


def test_a_loss_that_is_not_finite_is_told_with_its_reason_if_that_is_damaged_data(tmp_path: Path) -> None:
    class Damaged(Numbers):
        def __getitems__(self, indices: list[int]) -> Tensor:
            return super().__getitems__(indices) * torch.nan

    task, late = LineTask(), threading.Event()
    task.dataset = Damaged()

    def check() -> None:
        late.wait(0.5)  # nobody sets it: the loss is seen first
        raise UserError("shard 3 is damaged; rerun the stage that writes it")

    with pytest.raises(UserError, match="shard 3 is damaged"):
        run(task, 90, tmp_path, check=check)
    with pytest.raises(UserError, match="the loss is not finite at step 1"):
        run(task, 90, tmp_path)


def test_a_training_that_is_finished_checks_nothing(tmp_path: Path) -> None:
    run(LineTask(), 3, tmp_path)

    def check() -> None:
        raise UserError("not asked for")

    run(LineTask(), 3, tmp_path, check=check)
