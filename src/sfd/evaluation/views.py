"""Which images are compared, their batches and flips for the judge, and pictures of samples beside their nearest training images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sfd.class_mix import count_alike, interleave
from sfd.data.images import ManifestImages
from sfd.data.latents import views_of
from sfd.encoders.judges.judge import Judge
from sfd.evaluation.fidelity import Features, extract
from sfd.pictures import side_by_side
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


class ImageBatches:
    """Images in batches, on the judge's device."""

    def __init__(self, size: int, judge: Judge) -> None:
        self.size = size
        self.device = judge.device

    def of_images(self, images: ManifestImages, rows: Sequence[int]) -> Iterator[Tensor]:
        """The images in these rows, uint8 ``(B, 3, S, S)`` per batch."""
        for start in range(0, len(rows), self.size):
            yield images.__getitems__(list(rows[start : start + self.size])).images.to(self.device)


def judge_training_images(judge: Judge, train: ManifestImages, batch_size: int, mirror: bool) -> Features:
    """Features of all training images, followed by those of all their horizontal flips if the model was trained on both."""
    batches = ImageBatches(batch_size, judge)
    views = [
        extract(judge, (views_of(batch, mirror)[n] for batch in batches.of_images(train, list(range(len(train))))))
        for n in range(1 + mirror)
    ]
    logits = [view.logits for view in views if view.logits is not None]
    return Features(torch.cat([view.features for view in views]), torch.cat(logits) if logits else None)


def training_views(train: ManifestImages, rows: Sequence[int]) -> Tensor:
    """Training images uint8 ``(B, 3, S, S)`` by their rows in :func:`judge_training_images`; rows beyond the last image are flips."""
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
