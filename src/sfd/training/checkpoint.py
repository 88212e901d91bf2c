"""Checkpoints: everything that a training continues from, in one file that is written in one rename, beside the steps that follow."""

import copy
import os
import sys
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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
from torch.utils._pytree import tree_leaves

from sfd.data.batches import each_tensor
from sfd.errors import UserError, describe_free, full_disk
from sfd.training.beside import beside
from sfd.training.sharding import WHOLE, local

FORMAT = 3
"""Of the file; another version's is not continued."""


@dataclass
class TrainingState:
    """What changes while a network is trained.

    Attributes:
        network: the network that is trained, or this process's part of it.
        averaged: the average of its weights.
        more_averages: averages with further decays.
        optimizers: with their states; each weight is in one of them.
        sums: this process's sums of the loss's terms, and of the total, since they were last logged, float64 ``(terms + 1,)``.
        num_summed: steps in these sums; ``log_every`` may have changed in between.
        step: number of finished steps.
        curve: a row per logged interval.
    """

    network: nn.Module
    averaged: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    sums: Tensor
    num_summed: int = 0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    more_averages: tuple[nn.Module, ...] = ()

    @property
    def averages(self) -> tuple[nn.Module, ...]:
        """All averages of the weights."""
        return (self.averaged, *self.more_averages)

    @property
    def changing(self) -> set[int]:
        """Where in this process's memory the tensors lie that a step changes in place."""
        states = [module.state_dict() for module in (self.network, *self.averages)]
        tensors = tree_leaves([self.sums, states, [each.state_dict() for each in self.optimizers]])
        here = [local(each) for each in tensors if isinstance(each, Tensor) and each.device.type == "cpu"]
        return {each.untyped_storage().data_ptr() for each in here}


@dataclass
class Checkpoint:
    """The file of one training. Process 0 writes it in a thread, from a copy, and at most one at a time.

    Attributes:
        file: where it is; all processes see the same folder.
        purpose: names the training in messages.
        fingerprint: stands for parameters and inputs; a file with another one is not used.
        num_steps: length of the training; a file with more steps is not used.
        accelerator: the processes that train.
        sharded: whether each of them has a part of the weights.
    """

    file: Path
    purpose: str
    fingerprint: str
    num_steps: int
    accelerator: Accelerator
    sharded: bool
    writing: "Future[None] | None" = field(default=None, init=False)

    def save(self, state: TrainingState) -> None:
        """Begins to replace the file in one rename. All processes must call it. The state may change as soon as it returns.

        Raises:
            UserError: as :meth:`settle` does of the file before.
        """
        self.settle()
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "step": state.step,
            "curve": copy.deepcopy(state.curve),
            "sums": self.accelerator.gather(state.sums[None]),
            "num_summed": state.num_summed,
            "network": get_model_state_dict(state.network, options=WHOLE),
            "averaged": get_model_state_dict(state.averaged, options=WHOLE),
            "more_averages": [get_model_state_dict(average, options=WHOLE) for average in state.more_averages],
            "optimizer": get_optimizer_state_dict(state.network, state.optimizers, options=WHOLE),
        }
        if self.accelerator.is_main_process:
            self.writing = beside(partial(self._write, _apart(content, state.changing)))

    def settle(self) -> None:
        """Waits until the file is written.

        Raises:
            UserError: the disk is full; the file that was there is kept.
        """
        if self.writing is not None:
            self.writing.result()

    def raise_failure(self) -> None:
        """As :meth:`settle`, but never waits."""
        if self.writing is not None and self.writing.done():
            self.writing.result()

    def end(self) -> None:
        """Waits until nothing is written any more, whatever became of it."""
        if self.writing is not None:
            wait([self.writing])

    def _write(self, content: dict[str, Any]) -> None:
        temporary = self.file.with_suffix(".tmp")
        try:
            with temporary.open("wb") as stream:
                torch.save(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.file)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            reason = full_disk(error)
            if reason is None:
                raise
            raise UserError(self._describe_full(reason, content)) from None

    def _describe_full(self, reason: str, content: dict[str, Any]) -> str:
        size = sum(value.nbytes for value in tree_leaves(content) if isinstance(value, Tensor)) / 2**30
        kept = "the checkpoint before it is kept" if self.file.is_file() else "there is none before it"
        return (
            f"{self.purpose}: the checkpoint of step {content['step']} cannot be written to {self.file} ({reason}): it takes {size:.2f} GiB "
            f"beside the one before it, and {describe_free(self.file.parent)} are free; {kept}. Make room, and the same command continues"
        )

    def restore(self, state: TrainingState) -> None:
        """Sets ``state`` to that of the file, if there is one with this fingerprint. All processes must call it.

        Raises:
            UserError: the processes see different files.
        """
        if self.file.is_file():
            # Mapped, so that the processes of a machine read it once.
            content = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
            obstacle = self._obstacle(content)
            if obstacle is None:
                self._set(state, content)
            elif self.accelerator.is_main_process:
                print(
                    f"{self.purpose}: the checkpoint {obstacle}, so training starts from the beginning", file=sys.stderr
                )
        steps = self.accelerator.gather(torch.tensor([state.step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise UserError(
                f"{self.purpose}: processes would continue from different steps {steps}; their machines must share {self.file}"
            )

    def _obstacle(self, content: dict[str, Any]) -> str | None:
        """Why training cannot go on from there; None if it can."""
        if (content.get("format"), content["fingerprint"]) != (FORMAT, self.fingerprint):
            return "belongs to other parameters, inputs or code"
        step = content["step"]
        return f"is of step {step:,}, and num_steps is {self.num_steps:,}" if step > self.num_steps else None

    def _set(self, state: TrainingState, content: dict[str, Any]) -> None:
        # With whole tensors in the file, each process takes its parts of them.
        options = StateDictOptions(full_state_dict=self.sharded)
        set_model_state_dict(state.network, content["network"], options=options)
        set_model_state_dict(state.averaged, content["averaged"], options=options)
        for average, weights in zip(state.more_averages, content["more_averages"], strict=True):
            set_model_state_dict(average, weights, options=options)
        set_optimizer_state_dict(state.network, state.optimizers, content["optimizer"], options=options)
        sums, process = content["sums"].to(state.sums.device), self.accelerator.process_index
        same_number = len(sums) == self.accelerator.num_processes
        state.sums = sums[process].clone() if same_number else sums.mean(dim=0)
        state.num_summed, state.step, state.curve = content["num_summed"], content["step"], content["curve"]


def _apart(content: dict[str, Any], changing: set[int]) -> dict[str, Any]:
    """The content in this process's memory, with copies of what a step changes in place."""

    def own(value: Tensor) -> Tensor:
        if value.device.type != "cpu":
            return value.cpu()
        return value.clone() if value.untyped_storage().data_ptr() in changing else value

    return each_tensor(content, own)
