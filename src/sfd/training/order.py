"""Which samples make up the batch of a step: a function of (seed, purpose, step) alone, so that resuming needs no state."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from sfd.seeding import generator


class SeededBatchSampler(Sampler[list[int]]):
    """Batches of one process: sample indices for steps ``start_step`` to ``num_steps``.

    The endless sequence of samples is a new permutation per epoch, seeded by the epoch; a batch may span two epochs.
    Process ``rank`` takes its share of the rows of every batch, so the batch is the same on any number of processes.

    ``counts_epochs``: a sample's number goes on from epoch to epoch, as ``epoch * num_samples + index``, for data sets that draw something for it.
    """

    def __init__(
        self,
        seed: int,
        purpose: str,
        num_samples: int,
        batch_size: int,
        start_step: int,
        num_steps: int,
        rows: slice,
        counts_epochs: bool = False,
    ) -> None:
        self.counts_epochs = counts_epochs
        self.seed, self.purpose, self.num_samples = seed, purpose, num_samples
        self.batch_size, self.start_step, self.num_steps, self.rows = batch_size, start_step, num_steps, rows
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.num_steps):
            yield self.batch(step)[self.rows]

    def batch(self, step: int) -> list[int]:
        """Sample indices of the whole batch of ``step``, over all processes."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        size = self.num_samples
        indices = [int(self._order(p // size)[p % size]) for p in positions]
        return (
            [index + p // size * size for index, p in zip(indices, positions, strict=True)]
            if self.counts_epochs
            else indices
        )

    def _order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            random = generator(self.seed, f"{self.purpose}/order", epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.num_samples, generator=random)
        return self._permutation
