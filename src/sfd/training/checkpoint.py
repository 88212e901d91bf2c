"""Checkpoints: everything that a training continues from, in one file that is written in one rename."""

import os
import sys
from dataclasses import dataclass, field
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
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

from sfd.errors import UserError, describe_free, full_disk
from sfd.training.sharding import WHOLE

FORMAT = 2
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
    averaged: AveragedModel
    optimizers: tuple[torch.optim.Optimizer, ...]
    sums: Tensor
    num_summed: int = 0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    more_averages: tuple[AveragedModel, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training.

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

    def save(self, state: TrainingState) -> None:
        """Replaces the file in one rename. All processes must call it.

        Raises:
            UserError: the disk is full; the file that was there is kept.
        """
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "step": state.step,
            "curve": state.curve,
            "sums": self.accelerator.gather(state.sums[None]),
            "num_summed": state.num_summed,
            "network": get_model_state_dict(state.network, options=WHOLE),
            "averaged": get_model_state_dict(state.averaged, options=WHOLE),
            "more_averages": [get_model_state_dict(average, options=WHOLE) for average in state.more_averages],
            "optimizer": get_optimizer_state_dict(state.network, state.optimizers, options=WHOLE),
        }
        if not self.accelerator.is_main_process:
            return
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
        for average, weights in zip(state.more_averages, content.get("more_averages", []), strict=True):
            set_model_state_dict(average, weights, options=options)
        set_optimizer_state_dict(state.network, state.optimizers, content["optimizer"], options=options)
        sums, process = content["sums"].to(state.sums.device), self.accelerator.process_index
        same_number = len(sums) == self.accelerator.num_processes
        state.sums = sums[process].clone() if same_number else sums.mean(dim=0)
        state.num_summed, state.step, state.curve = content["num_summed"], content["step"], content["curve"]
