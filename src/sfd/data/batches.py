"""How batches reach a training or a network that is used: the data set fetches a whole batch at once, in this process or in workers."""

import errno
import multiprocessing
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader

from sfd.errors import UserError
from sfd.processes import SIGNALS, cores, processes_here

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)
Record = TypeVar("Record")
"""A tensor, or a ``NamedTuple`` of tensors (or None): a batch, or what a step draws."""

FEW_IMAGES = 2000
"""Fewer are read sooner by the process itself, where they are small, than workers are started and ended."""
SHARED_MEMORY = "/dev/shm"
HELD_BATCHES = 3
"""Batches that each worker has in shared memory at most: two that wait, and the one that is used."""
STALLED_S = 600
"""Workers that give no batch for so long never will."""
WITHOUT_WORKERS = "`num_workers: 0` reads batches without them"
ENDED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)"
)


class BatchedDataset(Protocol[Batch_co]):
    """A data set that fetches a whole batch at once.

    In a training, one with ``counts_epochs = True`` gets numbers that go on over the epochs (:class:`sfd.training.order.SeededBatchSampler`).

    A batch is a tensor, or a ``NamedTuple`` of tensors (or None), with the images along the first dimension.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Batch_co: ...


def choose_workers(num_workers: int | None, dataset: "BatchedDataset[object]", num_images: int, batch_size: int) -> int:
    """How many processes read images ahead: ``num_workers`` of them, or as many as are of use here.

    That is one for each core that this process may use. None are of use for fewer than :data:`FEW_IMAGES`, nor on a single core without a
    GPU, which could compute meanwhile. There are no more than shared memory has room for, and none but on Linux, where they are forked.

    Args:
        num_workers: an option's value; None: as above.
        dataset: its first image is read, to know how large a batch is.
        num_images: images that there are to read.
        batch_size: of the largest batch.
    """
    if num_workers is not None:
        return num_workers
    found = cores()
    if sys.platform != "linux" or num_images < FEW_IMAGES or (found == 1 and not torch.cuda.is_available()):
        return 0
    image = sum(value.nbytes for value in tree_leaves(dataset.__getitems__([0])) if isinstance(value, Tensor))
    room = shutil.disk_usage(SHARED_MEMORY).free // processes_here()
    return min(found, room // (HELD_BATCHES * batch_size * max(1, image)))


def each_tensor(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    """The same record with every tensor changed."""
    changed: Record = tree_map_only(Tensor, change, record)
    return changed


@contextmanager
def read_batches(
    dataset: BatchedDataset[Batch], order: Iterable[list[int]], num_workers: int
) -> Iterator[Iterator[Batch]]:
    """The batches of these indices, in order, read ahead by ``num_workers`` processes; 0: by this one.

    Where there is a GPU, batches are in pinned memory, from which ``to(device, non_blocking=True)`` copies while this process goes on.

    SIGTERM and Ctrl-C, which reach all processes of a terminal or of a scheduler's job, do not end the workers: this process needs them
    until it has saved its work.

    Raises:
        UserError: the data set raised it, or the workers cannot go on. The latter may come anywhere in the block.
    """
    loader: DataLoader[Batch | UserError] = DataLoader(
        _Fetched(dataset, num_workers > 0),  # type: ignore[arg-type]  # DataLoader needs no more than BatchedDataset has
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=_as_fetched,
        timeout=STALLED_S if num_workers else 0,
        pin_memory=torch.cuda.is_available(),
        # Workers of Python's newer way to start processes end with the process that starts them, which signals reach.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
    )
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        batches = iter(loader)  # starts the workers, which inherit that signals are blocked
    except OSError as error:  # locks are in shared memory, too
        if error.errno == errno.ENOSPC:
            raise _small_memory(error) from None
        raise UserError(f"processes that read batches ahead cannot be started ({error}); {WITHOUT_WORKERS}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield _raised(batches)
    except RuntimeError as error:
        reason = _describe_lost_workers(f"{error.__cause__} {error}")
        if reason is None:
            raise
        raise UserError(reason) from None
    finally:
        _end(set(multiprocessing.active_children()) - others)


def in_batches(rows: Sequence[int], size: int) -> list[list[int]]:
    """These rows, ``size`` at a time."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@contextmanager
def read_ahead(
    dataset: BatchedDataset[Batch], order: Sequence[list[int]], num_workers: int | None
) -> Iterator[Iterator[Batch]]:
    """:func:`read_batches` by as many processes as :func:`choose_workers` says."""
    sizes = list(map(len, order))
    workers = min(len(order), choose_workers(num_workers, dataset, sum(sizes), max(sizes, default=0)))
    with read_batches(dataset, order, workers) as batches:
        yield batches


def _end(workers: Iterable[BaseProcess]) -> None:
    """Ends workers that are still there. One that stalls would hold up the end of this process."""
    workers = list(workers)
    if not workers:
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's takes their end for a failure
    try:
        for worker in workers:
            worker.kill()
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _raised(batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _describe_lost_workers(message: str) -> str | None:
    """What became of the workers, from one of DataLoader's errors, which have no type of their own; None for other errors."""
    ended = ENDED.search(message)
    if ended is not None:
        pids, cause = ended.groups()
        return (
            f"a process that reads batches ahead (pid {pids}) was ended{f' by {cause}' if cause else ''}; often memory, or /dev/shm, is too "
            f"small: enlarge it, or lower `num_workers`; {WITHOUT_WORKERS}"
        )
    if "DataLoader timed out" in message:
        return f"the processes that read batches ahead gave none for {STALLED_S} s; look at the disk of the data; {WITHOUT_WORKERS}"
    if "Too many open files" in message:
        return f"too many files are open to read batches ahead; raise the limit (`ulimit -n`); {WITHOUT_WORKERS}"
    return None


class _Fetched(Generic[Batch]):
    """Returns a worker's :class:`UserError` as its batch, so that it is raised again without torch's traceback.

    ``shares``: the batch is put into shared memory here. DataLoader would do it in a thread, whose errors nobody waits for.
    """

    def __init__(self, dataset: BatchedDataset[Batch], shares: bool) -> None:
        self.dataset, self.shares = dataset, shares

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Batch | UserError:
        try:
            batch = self.dataset.__getitems__(indices)
            return _share(batch) if self.shares else batch
        except UserError as error:
            return error


def _share(batch: Batch) -> Batch:
    """Moves all tensors to shared memory. Raises :class:`UserError` if that is full."""
    try:
        shared: Batch = tree_map_only(Tensor, Tensor.share_memory_, batch)
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise _small_memory(error) from None
    return shared


def _small_memory(error: Exception) -> UserError:
    return UserError(
        f"shared memory is too small for the processes that read batches ahead ({' '.join(str(error).split())}): enlarge /dev/shm (docker: "
        f"`--shm-size 8g`, or `--ipc host`), or lower `num_workers`; {WITHOUT_WORKERS}"
    )


def _as_fetched(batch: Batch | UserError) -> Batch | UserError:
    """Replaces the collation: what is fetched is a batch already."""
    return batch
