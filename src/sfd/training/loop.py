"""The training loop: accelerate, EMA, exact resume, losses logged as they are."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader
from tqdm import tqdm

from sfd.errors import UserError
from sfd.params import Sharding, TrainingParams
from sfd.processes import form_group
from sfd.training.order import SeededBatchSampler
from sfd.training.sharding import WHOLE, local, sharded_copy

Tensors = tuple[Tensor, ...]
"""Tensors with the images along the first dimension; a ``NamedTuple`` says what each one is."""
LogMetrics = Callable[[dict[str, float], int], None]
Preview = Callable[[nn.Module, int], None]

AGREE_EVERY = 10
"""Steps after which several processes ask one another whether SIGTERM came."""


def log_nothing(metrics: dict[str, float], step: int) -> None:
    """For trainings whose losses are not kept."""


class BatchedDataset(Protocol):
    """A dataset that fetches a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Tensors: ...


class Task(Protocol):
    """What the loop must know of one network that it trains."""

    @property
    def purpose(self) -> str:
        """Names the task's random draws."""

    @property
    def network(self) -> nn.Module:
        """The network, initialised."""

    @property
    def dataset(self) -> BatchedDataset:
        """Its training samples."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The loss is the sum of ``weights[term] * losses[term]`` over these terms."""

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensors:
        """All random draws of a step for the whole batch (first dimension), seeded by the step."""

    def losses(self, network: nn.Module, data: Any, noise: Any) -> dict[str, Tensor]:
        """The terms of the loss as means over the images given: a batch of ``dataset``, and what ``noise`` draws, of the same types."""


@dataclass
class TrainingState:
    """What a checkpoint holds beside weights: where training is, and its loss curve so far."""

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """``network`` holds the averaged weights, in evaluation mode, on the CPU. ``curve``: a row per logged interval.

    After sharded training only process 0 has them; the others have a network that must not be used.
    """

    network: nn.Module
    curve: list[dict[str, float]]

    def copy_to(self, network: nn.Module) -> None:
        """Puts the averaged weights into ``network``, in evaluation mode on the CPU."""
        network.load_state_dict(self.network.state_dict())
        network.eval().cpu()


def train(
    task: Task,
    params: TrainingParams,
    seed: int,
    work: Path,
    fingerprint: str,
    log: LogMetrics,
    preview: Preview | None = None,
    preview_every: int = 0,
    sharding: Sharding = "ddp",
) -> Trained:
    """Trains ``task.network`` in place and returns its averaged weights.

    Killed at any moment and called again with the same ``work`` folder, it ends with the same bytes (same device, same number of processes).
    With another number of processes it continues as well, the same beyond rounding.
    ``preview`` is called with the averaged network, in process 0, every ``preview_every`` steps and at the end.

    Raises:
        UserError: the batch cannot be shared evenly, the loss became NaN or infinite, or the data set raised it.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    trainer = _Trainer(task, params, seed, work, fingerprint, log, sharding)
    trainer.restore()
    trainer.run(preview, preview_every)
    return Trained(trainer.whole_average().eval().cpu(), trainer.state.curve)


class _Trainer:
    def __init__(
        self,
        task: Task,
        params: TrainingParams,
        seed: int,
        work: Path,
        fingerprint: str,
        log: LogMetrics,
        sharding: Sharding,
    ) -> None:
        form_group()
        use_gpu = torch.cuda.is_available()
        bf16 = params.precision == "bf16" or (params.precision == "auto" and use_gpu)
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not use_gpu)
        self.task, self.params, self.seed, self.log = task, params, seed, log
        self.rows = self._rows()
        self.checkpoint = work / "checkpoint.pt"
        self.fingerprint = fingerprint
        self.state = TrainingState()
        device = self.accelerator.device
        # A single process has nobody to share with. The task's own network stays whole, for previews and the result.
        self.sharded = sharding == "fsdp" and self.accelerator.num_processes > 1
        average = get_ema_multi_avg_fn(params.ema_decay)
        self.raw: Any
        if self.sharded:
            self.raw = sharded_copy(task.network, device, bf16).train()
            self.averaged = AveragedModel(nn.Identity(), multi_avg_fn=average)
            self.averaged.module = sharded_copy(task.network, device, bf16)
        else:
            self.raw = task.network.to(device).train()
            self.averaged = AveragedModel(self.raw, multi_avg_fn=average)
        trainable = [p for p in self.raw.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(
            trainable,
            lr=params.learning_rate,
            betas=(0.9, params.beta2),
            weight_decay=params.weight_decay,
            fused=device.type in ("cuda", "cpu"),
        )
        network = torch.compile(self.raw) if params.compile else self.raw
        self.network: Any = network
        self.optimizer: Any = self.adamw
        if not self.sharded:
            self.network, self.optimizer = self.accelerator.prepare(network, self.optimizer)
        self.terms = [*task.weights, "total"]
        self.sums = torch.zeros(len(self.terms), dtype=torch.float64, device=device)
        self.bad = torch.zeros(1 + len(self.terms), dtype=torch.float64, device=device)
        self.stop_requested = False

    def _rows(self) -> slice:
        """The rows of every batch that are this process's."""
        batch_size, processes = self.params.batch_size, self.accelerator.num_processes
        shares = processes * self.params.accumulation_steps
        if batch_size % shares:
            raise UserError(
                f"batch_size {batch_size} must be a multiple of processes x accumulation_steps = "
                f"{processes} x {self.params.accumulation_steps}; change one of them"
            )
        share = batch_size // processes
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant or cosine to zero."""
        params = self.params
        rate = params.learning_rate * min(1.0, (step + 1) / max(1, params.warmup_steps))
        if params.decay == "cosine" and step >= params.warmup_steps:
            done = (step - params.warmup_steps) / max(1, params.num_steps - params.warmup_steps)
            rate *= 0.5 * (1.0 + math.cos(math.pi * done))
        return rate

    def run(self, preview: Preview | None, preview_every: int) -> None:
        """All remaining steps. SIGTERM ends the process between two steps, with a checkpoint."""
        previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            self._run_steps(preview, preview_every)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
        if self._must_stop(ask=True):
            self._stop()

    def _run_steps(self, preview: Preview | None, preview_every: int) -> None:
        params, first = self.params, self.state.step
        order = SeededBatchSampler(
            self.seed, self.task.purpose, len(self.task.dataset), params.batch_size, first, params.num_steps, self.rows
        )
        loader: DataLoader[Any] = DataLoader(
            _Fetched(self.task.dataset),  # type: ignore[arg-type]  # DataLoader needs no more than BatchedDataset has
            batch_sampler=order,
            num_workers=params.num_workers,
            collate_fn=_as_fetched,  # type: ignore[arg-type]  # what is fetched is a batch already
        )
        quiet = not (self.accelerator.is_main_process and sys.stderr.isatty())
        size = params.batch_size
        since, since_step = time.perf_counter(), first
        with tqdm(
            total=params.num_steps * size,
            initial=first * size,
            unit="image",
            unit_scale=True,
            disable=quiet,
            desc=self.task.purpose,
        ) as bar:
            for data in loader:
                if isinstance(data, UserError):
                    raise data
                self._step(data)
                self.state.step += 1
                step = self.state.step
                last = step == params.num_steps
                bar.update(size)
                if step % params.log_every == 0 or last:
                    row = self._log_interval()
                    now = time.perf_counter()
                    self.log(
                        row | {"images": step * size, "images_per_second": (step - since_step) * size / (now - since)},
                        step,
                    )
                    since, since_step = now, step
                    bar.set_postfix(loss=f"{row['total']:.4f}")
                if preview is not None and (step % preview_every == 0 or last):
                    self._preview(preview)
                stop = self._must_stop(ask=step % AGREE_EVERY == 0)
                if step % params.checkpoint_every == 0 or last or stop:
                    self.save()
                if stop:
                    self._stop()

    def _request_stop(self, _signal: int, _frame: object) -> None:
        self.stop_requested = True

    def _must_stop(self, ask: bool) -> bool:
        """Whether SIGTERM came. Several processes agree on it when they ``ask``, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        if not ask:
            return False
        flag = torch.tensor(float(self.stop_requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def _stop(self) -> NoReturn:
        """Ends all processes. None may go before the checkpoint is written: launchers end a job when its first process has failed."""
        self.accelerator.wait_for_everyone()
        sys.exit(128 + signal.SIGTERM)

    def whole_average(self) -> nn.Module:
        """The network with averaged weights; all processes must call it, and with sharding process 0 alone gets the weights."""
        if not self.sharded:
            return self.averaged.module
        weights = get_model_state_dict(self.averaged.module, options=WHOLE)
        if self.accelerator.is_main_process:
            self.task.network.load_state_dict(weights)
        return self.task.network

    def _preview(self, preview: Preview) -> None:
        network = self.whole_average()
        if self.accelerator.is_main_process:
            preview(network, self.state.step)
            if self.sharded:
                network.cpu()  # makes room on the device again

    def _step(self, data: Tensors) -> None:
        params, device = self.params, self.accelerator.device
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.state.step)
        data = tree_map(lambda value: value.to(device, non_blocking=True), data)
        noise = tree_map(lambda draw: draw[self.rows], self.task.noise(self.state.step, params.batch_size, device))
        parts = params.accumulation_steps
        totals = torch.zeros_like(self.sums)
        for n, (micro_data, micro_noise) in enumerate(zip(_split(data, parts), _split(noise, parts), strict=True)):
            with self._without_exchange() if n + 1 < parts else nullcontext():
                with self.accelerator.autocast():
                    losses = self.task.losses(self.network, micro_data, micro_noise)
                total = torch.stack([weight * losses[term] for term, weight in self.task.weights.items()]).sum()
                self.accelerator.backward(total / parts)
            totals += (
                torch.stack([*(losses[term].detach() for term in self.task.weights), total.detach()]).double() / parts
            )
        if params.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), params.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averaged.update_parameters(self.raw)
        self.sums += totals
        # The first step that is not finite is remembered on the device, so that no step waits for it.
        bad_now = torch.cat([totals.new_tensor([self.state.step + 1.0]), totals])
        self.bad = torch.where((self.bad[0] == 0) & ~totals.isfinite().all(), bad_now, self.bad)

    @contextmanager
    def _without_exchange(self) -> Iterator[None]:
        """Gradients of a micro-batch that is not the last stay in their process."""
        if not self.sharded:
            with self.accelerator.no_sync(self.network):
                yield
            return
        self.raw.set_requires_gradient_sync(False)
        yield
        self.raw.set_requires_gradient_sync(True)

    def _log_interval(self) -> dict[str, float]:
        """Averages of all terms since the last call, over all processes."""
        self._check_finite()
        steps = self.state.step % self.params.log_every or self.params.log_every
        means = self.accelerator.reduce(self.sums, reduction="mean") / steps
        self.sums.zero_()
        row = dict(zip(self.terms, means.tolist(), strict=True))
        self.state.curve.append({"step": self.state.step, **row})
        return row

    def _check_finite(self) -> None:
        """Raises :class:`UserError` on all processes if the loss of one of them was NaN or infinite."""
        found = [row for row in self.accelerator.gather(self.bad[None]).tolist() if row[0]]
        if found:
            step, *terms = min(found, key=lambda row: row[0])
            values = ", ".join(f"{name} {value:g}" for name, value in zip(self.terms, terms, strict=True))
            raise self._diverged(f"the loss is not finite at step {int(step)} ({values})")

    def _check_weights(self) -> None:
        """A finite loss can have a gradient that is not finite. Raises :class:`UserError` on all processes if it reached the weights."""
        finite = torch.stack([local(p).isfinite().all() for p in self.raw.parameters()]).all()
        if self.accelerator.reduce((~finite).double(), reduction="sum") > 0:
            raise self._diverged(f"the weights are not finite after step {self.state.step}")

    def _diverged(self, what: str) -> UserError:
        kept = (
            f"the last good checkpoint is kept in {self.checkpoint}"
            if self.checkpoint.is_file()
            else "there was no checkpoint yet"
        )
        return UserError(f"{self.task.purpose}: {what}; {kept}; lower the learning rate or set max_grad_norm")

    def save(self) -> None:
        """Writes the checkpoint in one rename; never one that holds NaN. All processes must call it."""
        self._check_finite()
        self._check_weights()
        state = {
            "fingerprint": self.fingerprint,
            "step": self.state.step,
            "curve": self.state.curve,
            "sums": self.accelerator.gather(self.sums[None]),
            "network": get_model_state_dict(self.raw, options=WHOLE),
            "averaged": get_model_state_dict(self.averaged, options=WHOLE),
            "optimizer": get_optimizer_state_dict(self.raw, self.adamw, options=WHOLE),
        }
        if not self.accelerator.is_main_process:
            return
        temporary = self.checkpoint.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.checkpoint)

    def restore(self) -> None:
        """Continues from the checkpoint, if there is one that was made from the same parameters and inputs."""
        if self.checkpoint.is_file():
            # Mapped, so that the processes of a machine read it once.
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            if state["fingerprint"] == self.fingerprint:
                self._continue_from(state)
            elif self.accelerator.is_main_process:
                print(
                    f"{self.task.purpose}: the checkpoint belongs to other parameters or inputs, so training starts from the beginning",
                    file=sys.stderr,
                )
        steps = self.accelerator.gather(torch.tensor([self.state.step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise UserError(
                f"{self.task.purpose}: processes would continue from different steps {steps}; their machines must share {self.checkpoint}"
            )

    def _continue_from(self, state: dict[str, Any]) -> None:
        # With whole tensors in the file, each process takes its parts of them.
        options = StateDictOptions(full_state_dict=self.sharded)
        set_model_state_dict(self.raw, state["network"], options=options)
        set_model_state_dict(self.averaged, state["averaged"], options=options)
        set_optimizer_state_dict(self.raw, self.adamw, state["optimizer"], options=options)
        sums, process = state["sums"].to(self.sums.device), self.accelerator.process_index
        self.sums = sums[process].clone() if len(sums) == self.accelerator.num_processes else sums.mean(dim=0)
        self.state = TrainingState(state["step"], state["curve"])


class _Fetched:
    """Returns a worker's :class:`UserError` as its batch, so that it is raised again without torch's traceback."""

    def __init__(self, dataset: BatchedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Tensors | UserError:
        try:
            return self.dataset.__getitems__(indices)
        except UserError as error:
            return error


def _as_fetched(batch: Tensors | UserError) -> Tensors | UserError:
    return batch


def _split(tensors: Tensors, parts: int) -> list[Tensors]:
    """Equal micro-batches along the first dimension, of the same type as ``tensors``."""
    return [tree_map(lambda value, n=n: value.chunk(parts)[n], tensors) for n in range(parts)]
