"""The training loop: real processes are killed, resumed and run side by side. As a script, this file is what they run."""

import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import script_environment
from torch import Tensor, nn
from two_processes import torchrun

from sfd.data.latents import LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.errors import UserError
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.params import DiffusionTrainingParams, LossParams, Sharding, TrainingParams, TrainingRuntime
from sfd.processes import terminable
from sfd.seeding import generator
from sfd.training.diffusion import DiffusionTask
from sfd.training.heldout import HeldoutLoss
from sfd.training.loop import Callback, Trained, train
from sfd.training.rate import learning_rate

SHORT = {"batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9, "precision": "fp32", "log_every": 5}
LONG = SHORT | {"num_steps": 120, "checkpoint_every": 3, "warmup_steps": 10, "decay": "cosine"}


class RandomLatents:
    """Random latents, classes and features."""

    def __init__(self, num_samples: int) -> None:
        random = generator(0, "test/latents")
        latents = torch.randn(num_samples, 6, 4, 4, generator=random)
        features = torch.randn(num_samples, 16, 8, generator=random)
        self.all = LatentBatch(latents, torch.arange(num_samples) % 3, features)

    def __len__(self) -> int:
        return len(self.all.latents)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        return LatentBatch(*(tensor[indices] for tensor in self.all if tensor is not None))


def diffusion_task(seed: int, projector: str = "mlp", norm: str = "none") -> DiffusionTask:
    """A backbone 32 wide on 37 random latents, so that batches of 8 span epochs. ``projector``, ``norm``: of REPA."""
    parts: dict[str, Any] = {"semantic_channels": 2, "two_times": True, "repa_depth": 1, "repa_width": 16}
    parts |= {"feature_dim": 8, "repa_projector": projector}
    config = LightningDiTConfig(
        4, 6, hidden_size=32, depth=2, num_heads=2, condition=ClassCondition.numbered(3), **parts
    )
    network = LightningDiT(config).initialise(generator(seed, "test/initialisation"))
    loss = LossParams.model_validate({"repa_target_norm": norm})
    return DiffusionTask(network, RandomLatents(37), loss, OffsetSchedule(0.3), 0.1, seed)


def muon_task() -> DiffusionTask:
    """With iREPA, for trainings with Muon.

    No weight is zero at first: then early gradients would have a low rank, and Muon would make large steps of the rounding in the other
    directions.
    """
    task, random = diffusion_task(0, "conv", "tokens"), generator(0, "test/weights")
    with torch.no_grad():
        for weight in task.network.parameters():
            if weight.requires_grad:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
    return task


class Numbers:
    """One number per sample: 0, 1, 2, ..."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.float32)[:, None]


class LineTask:
    """A network of one layer with two terms of the loss; row 7 of the batch of ``bad_step`` draws ``bad_draw``."""

    purpose = "line"

    def __init__(self, bad_step: int | None = None, bad_draw: float = math.nan, seed: int = 0) -> None:
        self.network, self.dataset = nn.Linear(1, 3), Numbers(37)
        with torch.no_grad():
            self.network.weight.fill_(0.5)
            self.network.bias.zero_()
        self.weights = {"square": 1.0, "size": 0.25}
        self.bad_step, self.bad_draw, self.seed = bad_step, bad_draw, seed
        self.seen: list[dict[str, float]] = []

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        draws = torch.randn(batch_size, 3, generator=generator(self.seed, "line/step", step, device), device=device)
        if step + 1 == self.bad_step:
            draws[7] = self.bad_draw
        return draws

    def losses(self, network: nn.Module, data: Tensor, noise: Tensor) -> dict[str, Tensor]:
        output = network(data / 37.0)
        terms = {"square": (output - noise).square().mean(), "size": output.abs().mean()}
        self.seen.append({name: value.item() for name, value in terms.items()})
        return terms


class SlopeTask(LineTask):
    """The loss falls by 1 per unit of each weight, so that AdamW moves each weight by exactly the learning rate."""

    def losses(self, network: nn.Module, data: Tensor, noise: Tensor) -> dict[str, Tensor]:
        total = torch.stack([parameter.sum() for parameter in network.parameters()]).sum()
        return {"square": total, "size": 0.0 * network(data).sum() + 0.0 * noise.sum()}


class SteepTask(LineTask):
    """At ``bad_step`` the loss is finite and its gradient is not."""

    def losses(self, network: nn.Module, data: Tensor, noise: Tensor) -> dict[str, Tensor]:
        if bool((noise == self.bad_draw).any()):
            zero = (0.0 * network(data)).mean()
            return {"square": zero.sqrt(), "size": zero}
        return super().losses(network, data, noise)


class Interrupted(Exception):
    """Stands for whatever ends a training from outside, where a test needs no real kill."""


class Options(NamedTuple):
    params: TrainingParams
    runtime: TrainingRuntime

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Options":
        runtime = {key: value for key, value in fields.items() if key in TrainingRuntime.model_fields}
        params = {key: value for key, value in fields.items() if key not in runtime}
        return cls(DiffusionTrainingParams(**params), TrainingRuntime(**runtime))


def short(num_steps: int, **changes: Any) -> Options:
    return Options.of(SHORT | {"num_steps": num_steps, "checkpoint_every": 1000} | changes)


WITH_MUON = {"optimizer": "muon", "max_grad_norm": 1.0, "weight_decay": 0.1, "warmup_steps": 5}
MUON = short(12, **WITH_MUON, accumulation_steps=2, checkpoint_every=4)
TOGETHER = short(12, checkpoint_every=4)
"""What two processes train; interrupted at step 10, they go on after step 8."""


def run(
    task: Any, options: Options, work: Path, fingerprint: str = "a", stop_at: int = 0, sharding: Sharding = "ddp"
) -> Trained:
    """Trains in this process; ``stop_at`` interrupts when that step is logged."""
    work.mkdir(parents=True, exist_ok=True)

    def log(_row: dict[str, float], step: int) -> None:
        if step == stop_at:
            raise Interrupted

    return train(task, options.params, task.seed, work, fingerprint, log, options.runtime, sharding=sharding)


def weights_of(trained: Trained) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# --- what the processes run ---


def train_to_files(work: Path) -> None:
    """A training on disk: its steps as it goes on, at the end its weights and curve."""
    settings = json.loads((work / "settings.json").read_text())
    task, options = diffusion_task(settings["seed"]), Options.of(settings["params"])
    with (work / "steps.txt").open("a", buffering=1) as steps:
        trained = train(
            task,
            options.params,
            settings["seed"],
            work,
            settings["fingerprint"],
            lambda _row, step: print(step, file=steps),
            options.runtime,
        )
    save_file(trained.network.state_dict(), work / "averaged.safetensors")
    save_file(task.network.state_dict(), work / "raw.safetensors")
    (work / "curve.json").write_text(json.dumps(trained.curve))


def train_side_by_side(folder: Path) -> None:
    """Under torchrun: a training, the same one interrupted between two logged steps, and one that diverges in one process."""
    process, params = os.environ["RANK"], TOGETHER
    trained = run(diffusion_task(0), params, folder / "whole")
    work = folder / "interrupted"
    try:
        run(diffusion_task(0), params, work, stop_at=10)
    except Interrupted:
        resumed = run(diffusion_task(0), params, work)
    sharded = run(diffusion_task(0), params, folder / "sharded", sharding="fsdp")
    try:
        run(diffusion_task(0), params, folder / "sharded_interrupted", stop_at=10, sharding="fsdp")
    except Interrupted:
        sharded_again = run(diffusion_task(0), params, folder / "sharded_interrupted", sharding="fsdp")
    curves = [trained.curve, resumed.curve, sharded.curve, sharded_again.curve]
    (folder / f"curves-{process}.json").write_text(json.dumps(curves))
    if process == "0":
        save_file(trained.network.state_dict(), folder / "whole.safetensors")
        save_file(resumed.network.state_dict(), folder / "resumed.safetensors")
        save_file(sharded.network.state_dict(), folder / "sharded.safetensors")
        save_file(sharded_again.network.state_dict(), folder / "sharded_again.safetensors")
    (folder / f"heldout-{process}.json").write_text(json.dumps(heldout_losses(together=True)))
    train_in_parts(folder, int(process))
    train_with_muon(folder, int(process))
    try:
        run(LineTask(bad_step=8), params, folder / "diverging")
    except UserError as error:
        (folder / f"error-{process}.txt").write_text(str(error))


def heldout_losses(together: bool) -> dict[str, float]:
    """Of three batches, the last of which is smaller."""
    task, dataset = diffusion_task(0), RandomLatents(130)
    return HeldoutLoss(task, dataset, 130, together)(task.network, 0)  # type: ignore[arg-type]  # what it uses of a LatentDataset


def train_in_parts(folder: Path, process: int) -> None:
    """Under torchrun: micro-batches and clipping with both kinds of sharding, previews, and one that diverges."""
    params, runtime = short(6, accumulation_steps=2, max_grad_norm=0.05, log_every=1)
    for sharding in ("ddp", "fsdp"):
        previews: dict[int, Tensor] = {}

        def preview(network: nn.Module, step: int, kept: dict[int, Tensor] = previews) -> None:
            kept[step] = network.state_dict()["blocks.0.attn.qkv.weight"].clone()

        called: list[int] = []

        def share(_network: nn.Module, step: int, steps: list[int] = called) -> None:
            steps.append(step)

        task, work = diffusion_task(0), folder / f"parts_{sharding}"
        work.mkdir(exist_ok=True)
        callbacks = [Callback(preview, 4), Callback(share, 3, together=True)]
        trained = train(task, params, 0, work, "a", lambda _row, _step: None, runtime, callbacks, sharding)
        assert list(previews) == ([4, 6] if process == 0 else []), "process 0 alone draws previews"
        assert called == ([3, 6] if sharding == "ddp" or process == 0 else []), "who has all the weights takes a share"
        if process == 0:
            assert torch.equal(previews[6], trained.network.state_dict()["blocks.0.attn.qkv.weight"])
            save_file(trained.network.state_dict(), folder / f"parts_{sharding}.safetensors")
    try:
        run(SteepTask(bad_step=2, bad_draw=1e9), short(6, checkpoint_every=2), folder / "steep", sharding="fsdp")
    except UserError as error:
        (folder / f"steep-{process}.txt").write_text(str(error))


def train_with_muon(folder: Path, process: int) -> None:
    """Under torchrun: Muon and iREPA with micro-batches and clipping, and the same interrupted."""
    whole = run(muon_task(), MUON, folder / "muon")
    try:
        run(muon_task(), MUON, folder / "muon_interrupted", stop_at=10)
    except Interrupted:
        resumed = run(muon_task(), MUON, folder / "muon_interrupted")
    if process == 0:
        save_file(whole.network.state_dict(), folder / "muon.safetensors")
        save_file(resumed.network.state_dict(), folder / "muon_resumed.safetensors")


def train_until_sigterm(folder: Path) -> None:
    """Under torchrun: process 1 gets SIGTERM in the middle of a training."""
    process = int(os.environ["RANK"])

    def log(_row: dict[str, float], step: int) -> None:
        if step == 15 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    params, runtime = short(22)
    try:
        train(diffusion_task(0), params, 0, folder, "a", log, runtime)
    except SystemExit as ending:
        (folder / f"ended-{process}.txt").write_text(f"{ending.code} {(folder / 'checkpoint.pt').is_file()}")


# --- helpers of the tests ---


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A larger file cannot be written in the block, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(work: Path, *before: str, forked: bool = True, **changes: Any) -> "subprocess.Popen[str]":
    """A training. ``before``: begins its command; ``forked``: if not, it has a process group of its own; ``changes``: of its parameters."""
    work.mkdir(exist_ok=True)
    (work / "settings.json").write_text(json.dumps({"seed": 0, "fingerprint": "a", "params": LONG | changes}))
    return subprocess.Popen(
        [*before, "python", __file__, "train", str(work)],
        env=script_environment(forked),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background ignore Ctrl-C, and their children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_step(work: Path, process: "subprocess.Popen[str]", step: int) -> None:
    """Waits until the training has logged this step, or ended."""
    end, steps = time.monotonic() + 300, work / "steps.txt"
    while process.poll() is None and not (steps.exists() and step <= int((steps.read_text().split() or ["0"])[-1])):
        assert time.monotonic() < end, f"step {step} was never logged"
        time.sleep(0.002)


def results(work: Path) -> list[bytes]:
    return [(work / name).read_bytes() for name in ("averaged.safetensors", "raw.safetensors", "curve.json")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    work = tmp_path_factory.mktemp("uninterrupted")
    process = start(work)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    return results(work)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    torchrun(__file__, "side_by_side", str(folder))
    return folder


def test_trainings_of_both_precisions_follow_one_another_in_a_process(tmp_path: Path) -> None:
    first, rounded, again = (
        weights_of(run(diffusion_task(0), short(6, precision=precision), tmp_path / name))
        for name, precision in (("first", "fp32"), ("rounded", "bf16"), ("again", "fp32"))
    )
    assert same(first, again) and not same(first, rounded)


# --- resuming ---


def test_a_training_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_one(
    uninterrupted: list[bytes], tmp_path: Path
) -> None:
    moments = random.Random(1)
    for step in (10, 60):
        process = start(tmp_path)
        wait_for_step(tmp_path, process, step)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = start(tmp_path)
    assert last.communicate()[1] == ""
    assert results(tmp_path) == uninterrupted
    steps = [int(line) for line in (tmp_path / "steps.txt").read_text().split()]
    assert steps.count(5) == 1, "it started over instead of continuing"


@pytest.mark.long
def test_a_training_killed_at_random_moments_and_continued_to_twice_the_steps_ends_with_the_bytes_of_one_of_that_length(
    tmp_path: Path,
) -> None:
    moments, options = random.Random(2), {"decay": "constant"}
    whole = start(tmp_path / "whole", **options)
    work = tmp_path / "work"
    for num_steps, kills in ((60, (20, 40)), (120, (80,))):
        for step in kills:
            process = start(work, **options, num_steps=num_steps)
            wait_for_step(work, process, step)
            time.sleep(moments.uniform(0.0, 0.1))
            process.kill()
            process.communicate()
        assert start(work, **options, num_steps=num_steps).communicate()[1] == ""
    assert whole.communicate()[1] == ""
    assert results(work) == results(tmp_path / "whole")
    assert json.loads((work / "curve.json").read_text())[-1]["step"] == 120


def test_sigterm_saves_a_checkpoint_exits_143_and_the_next_run_ends_with_the_same_bytes(
    uninterrupted: list[bytes], tmp_path: Path
) -> None:
    process = start(tmp_path)
    wait_for_step(tmp_path, process, 50)
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    stopped_at = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 50 <= stopped_at < 120
    start(tmp_path).communicate()
    assert results(tmp_path) == uninterrupted
    logged_again = [int(line) for line in (tmp_path / "steps.txt").read_text().split() if int(line) > stopped_at]
    assert logged_again[0] - stopped_at <= LONG["log_every"]


def end_group(process: "subprocess.Popen[str]", number: signal.Signals, times: int) -> str:
    """Signals the whole process group, as schedulers and terminals do; returns what the processes have to say."""
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.02)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize(("number", "times", "status"), [(signal.SIGTERM, 1, 143), (signal.SIGINT, 3, 130)])
@pytest.mark.long
def test_a_signal_to_all_processes_of_a_training_that_reads_ahead_loses_no_step_and_says_one_line(
    uninterrupted: list[bytes], tmp_path: Path, number: signal.Signals, times: int, status: int
) -> None:
    changes = {"num_workers": 2, "checkpoint_every": 1000, "log_every": 1}
    process = start(tmp_path, forked=False, **changes)
    wait_for_step(tmp_path, process, 20)
    (line,) = end_group(process, number, times).splitlines()
    assert process.returncode in (status, -number), "Ctrl-C at the very end, when all is done, ends it at once"
    assert line.startswith(f"diffusion: {number.name} at step ") and "the same command continues" in line
    logged = int((tmp_path / "steps.txt").read_text().split()[-1])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == logged < LONG["num_steps"]
    assert start(tmp_path, **changes).communicate()[1] == ""
    assert results(tmp_path)[:2] == uninterrupted[:2]
    assert len(json.loads((tmp_path / "curve.json").read_text())) == LONG["num_steps"]


# --- workers that cannot go on ---


class Deadly(Numbers):
    """Its fourth batch ends the process that reads it."""

    def __getitems__(self, indices: list[int]) -> Tensor:
        if 30 in indices and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitems__(indices)


def test_a_worker_that_dies_ends_the_training_in_one_line_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    task = LineTask()
    task.dataset = Deadly(37)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"pid \d+\) was ended by Killed; .*`num_workers: 0`"):
        run(task, short(40, num_workers=2, checkpoint_every=1), tmp_path)
    assert time.monotonic() - began < 20
    assert not multiprocessing.active_children()


class Stalling(Numbers):
    """Its fourth batch never comes from a worker."""

    def __getitems__(self, indices: list[int]) -> Tensor:
        if 30 in indices and torch.utils.data.get_worker_info() is not None:
            time.sleep(1000)
        return super().__getitems__(indices)


def test_workers_that_stall_end_the_training_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfd.data.batches.STALLED_S", 2)
    task = LineTask()
    task.dataset = Stalling(37)
    began = time.monotonic()
    with pytest.raises(UserError, match="gave none for 2 s; .*`num_workers: 0`"):
        run(task, short(40, num_workers=2, checkpoint_every=1), tmp_path)
    assert time.monotonic() - began < 20
    assert not multiprocessing.active_children()


can_mount = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount, reason="a small /dev/shm needs the right to mount one")
@pytest.mark.parametrize("size", ["64k", "16m"])
@pytest.mark.long
def test_a_shared_memory_that_is_too_small_is_one_line_and_one_that_is_large_enough_trains(
    tmp_path: Path, size: str
) -> None:
    mount = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
    process = start(tmp_path, "unshare", "-m", "sh", "-c", mount, "sh", forked=False, num_workers=2, num_steps=20)
    errors = process.communicate(timeout=60)[1]
    if size == "16m":
        assert (process.returncode, errors) == (0, "")
        return
    (line,) = errors.splitlines()
    assert process.returncode == 1 and line.startswith("error: shared memory is too small") and "/dev/shm" in line


def test_without_a_terminal_a_training_says_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfd.progress.EVERY_S", 0.0)
    task = LineTask()
    run(task, short(3, log_every=2), tmp_path)
    total = [row["square"] + 0.25 * row["size"] for row in task.seen]
    losses = [total[0], (total[0] + total[1]) / 2, total[2]]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for number, (line, loss) in enumerate(zip(lines, losses, strict=True)):
        assert line.startswith(f"line: step {number + 1} of 3, loss {loss:.4f}, ") and "images/s, " in line
        assert line.endswith(" s left")


def test_sigterm_is_handled_as_before_once_training_is_over(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(LineTask(), short(2), tmp_path / "good")
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(UserError):
        run(LineTask(bad_step=1), short(2), tmp_path / "bad")
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_the_last_checkpoint_is_written_is_not_lost(tmp_path: Path) -> None:
    task = LineTask()
    task.network.register_state_dict_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ending:
        run(task, short(3), tmp_path)
    assert ending.value.code == 143
    again = LineTask()
    assert same(weights_of(run(again, short(3), tmp_path)), weights_of(run(LineTask(), short(3), tmp_path / "whole")))
    assert again.seen == []


def test_resuming_takes_the_newest_state_and_the_optimizers(tmp_path: Path) -> None:
    params = short(20, checkpoint_every=4)
    whole = weights_of(run(LineTask(), params, tmp_path / "whole"))
    for name in ("kept", "lost"):
        with pytest.raises(Interrupted):
            run(LineTask(), params, tmp_path / name, stop_at=15)
    checkpoint = tmp_path / "lost" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 12
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"].zero_()
    torch.save(state, checkpoint)
    assert same(whole, weights_of(run(LineTask(), params, tmp_path / "kept")))
    assert not same(whole, weights_of(run(LineTask(), params, tmp_path / "lost")))


def test_a_training_with_muon_resumes_with_the_state_of_both_optimizers_at_the_rate_of_the_schedule(
    tmp_path: Path,
) -> None:
    whole = weights_of(run(muon_task(), MUON, tmp_path / "whole"))
    for name in ("kept", "lost"):
        with pytest.raises(Interrupted):
            run(muon_task(), MUON, tmp_path / name, stop_at=10)
    checkpoint = tmp_path / "lost" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 8
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [learning_rate(MUON.params, 7)] * 2
    state["optimizer"]["state"]["blocks.0.attn.qkv.weight"]["momentum_buffer"].zero_()
    torch.save(state, checkpoint)
    assert same(whole, weights_of(run(muon_task(), MUON, tmp_path / "kept")))
    assert not same(whole, weights_of(run(muon_task(), MUON, tmp_path / "lost")))


def test_a_checkpoint_of_other_inputs_is_refused_and_training_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = short(10, checkpoint_every=2)
    clean = weights_of(run(LineTask(), params, tmp_path / "clean", "b"))
    with pytest.raises(Interrupted):
        run(LineTask(seed=1), params, tmp_path / "work", "a", stop_at=5)
    assert same(clean, weights_of(run(LineTask(), params, tmp_path / "work", "b")))
    assert "starts from the beginning" in capsys.readouterr().err


def test_a_checkpoint_of_the_same_inputs_is_continued_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = short(10, checkpoint_every=2)
    with pytest.raises(Interrupted):
        run(LineTask(), params, tmp_path, stop_at=5)
    task = LineTask()
    run(task, params, tmp_path)
    assert len(task.seen) == 6
    assert capsys.readouterr().err == ""


def test_a_half_written_checkpoint_of_a_killed_run_does_no_harm(tmp_path: Path) -> None:
    params = short(10, checkpoint_every=2)
    whole = weights_of(run(LineTask(), params, tmp_path / "whole"))
    for stop_at in (0, 5):
        work = tmp_path / f"work{stop_at}"
        if stop_at:
            with pytest.raises(Interrupted):
                run(LineTask(), params, work, stop_at=stop_at)
        work.mkdir(exist_ok=True)
        (work / "checkpoint.tmp").write_bytes(b"PK half of a checkpoint")
        assert same(whole, weights_of(run(LineTask(), params, work)))
        assert not (work / "checkpoint.tmp").exists()


def test_a_disk_that_is_full_ends_the_training_in_one_line_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    params = short(10, checkpoint_every=2)
    whole = weights_of(run(LineTask(), params, tmp_path / "whole"))
    work = tmp_path / "work"
    with pytest.raises(Interrupted):
        run(LineTask(), params, work, stop_at=5)
    with files_up_to(1000), pytest.raises(UserError) as problem:
        run(LineTask(), params, work)
    message = str(problem.value)
    assert message.startswith(
        f"line: the checkpoint of step 6 cannot be written to {work / 'checkpoint.pt'} (File too large)"
    )
    assert "GiB are free" in message and "the checkpoint before it is kept" in message and "\n" not in message
    assert [file.name for file in work.iterdir()] == ["checkpoint.pt"], "half of a checkpoint keeps the disk full"
    again = LineTask()
    assert same(whole, weights_of(run(again, params, work)))
    assert len(again.seen) == 6, "it continues after step 4"


def test_a_finished_training_that_is_called_again_trains_nothing_and_gives_the_same(tmp_path: Path) -> None:
    first = run(LineTask(), short(6), tmp_path)
    task = LineTask()
    again = run(task, short(6), tmp_path)
    assert task.seen == []
    assert same(weights_of(first), weights_of(again))
    assert first.curve == again.curve


# --- losses that are not finite ---


@pytest.mark.parametrize(("draw", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_step_and_the_terms(
    tmp_path: Path, draw: float, word: str
) -> None:
    with pytest.raises(UserError) as stopped:
        run(LineTask(bad_step=8, bad_draw=draw), short(20, checkpoint_every=3), tmp_path)
    message = str(stopped.value)
    assert "line: the loss is not finite at step 8 (" in message
    assert f"square {word}" in message and "size 0." in message and f"total {word}" in message
    assert str(tmp_path / "checkpoint.pt") in message
    assert "\n" not in message
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 6
    assert all(value.isfinite().all() for part in ("network", "averaged") for value in state[part].values())


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there was no checkpoint yet"):
        run(LineTask(bad_step=2), short(20), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_gradient_that_is_not_finite_under_a_finite_loss_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights are not finite after step 9"):
        run(SteepTask(bad_step=9, bad_draw=1e9), short(20, checkpoint_every=3, log_every=20), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 6
    assert all(value.isfinite().all() for value in state["network"].values())


# --- batches, averages, rates ---


def test_a_batch_that_micro_batches_cannot_share_evenly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size 8 must be a multiple of .* = 1 x 3; change one"):
        run(LineTask(), short(2, accumulation_steps=3), tmp_path)
    run(LineTask(), short(2, accumulation_steps=4), tmp_path)


def test_four_micro_batches_give_the_weights_of_one_batch_up_to_rounding(tmp_path: Path) -> None:
    one = run(diffusion_task(0), short(12), tmp_path / "one")
    four = run(diffusion_task(0), short(12, accumulation_steps=4), tmp_path / "four")
    torch.testing.assert_close(weights_of(one), weights_of(four), rtol=1e-3, atol=2e-5)
    for row, other in zip(one.curve, four.curve, strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_averaged_weights_follow_the_closed_form(tmp_path: Path) -> None:
    task, raw = LineTask(), []

    def log(_row: dict[str, float], _step: int) -> None:
        raw.append(task.network.weight.detach().cpu().clone())

    params, runtime = short(12, log_every=1, ema_decay=0.7)
    initial = task.network.weight.detach().clone()
    averaged = train(task, params, 0, tmp_path, "a", log, runtime).network.weight
    expected = 0.7**12 * initial + sum(0.3 * 0.7 ** (11 - n) * raw[n] for n in range(12))
    torch.testing.assert_close(averaged.detach(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(averaged, raw[-1], atol=1e-5)


def test_further_averages_are_those_of_trainings_with_their_decays_and_change_nothing_also_after_a_kill(
    tmp_path: Path,
) -> None:
    def train_in(folder: str, decay: float, more: tuple[float, ...] = (), stop_at: int = 0) -> Trained:
        def log(_row: dict[str, float], step: int) -> None:
            if step == stop_at:
                raise Interrupted

        params, runtime = short(12, ema_decay=decay, checkpoint_every=2, log_every=1)
        (tmp_path / folder).mkdir(exist_ok=True)
        return train(LineTask(), params, 0, tmp_path / folder, "a", log, runtime, more_decays=more)

    alone = {decay: weights_of(train_in(f"alone-{decay}", decay)) for decay in (0.7, 0.0, 0.9)}
    together = train_in("together", 0.7, (0.0, 0.9))
    assert same(weights_of(together), alone[0.7]) and list(together.more_averages) == [0.0, 0.9]
    with pytest.raises(Interrupted):
        train_in("killed", 0.7, (0.0, 0.9), stop_at=7)
    killed = train_in("killed", 0.7, (0.0, 0.9))
    assert same(weights_of(killed), alone[0.7])
    for decay in (0.0, 0.9):
        for trained in (together, killed):
            assert same(trained.more_averages[decay].state_dict(), alone[decay])
            assert not trained.more_averages[decay].training
    assert not same(alone[0.7], alone[0.9])


def test_a_callback_sees_the_average_that_it_asks_for(tmp_path: Path) -> None:
    seen: dict[float | None, Tensor] = {}
    callbacks = [
        Callback(
            lambda network, _step, decay=decay: seen.update({decay: network.weight.detach().clone()}), 12, decay=decay
        )  # type: ignore[misc, union-attr, operator]
        for decay in (None, 0.9)
    ]
    params, runtime = short(12, ema_decay=0.7)
    trained = train(
        LineTask(), params, 0, tmp_path, "a", lambda _row, _step: None, runtime, callbacks, more_decays=[0.9]
    )
    assert torch.equal(seen[None], trained.network.weight.detach())
    assert torch.equal(seen[0.9], trained.more_averages[0.9].weight.detach())  # type: ignore[union-attr, operator]


def test_the_average_starts_from_the_initial_weights(tmp_path: Path) -> None:
    """As published: a copy before the first step, then ``average += (1 - decay) * (weights - average)`` after each."""
    trained = run(SlopeTask(), short(3, learning_rate=0.01, ema_decay=0.5), tmp_path)
    # The weight goes 0, -0.01, -0.02, -0.03, so the average goes 0, -0.005, -0.0125, -0.02125.
    assert trained.network.bias.tolist() == pytest.approx([-0.02125] * len(trained.network.bias), rel=1e-5)


def test_without_averaging_the_weights_are_the_raw_ones(tmp_path: Path) -> None:
    task = LineTask()
    trained = run(task, short(12, ema_decay=0.0), tmp_path)
    assert torch.equal(trained.network.weight, task.network.weight.cpu())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0] * 8),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"decay": "cosine"}, [0.5 + 0.5 * math.cos(math.pi * n / 8) for n in range(8)]),
        (
            {"decay": "cosine", "warmup_steps": 4},
            [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)],
        ),
    ],
)
def test_every_step_moves_the_weights_by_its_learning_rate(
    tmp_path: Path, changes: dict[str, Any], expected: list[float]
) -> None:
    task = SlopeTask()
    weights = [0.0]

    def log(_row: dict[str, float], _step: int) -> None:
        weights.append(task.network.bias[0].item())

    params, runtime = short(8, log_every=1, learning_rate=0.01, **changes)
    train(task, params, 0, tmp_path, "a", log, runtime)
    moved = [(before - after) / 0.01 for before, after in zip(weights[:-1], weights[1:], strict=True)]
    assert moved == pytest.approx(expected, abs=1e-4)


# --- what is logged ---


def test_every_logged_term_and_the_total_are_averages_of_their_interval(tmp_path: Path) -> None:
    task, logged = LineTask(), {}
    params, runtime = short(12, accumulation_steps=2)
    curve = train(task, params, 0, tmp_path, "a", lambda row, step: logged.update({step: row}), runtime).curve
    assert list(logged) == [5, 10, 12] == [row["step"] for row in curve]
    for (first, step), row in zip(((0, 5), (5, 10), (10, 12)), curve, strict=True):
        micro_batches = task.seen[2 * first : 2 * step]
        means = {name: sum(terms[name] for terms in micro_batches) / len(micro_batches) for name in task.weights}
        assert row["square"] == pytest.approx(means["square"], rel=1e-6)
        assert row["size"] == pytest.approx(means["size"], rel=1e-6)
        assert row["total"] == pytest.approx(means["square"] + 0.25 * means["size"], rel=1e-6)
        assert logged[step]["images"] == step * 8
        assert {name: logged[step][name] for name in ("square", "size", "total")} == {
            name: row[name] for name in ("square", "size", "total")
        }


def test_an_interval_that_a_restart_cuts_in_two_is_logged_as_if_it_were_whole(tmp_path: Path) -> None:
    params = short(15, checkpoint_every=4)
    whole = run(LineTask(), params, tmp_path / "whole").curve
    with pytest.raises(Interrupted):
        run(LineTask(), params, tmp_path / "cut", stop_at=10)
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 8
    assert run(LineTask(), params, tmp_path / "cut").curve == whole


def test_runtime_options_that_change_between_a_kill_and_the_resume_change_neither_weights_nor_averages(
    tmp_path: Path,
) -> None:
    fields = SHORT | {"num_steps": 15}
    whole = run(LineTask(), Options.of(fields | {"log_every": 1}), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(LineTask(), Options.of(fields | {"checkpoint_every": 4, "log_every": 3}), tmp_path / "cut", stop_at=12)
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 8
    cut = run(LineTask(), Options.of(fields | {"checkpoint_every": 2, "log_every": 5}), tmp_path / "cut")
    assert same(weights_of(whole), weights_of(cut))
    totals = {row["step"]: row["total"] for row in whole.curve}
    assert [row["step"] for row in cut.curve] == [3, 6, 10, 15]
    for row, steps in zip(cut.curve, ([1, 2, 3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14, 15]), strict=True):
        assert row["total"] == pytest.approx(sum(totals[step] for step in steps) / len(steps), rel=1e-9)


def test_previews_see_the_averaged_network_at_their_steps_and_at_the_end(tmp_path: Path) -> None:
    seen: dict[int, Tensor] = {}

    def preview(network: nn.Module, step: int) -> None:
        seen[step] = network.weight.detach().cpu().clone()  # type: ignore[union-attr, operator]

    params, runtime = short(10)
    trained = train(LineTask(), params, 0, tmp_path, "a", lambda _row, _step: None, runtime, [Callback(preview, 4)])
    assert list(seen) == [4, 8, 10]
    assert torch.equal(seen[10], trained.network.weight)
    assert not torch.equal(seen[8], seen[10])


@pytest.mark.parametrize("log_every", [1, 3, 4])
def test_what_a_callback_returns_is_logged_and_stands_in_the_row_of_its_step_also_after_a_kill(
    tmp_path: Path, log_every: int
) -> None:
    params, runtime = short(10, log_every=log_every, checkpoint_every=2)
    logged: list[tuple[float, int]] = []

    def train_in(folder: str, stop_at: int) -> list[dict[str, float]]:
        def measure(network: nn.Module, step: int) -> dict[str, float]:
            if step == stop_at:
                raise Interrupted
            return {"heldout_total": float(network.weight.detach().sum())}  # type: ignore[union-attr, operator]

        def log(row: dict[str, float], step: int) -> None:
            logged.extend((value, step) for name, value in row.items() if name == "heldout_total")

        callback = Callback(measure, 4, at_end=False)
        (tmp_path / folder).mkdir(exist_ok=True)
        return train(LineTask(), params, 0, tmp_path / folder, "a", log, runtime, [callback]).curve

    curve = train_in("whole", 0)
    measured = [(row["heldout_total"], row["step"]) for row in curve if "heldout_total" in row]
    assert logged == measured and [step for _, step in measured] == [4, 8]
    steps = [row["step"] for row in curve]
    assert steps == sorted(set(steps)) and steps[-1] == 10 and "total" in curve[-1]
    with pytest.raises(Interrupted):
        train_in("killed", 8)
    assert train_in("killed", 0) == curve
    without = run(LineTask(), short(10, log_every=log_every, checkpoint_every=2), tmp_path / "without").curve
    assert without == [
        {name: value for name, value in row.items() if name != "heldout_total"} for row in curve if "total" in row
    ]


# --- randomness and processes ---


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_network(tmp_path: Path) -> None:
    first, again, other = (
        weights_of(run(LineTask(seed=seed), short(10), tmp_path / name))
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert same(first, again)
    assert not same(first, other)


def test_the_seed_also_decides_the_order_of_samples(tmp_path: Path) -> None:
    first, other = (
        weights_of(train(LineTask(seed=0), short(10).params, seed, tmp_path, str(seed), lambda _row, _step: None))
        for seed in (0, 1)
    )
    assert not same(first, other)


def test_two_reading_processes_give_the_weights_of_none(tmp_path: Path) -> None:
    alone = run(diffusion_task(0), short(12), tmp_path / "alone")
    read_ahead = run(diffusion_task(0), short(12, num_workers=2), tmp_path / "read_ahead")
    assert same(weights_of(alone), weights_of(read_ahead))


def test_two_training_processes_train_the_network_of_one(two_processes: Path, tmp_path: Path) -> None:
    alone = run(diffusion_task(0), TOGETHER, tmp_path)
    together = load_file(two_processes / "whole.safetensors")
    torch.testing.assert_close(together, weights_of(alone), rtol=1e-3, atol=5e-5)
    curves = [json.loads((two_processes / f"curves-{process}.json").read_text())[0] for process in (0, 1)]
    assert curves[0] == curves[1]
    for row, other in zip(alone.curve, curves[0], strict=True):
        assert other == pytest.approx(row, rel=1e-3)


def test_two_processes_that_share_the_held_out_images_find_the_losses_of_one(two_processes: Path) -> None:
    found = [json.loads((two_processes / f"heldout-{process}.json").read_text()) for process in (0, 1)]
    assert found == [heldout_losses(together=False)] * 2


def test_two_training_processes_resume_with_the_same_bytes_and_curve(two_processes: Path) -> None:
    assert (two_processes / "resumed.safetensors").read_bytes() == (two_processes / "whole.safetensors").read_bytes()
    whole, resumed = json.loads((two_processes / "curves-0.json").read_text())[:2]
    assert resumed == whole


def test_one_process_continues_what_two_began(two_processes: Path, tmp_path: Path) -> None:
    shutil.copy(two_processes / "interrupted" / "checkpoint.pt", tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 12 and len(state["sums"]) == 2
    continued = run(diffusion_task(0), TOGETHER, tmp_path)
    assert same(weights_of(continued), load_file(two_processes / "resumed.safetensors"))


def test_two_processes_with_muon_train_the_network_of_one_and_resume_with_the_same_bytes(
    two_processes: Path, tmp_path: Path
) -> None:
    initial = {name: value.clone() for name, value in muon_task().network.state_dict().items()}
    alone = weights_of(run(muon_task(), short(12, **WITH_MUON, accumulation_steps=4), tmp_path))
    together = load_file(two_processes / "muon.safetensors")
    for name, value in together.items():
        # Muon makes small singular values large, in bf16: the last bit of a sum of gradients has moved a matrix by 3 % of its way (seen).
        assert float((value - alone[name]).norm()) <= 0.1 * float((alone[name] - initial[name]).norm()), name
    resumed = (two_processes / "muon_resumed.safetensors").read_bytes()
    assert resumed == (two_processes / "muon.safetensors").read_bytes()


def test_sharded_training_gives_the_losses_and_weights_of_unsharded_training_up_to_rounding(
    two_processes: Path,
) -> None:
    whole, _, sharded, _ = json.loads((two_processes / "curves-0.json").read_text())
    for row, other in zip(whole, sharded, strict=True):
        assert other == pytest.approx(row, rel=1e-4)
    weights, expected = (load_file(two_processes / f"{name}.safetensors") for name in ("sharded", "whole"))
    assert list(weights) == list(expected), "the same layout"
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=5e-5)


def test_sharded_training_resumes_with_the_same_bytes_and_curve(two_processes: Path) -> None:
    first, again = ((two_processes / f"{name}.safetensors").read_bytes() for name in ("sharded", "sharded_again"))
    assert first == again
    curves = json.loads((two_processes / "curves-0.json").read_text())
    assert curves[2] == curves[3]
    state = torch.load(two_processes / "sharded" / "checkpoint.pt", weights_only=True)
    unsharded = torch.load(two_processes / "whole" / "checkpoint.pt", weights_only=True)
    for name, value in unsharded["network"].items():
        assert state["network"][name].shape == value.shape, "a checkpoint holds whole tensors"


def test_micro_batches_and_clipping_are_the_same_with_both_kinds_of_sharding(
    two_processes: Path, tmp_path: Path
) -> None:
    params = short(6, accumulation_steps=4, max_grad_norm=0.05, log_every=1)
    alone = weights_of(run(diffusion_task(0), params, tmp_path))
    for sharding in ("ddp", "fsdp"):
        together = load_file(two_processes / f"parts_{sharding}.safetensors")
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=5e-5)


def test_sharded_weights_that_are_not_finite_stop_all_processes_without_a_checkpoint(two_processes: Path) -> None:
    errors = [(two_processes / f"steep-{process}.txt").read_text() for process in (0, 1)]
    assert errors[0] == errors[1] and "weights are not finite after step 2" in errors[0]
    assert not (two_processes / "steep" / "checkpoint.pt").exists()


def test_sigterm_to_one_process_stops_all_at_one_step_after_the_checkpoint_is_written(tmp_path: Path) -> None:
    torchrun(__file__, "sigterm", str(tmp_path))
    assert [(tmp_path / f"ended-{process}.txt").read_text() for process in (0, 1)] == ["143 True", "143 True"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 20


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_found_while_reading_is_the_same_one_line_in_a_reading_process(
    tmp_path: Path, num_workers: int
) -> None:
    class Damaged(Numbers):
        def __getitems__(self, indices: list[int]) -> Tensor:
            raise UserError("image 3 has changed; rerun prepare")

    task = LineTask()
    task.dataset = Damaged(37)
    with pytest.raises(UserError) as stopped:
        run(task, short(2, num_workers=num_workers), tmp_path)
    assert str(stopped.value) == "image 3 has changed; rerun prepare"


def test_all_processes_stop_when_one_diverges_and_no_checkpoint_holds_nan(two_processes: Path) -> None:
    errors = [(two_processes / f"error-{process}.txt").read_text() for process in (0, 1)]
    assert errors[0] == errors[1]
    assert "not finite at step 8 (square nan" in errors[0]
    state = torch.load(two_processes / "diverging" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["network"].values())


if __name__ == "__main__":
    import sfd.quiet  # noqa: F401

    runs = {"train": train_to_files, "side_by_side": train_side_by_side, "sigterm": train_until_sigterm}
    try:
        with terminable():
            runs[sys.argv[1]](Path(sys.argv[2]))
    except UserError as problem:
        sys.exit(f"error: {problem}")
