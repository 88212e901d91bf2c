"""Copies to a device and from it, for which neither this process nor the device waits."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sfd.data.batches import each_tensor

Record = TypeVar("Record")
"""A tensor, or a tuple of tensors (or None)."""


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device. A GPU copies them from pinned memory when it comes to that."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Arriving(Generic[Record]):
    """Tensors on their way to this process's memory. Those that are there already are not copied."""

    def __init__(self, record: Record) -> None:
        on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in tree_leaves(record))
        # Without waiting, torch copies to pinned memory.
        self._record = each_tensor(record, lambda value: value.to("cpu", non_blocking=True))
        self._copied = torch.cuda.Event() if on_gpu else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> Record:
        """The tensors, when they are here. Work that the device was given later is not waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._record


def one_behind(started: Iterable[Arriving[Record]]) -> Iterator[Record]:
    """The results in their order, each when the next one has been started, so that the device always has work."""
    before: Arriving[Record] | None = None
    for each in started:
        if before is not None:
            yield before.wait()
        before = each
    if before is not None:
        yield before.wait()
