"""A finished training that goes on when its number of steps is raised: bit-equal to a longer one, or one line says why not."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import REPOSITORY
from torch import Tensor, nn

from sfd.pipeline.inputs import continuable, judge_facts, needs_length
from sfd.pipeline.stage import stage
from sfd.pipeline.training import train_stage
from sfd.seeding import generator

TRAINING = {"batch_size": 8, "decay": "constant", "warmup_steps": 3, "ema_decay": 0.9, "num_steps": 13}
RUNTIME = {"log_every": 5, "checkpoint_every": 4}


class Numbers:
    """One number per sample: 0, 1, 2, ..."""

    def __len__(self) -> int:
        return 37

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.float32)[:, None]


class LineTask:
    """A network of one layer; counts its steps, and can be interrupted."""

    purpose = "line"

    def __init__(self, stop_at: int | None = None) -> None:
        self.network, self.dataset, self.weights = nn.Linear(1, 3), Numbers(), {"square": 1.0}
        self.steps: list[int] = []
        self.stop_at = stop_at
        for parameter in self.network.parameters():
            nn.init.constant_(parameter, 0.5)

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        return torch.randn(batch_size, 3, generator=generator(0, "line/step", step, device), device=device)

    def losses(self, network: nn.Module, data: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return {"square": (network(data / 37.0) - noise).square().mean()}


class Result:
    """What a training left, and which steps it took."""

    def __init__(self, task: LineTask, averaged: dict[str, Tensor], curve: bytes) -> None:
        self.steps = task.steps
        self.raw = {name: value.clone() for name, value in task.network.state_dict().items()}
        self.averaged, self.curve = averaged, curve

    def equals(self, other: "Result") -> bool:
        pairs = [(self.raw, other.raw), (self.averaged, other.averaged)]
        same = all(torch.equal(one[name], another[name]) for one, another in pairs for name in one)
        return same and self.curve == other.curve


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    enter(tmp_path / "project", monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty project, as the current folder."""
    folder.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", folder)
    monkeypatch.chdir(folder)


def train(stop_at: int | None = None, **changes: Any) -> Result:
    """Stage `judge` with a training of this file's own."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["judges"][0]["training"] |= TRAINING | {key: value for key, value in changes.items() if key not in RUNTIME}
    tree["runtime"]["judge"] |= RUNTIME | {key: value for key, value in changes.items() if key in RUNTIME}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    task = LineTask(stop_at)
    shutil.rmtree("results/judge", ignore_errors=True)  # as DVC does
    with stage("judge", upstream=()) as s:
        part = replace(s, part="digits_judge", facts=judge_facts(s.facts, 0))
        for place in (part.work, part.out):
            place.mkdir(parents=True, exist_ok=True)
        trained = train_stage(task, s.params.first_judge.training, s.params.runtime.judge, part)
    averaged = {name: value.clone() for name, value in trained.network.state_dict().items()}
    return Result(task, averaged, Path("results/judge/digits_judge/curves.csv").read_bytes())


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("judge:")]


def test_with_more_steps_it_goes_on_and_ends_with_the_bytes_of_one_training_of_that_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train()
    assert first.steps == list(range(13)) and first.curve.splitlines()[-1].startswith(b"13,")
    capsys.readouterr()
    longer = train(num_steps=26)
    (line,) = lines(capsys)
    assert line.startswith("judge: goes on after step 13 of the finished training in .sfd/finished/judge")
    assert longer.steps == list(range(13, 26))
    longest = train(num_steps=31)
    assert longest.steps == list(range(26, 31))
    enter(tmp_path / "at once", monkeypatch)
    assert longest.equals(train(num_steps=31))
    enter(tmp_path / "at once, too", monkeypatch)
    assert longer.equals(train(num_steps=26)) and not longer.equals(longest)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decay": "cosine"}, "the learning rate of `decay: cosine` depends on num_steps"),
        ({"learning_rate": 0.5}, "`judge.training.learning_rate` in params.yaml changed from 0.001 to 0.5"),
    ],
)
def test_where_it_cannot_go_on_one_line_says_why_and_it_starts_over(
    changes: dict[str, Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(**changes if "decay" in changes else {})
    capsys.readouterr()
    longer = train(num_steps=26, **changes)
    (line,) = lines(capsys)
    assert line.startswith("judge: the finished training of 13 steps cannot go on to 26, because ") and reason in line
    assert line.endswith("it is trained anew")
    assert longer.steps == list(range(26))
    enter(tmp_path / "at once", monkeypatch)
    assert longer.equals(train(num_steps=26, **changes))


def test_a_changed_option_alone_starts_over_as_always(capsys: pytest.CaptureFixture[str]) -> None:
    train()
    capsys.readouterr()
    assert train(learning_rate=0.5).steps == list(range(13)) and lines(capsys) == []


def test_a_result_that_was_published_and_not_recorded_is_not_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    first = train(decay="cosine")
    capsys.readouterr()
    again = train(decay="cosine")
    assert again.steps == [] and again.averaged.keys() == first.averaged.keys() and again.equals(first)
    assert "goes on after step 13" in lines(capsys)[0]


def test_an_interrupted_training_goes_on_to_more_steps_too_and_to_fewer_if_it_has_not_passed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(stop_at=10)
    assert not Path("results/judge").exists()
    longer = train(num_steps=26)
    assert longer.steps == list(range(8, 26))
    enter(tmp_path / "at once", monkeypatch)
    assert longer.equals(train(num_steps=26))
    enter(tmp_path / "fewer", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(stop_at=10)
    fewer = train(num_steps=9)
    assert fewer.steps == [8]
    enter(tmp_path / "passed", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(stop_at=10)
    assert train(num_steps=5).steps == list(range(5))


def test_runtime_options_may_change_between_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    longer = train(num_steps=26, log_every=2, checkpoint_every=7)
    enter(tmp_path / "at once", monkeypatch)
    whole = train(num_steps=26, log_every=2)
    assert all(torch.equal(longer.averaged[name], value) for name, value in whole.averaged.items())


@pytest.mark.parametrize(
    ("sparse", "reason"),
    [
        (None, ""),
        ({"full_token_steps": 0}, ""),
        ({"full_token_steps": 5}, "the last `sparse_deep.full_token_steps` are counted from num_steps"),
    ],
)
def test_a_training_whose_last_steps_differ_depends_on_its_length(sparse: dict[str, int] | None, reason: str) -> None:
    facts = {"stage": "diffusion", "params": {"diffusion": {"training": {"decay": "constant"}, "sparse_deep": sparse}}}
    assert needs_length(facts) == reason
    assert continuable(facts) == (reason == "")
