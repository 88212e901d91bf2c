"""The training loop: accelerate, EMA, exact resume, losses logged as they are."""

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from sfd.data.batches import Batch, BatchedDataset, Record, choose_workers, each_tensor, read_batches
from sfd.data.transfer import Arriving
from sfd.errors import UserError
from sfd.params import Sharding, TrainingParams, TrainingRuntime
from sfd.precision import computing_type, tf32
from sfd.processes import Terminated, form_group, handled, inference_device, say_at_once
from sfd.progress import progress
from sfd.training.beside import beside
from sfd.training.checkpoint import Checkpoint, TrainingState
from sfd.training.optimizer import build_optimizers
from sfd.training.order import SeededBatchSampler
from sfd.training.rate import learning_rate
from sfd.training.sharding import WHOLE, local, sharded_copy

Draws = TypeVar("Draws")
LogMetrics = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Callback:
    """Something to do with the averaged network during training: ``call(network, step)`` every ``every`` steps.

    What it returns is logged, and becomes part of the curve. ``at_end``: after the last step, too. A curve must not depend on where a
    training ends that goes on later, so a callback that returns something is not called there. ``decay``: of the average, one of
    ``more_decays`` of :func:`train`; None: ``ema_decay``.

    Process 0 calls it, and the others wait for that in their next step. ``together``: all of them call it and share its work, unless each has
    a part of the weights only; what process 0 returns counts.
    """

    call: Callable[[nn.Module, int], dict[str, float] | None]
    every: int
    at_end: bool = True
    decay: float | None = None
    together: bool = False

    def is_due(self, step: int, last: bool) -> bool:
        """Whether it is to be done after ``step`` steps."""
        return step % self.every == 0 or (last and self.at_end)


AGREE_EVERY = 5
"""Steps after which several processes ask one another whether a signal to end came. They hear the answer when they ask again."""


def check_nothing() -> None:
    """For data that need no check."""


def log_nothing(metrics: dict[str, float], step: int) -> None:
    """For trainings whose losses are not kept."""


class Task(Protocol[Batch, Draws]):
    """What the loop must know of one network that it trains.

    ``Batch`` is what the data set gives, ``Draws`` what a step draws: each a tensor, or a ``NamedTuple`` of tensors (or None), with the
    images along the first dimension.

    If it has a method ``complete``, each batch goes through it before it goes to the device: what the data set lacks is added so, once per
    step and without autocast.
    """

    @property
    def purpose(self) -> str:
        """Names the task's random draws."""

    @property
    def network(self) -> nn.Module:
        """The network, initialised."""

    @property
    def dataset(self) -> BatchedDataset[Batch]:
        """Its training samples."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The loss is the sum of ``weights[term] * losses[term]`` over these terms."""

    def noise(self, step: int, batch_size: int, device: torch.device) -> Draws:
        """All random draws of a step for the whole batch, seeded by the step."""

    def losses(self, network: nn.Module, data: Batch, noise: Draws) -> dict[str, Tensor]:
        """The terms of the loss as means over the images given."""


@dataclass(frozen=True)
class Trained:
    """``network`` holds the averaged weights, in evaluation mode, on the CPU. ``curve``: a row per logged interval.

    ``more_averages``: networks with the averages of further decays, by decay. After sharded training only process 0 has the weights; the
    others have networks that must not be used.
    """

    network: nn.Module
    curve: list[dict[str, float]]
    more_averages: Mapping[float, nn.Module] = field(default_factory=dict)

    def copy_to(self, network: nn.Module) -> None:
        """Puts the averaged weights into ``network``, in evaluation mode on the CPU."""
        network.load_state_dict(self.network.state_dict())
        network.eval().cpu()


def train(
    task: Task[Batch, Draws],
    params: TrainingParams,
    seed: int,
    work: Path,
    fingerprint: str,
    log: LogMetrics,
    runtime: TrainingRuntime | None = None,
    callbacks: Sequence[Callback] = (),
    sharding: Sharding = "ddp",
    more_decays: Sequence[float] = (),
    check: Callable[[], None] = check_nothing,
) -> Trained:
    """Trains ``task.network`` in place and returns its averaged weights.

    Killed at any moment and called again with the same ``work`` folder, it ends with the same bytes (same device, same number of processes).
    With another number of processes it continues as well, the same beyond rounding.
    ``runtime`` (None: its defaults) may be another one, too, with the same weights.
    A finished training continues in the same way when ``params.num_steps`` is raised, unless the learning rate depends on it.
    ``more_decays``: of further averages of the weights, each of which takes the memory of one copy of the network, and changes nothing else.
    ``check``: looks whether the data are whole, in a thread beside the first steps. No checkpoint is written before it has returned.

    Raises:
        UserError: the batch cannot be shared evenly, the loss became NaN or infinite, the disk is full, or the data set or ``check`` raised it.
        Terminated: SIGTERM or Ctrl-C came; a checkpoint was saved.
    """
    trainer = _Trainer(
        task, params, seed, work, fingerprint, log, runtime or TrainingRuntime.model_validate({}), sharding, more_decays
    )
    trainer.checkpoint.restore(trainer.state)
    try:
        trainer.run(callbacks, check)
    finally:
        trainer.checkpoint.end()
    more = {decay: trainer.take_average(decay) for decay in more_decays}
    return Trained(trainer.whole_average().eval().cpu(), trainer.state.curve, more)


class _Trainer(Generic[Batch, Draws]):
    def __init__(
        self,
        task: Task[Batch, Draws],
        params: TrainingParams,
        seed: int,
        work: Path,
        fingerprint: str,
        log: LogMetrics,
        runtime: TrainingRuntime,
        sharding: Sharding,
        more_decays: Sequence[float],
    ) -> None:
        form_group()
        bf16 = computing_type(params.precision, inference_device()) == torch.bfloat16
        AcceleratorState._reset_state()  # else a process could not train in bf16 after a training in float32, as a study may
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not torch.cuda.is_available())
        self.task, self.params, self.runtime, self.seed, self.log = task, params, runtime, seed, log
        self.rows = self._rows()
        device = self.accelerator.device
        # A single process has nobody to share with. The task's own network stays whole, for previews and the result.
        self.sharded = sharding == "fsdp" and self.accelerator.num_processes > 1
        raw = sharded_copy(task.network, device, bf16, runtime.compile) if self.sharded else task.network.to(device)
        raw.train()
        self.more_decays = tuple(more_decays)
        # The initial weights count as the first average, as in the publication.
        averaged, *more = (
            sharded_copy(task.network, device, bf16) if self.sharded else copy.deepcopy(raw)
            for _ in (params.ema_decay, *more_decays)
        )
        optimizers = build_optimizers(raw, params)
        self.terms = [*task.weights, "total"]
        sums = torch.zeros(len(self.terms), dtype=torch.float64, device=device)
        self.state = TrainingState(raw, averaged, optimizers, sums, more_averages=tuple(more))
        self.checkpoint = Checkpoint(
            work / "checkpoint.pt", task.purpose, fingerprint, params.num_steps, self.accelerator, self.sharded
        )
        self.network: Any = torch.compile(raw) if runtime.compile and not self.sharded else raw
        self.optimizers: Sequence[Any] = optimizers
        if not self.sharded:
            self.network, *self.optimizers = self.accelerator.prepare(self.network, *optimizers)
        self.bad = torch.zeros(1 + len(self.terms), dtype=torch.float64, device=device)
        self.stop_signal = 0
        self.asked: Arriving[Tensor] | None = None
        self.checked: Future[None] | None = None
        self.interval_start = (0, 0.0)

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

    def run(self, callbacks: Sequence[Callback], check: Callable[[], None]) -> None:
        """All remaining steps. SIGTERM and Ctrl-C end the process between two steps, with a checkpoint."""
        with handled(self._request_stop), tf32(self.params.precision != "fp32", self.accelerator.device):
            self._run_steps(callbacks, check)
            self.checkpoint.settle()
        if self._ask().wait() > 0:
            self._stop()
        if self.state.num_summed:
            self._log_interval()  # not in the checkpoint: a longer training goes on with this interval

    def _run_steps(self, callbacks: Sequence[Callback], check: Callable[[], None]) -> None:
        params, runtime, state, size = self.params, self.runtime, self.state, self.params.batch_size
        order = SeededBatchSampler(
            self.seed,
            self.task.purpose,
            len(self.task.dataset),
            size,
            state.step,
            params.num_steps,
            self.rows,
            getattr(self.task.dataset, "counts_epochs", False),
        )
        self.interval_start = (state.step, time.perf_counter())
        shown = progress(self.task.purpose, "image", params.num_steps * size, state.step * size)
        workers = choose_workers(runtime.num_workers, self.task.dataset, len(self.task.dataset), size)
        with shown as bar, read_batches(self.task.dataset, order, workers) as batches:
            if state.step < params.num_steps:
                self.checked = beside(check)
            for data in map(getattr(self.task, "complete", lambda batch: batch), batches):
                self._step(data)
                state.step += 1
                self._raise_failures()
                last = state.step == params.num_steps
                if state.step % runtime.log_every == 0:
                    bar.bar.set_postfix(loss=f"{self._log_interval():.4f}")
                bar.update(size, self._place)
                self._call([callback for callback in callbacks if callback.is_due(state.step, last)])
                stop = self._must_stop(ask=state.step % AGREE_EVERY == 0)
                if state.step % runtime.checkpoint_every == 0 or last or stop:
                    self._save()
                if stop:
                    self._stop()

    def _place(self) -> str:
        """Where the training is, for a line of progress."""
        state = self.state
        loss = state.sums[-1].item() / state.num_summed if state.num_summed else state.curve[-1]["total"]
        return f"step {state.step:,} of {self.params.num_steps:,}, loss {loss:.4f}"

    def _request_stop(self, number: int, _frame: object) -> None:
        if not self.stop_signal:
            self.stop_signal = number
            step, last = self.state.step, self.params.num_steps
            say_at_once(
                f"{self.task.purpose}: {signal.Signals(number).name} at step {step} of {last}; a checkpoint is saved, and the same command continues"
            )

    def _must_stop(self, ask: bool) -> bool:
        """Whether a signal to end came. Several processes agree on it when they ``ask``, so that all stop at the same step.

        They hear what was asked the time before, which their devices have summed long ago, so that they need not wait for them.
        """
        if self.accelerator.num_processes == 1:
            return self.stop_signal > 0
        if not ask:
            return False
        answer, self.asked = self.asked, self._ask()
        return answer is not None and bool(answer.wait() > 0)

    def _ask(self) -> Arriving[Tensor]:
        """Whether a signal to end came to any process: then the number is above 0. All processes must call it."""
        flag = torch.full((), float(self.stop_signal), device=self.accelerator.device)
        return Arriving(self.accelerator.reduce(flag, reduction="sum"))

    def _raise_failures(self) -> None:
        """Raises what the work beside the steps has met."""
        self.checkpoint.raise_failure()
        if self.checked is not None and self.checked.done():
            self.checked.result()

    def _stop(self) -> NoReturn:
        """Ends all processes. None may go before the checkpoint is written: launchers end a job when its first process has failed."""
        self.checkpoint.settle()
        self.accelerator.wait_for_everyone()
        raise Terminated(self.stop_signal or signal.SIGTERM)

    def whole_average(self, decay: float | None = None) -> nn.Module:
        """The network with averaged weights; all processes must call it, and with sharding process 0 alone gets the weights.

        ``decay``: as in :class:`Callback`. With sharding, all averages take turns in one network.
        """
        state = self.state
        averaged = state.averaged if decay is None else state.more_averages[self.more_decays.index(decay)]
        if not self.sharded:
            return averaged
        weights = get_model_state_dict(averaged, options=WHOLE)
        if self.accelerator.is_main_process:
            self.task.network.load_state_dict(weights)
        return self.task.network

    def take_average(self, decay: float) -> nn.Module:
        """:meth:`whole_average` on the CPU, in evaluation mode, as a network of its own."""
        network = self.whole_average(decay).eval().cpu()
        return copy.deepcopy(network) if self.sharded else network

    def _call(self, callbacks: list[Callback]) -> None:
        for decay in dict.fromkeys(callback.decay for callback in callbacks):
            network, is_first = self.whole_average(decay), self.accelerator.is_main_process
            for callback in callbacks:
                if callback.decay != decay or not (is_first or (callback.together and not self.sharded)):
                    continue
                found = callback.call(network, self.state.step)
                if found is not None and is_first:
                    self.log(found, self.state.step)
                    self._extend_curve(found)
            if self.sharded and is_first:
                network.cpu()  # makes room on the device again

    def _step(self, data: Batch) -> None:
        params, device, state = self.params, self.accelerator.device, self.state
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(params, state.step)
        data = each_tensor(data, lambda value: value.to(device, non_blocking=True))
        noise = each_tensor(self.task.noise(state.step, params.batch_size, device), lambda value: value[self.rows])
        parts = params.accumulation_steps
        totals = torch.zeros_like(state.sums)
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
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for average, decay in zip(state.averages, (params.ema_decay, *self.more_decays), strict=True):
            _update_average(average, state.network, decay)
        state.sums += totals
        state.num_summed += 1
        # The first step that is not finite is remembered on the device, so that no step waits for it.
        bad_now = torch.cat([totals.new_full((1,), state.step + 1.0), totals])
        self.bad = torch.where((self.bad[0] == 0) & ~totals.isfinite().all(), bad_now, self.bad)

    @contextmanager
    def _without_exchange(self) -> Iterator[None]:
        """Gradients of a micro-batch that is not the last stay in their process."""
        if not self.sharded:
            with self.accelerator.no_sync(self.network):
                yield
            return
        sharded: Any = self.state.network
        sharded.set_requires_gradient_sync(False)
        yield
        sharded.set_requires_gradient_sync(True)

    def _log_interval(self) -> float:
        """Logs the averages of all terms since the last call, over all processes; returns that of the total."""
        self._check_finite()
        params, state = self.params, self.state
        means = self.accelerator.reduce(state.sums, reduction="mean") / state.num_summed
        state.sums.zero_()
        state.num_summed = 0
        row: dict[str, float] = dict(zip(self.terms, means.tolist(), strict=True))
        self._extend_curve(row)
        (start, started), now = self.interval_start, time.perf_counter()
        self.interval_start = (state.step, now)
        speed = (state.step - start) * params.batch_size / (now - started)
        self.log(row | {"images": state.step * params.batch_size, "images_per_second": speed}, state.step)
        return row["total"]

    def _extend_curve(self, values: dict[str, float]) -> None:
        """Adds values to the row of this step."""
        curve, step = self.state.curve, self.state.step
        if not curve or curve[-1]["step"] != step:
            curve.append({"step": step})
        curve[-1] |= values

    def _check_finite(self) -> None:
        """Raises :class:`UserError` on all processes if the loss of one of them was NaN or infinite."""
        found = [row for row in self.accelerator.gather(self.bad[None]).tolist() if row[0]]
        if found:
            step, *terms = min(found, key=lambda row: row[0])
            values = ", ".join(f"{name} {value:g}" for name, value in zip(self.terms, terms, strict=True))
            raise self._diverged(f"the loss is not finite at step {int(step)} ({values})")

    def _check_weights(self) -> None:
        """A finite loss can have a gradient that is not finite. Raises :class:`UserError` on all processes if it reached the weights."""
        finite = torch.stack([local(p).isfinite().all() for p in self.state.network.parameters()]).all()
        if self.accelerator.reduce((~finite).double(), reduction="sum") > 0:
            raise self._diverged(f"the weights are not finite after step {self.state.step}")

    def _diverged(self, what: str) -> UserError:
        if self.checked is not None:
            self.checked.result()  # data that are damaged would be the reason
        self.checkpoint.settle()
        self.accelerator.wait_for_everyone()  # the others look at the file, too
        kept = (
            f"the last good checkpoint is kept in {self.checkpoint.file}"
            if self.checkpoint.file.is_file()
            else "there was no checkpoint yet"
        )
        return UserError(f"{self.task.purpose}: {what}; {kept}; lower the learning rate or set max_grad_norm")

    def _save(self) -> None:
        """Writes the checkpoint; never one that holds NaN, or was trained on data that are not known to be whole."""
        if self.checked is not None:
            self.checked.result()
        self._check_finite()
        self._check_weights()
        self.checkpoint.save(self.state)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """``average = decay * average + (1 - decay) * network`` for all weights; buffers are copied.

    That is torch's ``AveragedModel``, which would wait for the device in every step, because it sends it the number of averages.
    """
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def _split(record: Record, parts: int) -> list[Record]:
    """Equal micro-batches along the first dimension."""
    return [each_tensor(record, lambda value, n=n: value.chunk(parts)[n]) for n in range(parts)]  # type: ignore[misc]
