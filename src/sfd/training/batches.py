"""How batches reach the training loop: the data set fetches a whole batch at once, in this process or in workers."""

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from torch.utils.data import DataLoader

from sfd.errors import UserError

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class BatchedDataset(Protocol[Batch_co]):
    """A data set that fetches a whole batch at once.

    A batch is a tensor, or a ``NamedTuple`` of tensors (or None), with the images along the first dimension.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Batch_co: ...


def read_batches(dataset: BatchedDataset[Batch], order: Iterable[list[int]], num_workers: int) -> Iterator[Batch]:
    """The batches of these indices, in order, read ahead by ``num_workers`` processes; 0: by this one.

    Raises:
        UserError: the data set raised it.
    """
    loader: DataLoader[Batch | UserError] = DataLoader(
        _Fetched(dataset),  # type: ignore[arg-type]  # DataLoader needs no more than BatchedDataset has
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=_as_fetched,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Fetched(Generic[Batch]):
    """Returns a worker's :class:`UserError` as its batch, so that it is raised again without torch's traceback."""

    def __init__(self, dataset: BatchedDataset[Batch]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Batch | UserError:
        try:
            return self.dataset.__getitems__(indices)
        except UserError as error:
            return error


def _as_fetched(batch: Batch | UserError) -> Batch | UserError:
    """Replaces the collation: what is fetched is a batch already."""
    return batch
