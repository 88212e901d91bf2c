"""Which images are compared, their batches and flips for the judge, and pictures of samples beside their nearest training images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sfd.class_mix import count_alike, interleave
from sfd.data.batches import BatchedDataset, in_batches, read_ahead
from sfd.data.images import ManifestImages
from sfd.data.latents import views_of
from sfd.encoders.judges.judge import Judge
from sfd.evaluation.fidelity import Features, extract
from sfd.pictures import side_by_side
from sfd.progress import track
from sfd.seeding import generator

NUM_CLOSEST = 12
"""Rows in the picture of samples and their nearest training images."""


def choose(num_images: int, count: int, seed: int, purpose: str) -> list[int]:
    """A random choice of ``count`` of the images: their rows, in ascending order."""
    chosen = torch.randperm(num_images, generator=generator(seed, f"evaluate/{purpose}"))[:count]
    return sorted(chosen.tolist())


def choose_like(wanted: list[int], labels: list[int], seed: int, purpose: str) -> list[int]:
    """Draws images with the class counts of ``wanted``; classes that run out are filled from others.

    ``labels``: the class of each image to draw from. Returns the rows of the drawn images, in ascending order.
    """
    order = torch.randperm(len(labels), generator=generator(seed, f"evaluate/{purpose}")).tolist()
    missing = Counter(wanted)
    fitting: list[int] = []
    others: list[int] = []
    for row in order:
        (fitting if missing[labels[row]] > 0 else others).append(row)
        missing[labels[row]] -= 1
    return sorted((fitting + others)[: len(wanted)])


def choose_mix(wanted: list[int] | None, labels: list[int], seed: int, purpose: str) -> list[int]:
    """As many of the images as have the proportions of classes of ``wanted``; all of them if that is None. As :func:`choose_like`."""
    if wanted is None:
        return list(range(len(labels)))
    counts = Counter(wanted)
    order = interleave([counts[label] for label in range(max(counts) + 1)], len(labels))
    return choose_like(order[: count_alike(order, labels)], labels, seed, purpose)


def judge_images(
    judge: Judge,
    images: BatchedDataset[Tensor],
    rows: Sequence[int],
    batch_size: int,
    num_workers: int | None = None,
    mirror: bool = False,
) -> Features:
    """What the judge computes for the images in these rows, in their order.

    Args:
        images: gives images uint8 ``(B, 3, S, S)``.
        num_workers: as in :func:`sfd.data.batches.choose_workers`.
        mirror: followed by what it computes for their horizontal flips.
    """
    if not rows:
        return extract(judge, [])  # which says that there are none
    order = in_batches(rows, batch_size)
    with read_ahead(images, order, num_workers) as batches:
        shown = track((batch.to(judge.device, non_blocking=True) for batch in batches), "judged", "batch", len(order))
        seen = [[extract(judge, [view]) for view in views_of(batch, mirror)] for batch in shown]
    return Features.joined([parts[view] for view in range(1 + mirror) for parts in seen])


def training_views(train: ManifestImages, rows: Sequence[int]) -> Tensor:
    """Training images uint8 ``(B, 3, S, S)`` by their rows in :func:`judge_images` of all of them; rows beyond the last image are flips."""
    originals = train.__getitems__([row % len(train) for row in rows]).images
    return torch.stack(
        [image.flip(-1) if row >= len(train) else image for image, row in zip(originals, rows, strict=True)]
    )


def picture_nearest(closest: pd.DataFrame, samples: Tensor, train: ManifestImages, file: Path) -> None:
    """Writes a picture of samples uint8 ``(n, 3, S, S)`` beside their nearest training images.

    ``closest``: the rows of these samples in the table of :class:`sfd.evaluation.memorisation.Memorisation`.
    """
    originals = training_views(train, closest["train_index"].tolist())
    captions = [f"distance {distance:.3f}" for distance in closest["distance"]]
    side_by_side((samples, originals), captions, file, titles=("sample", "nearest training image"))
