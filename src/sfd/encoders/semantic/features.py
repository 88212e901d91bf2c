"""Patch features: the training set of the semantic encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sfd.data.batches import BatchedDataset, in_batches, read_ahead
from sfd.data.images import ImageBatch
from sfd.data.latents import views_of
from sfd.data.shards import Shard, ShardReader, missing_shards, rows_to_read, shard_bounds, share_of, write_shards
from sfd.data.transfer import Arriving, one_behind
from sfd.encoders.vision import VisionEncoder
from sfd.params import ComputedIn, FeaturesParams, ReadingRuntime
from sfd.progress import progress
from sfd.seeding import generator

REPORT_IMAGES = 1000
"""Stored images that the quality of a semantic encoder is measured on; all that one from a file needs."""


def feature_order(num_images: int, most: int, seed: int) -> list[int]:
    """Indices of the images whose features are stored: a random choice of at most ``most``, in ascending order."""
    chosen = torch.randperm(num_images, generator=generator(seed, "features/choice"))[:most]
    return sorted(chosen.tolist())


def write_features(
    folder: Path,
    images: BatchedDataset[ImageBatch],
    encoder: VisionEncoder,
    chosen: list[int],
    params: FeaturesParams,
    runtime: ReadingRuntime,
    mirror: bool,
    rank: int,
    world_size: int,
) -> list[tuple[int, int]]:
    """Writes features of the chosen images as fp16 ``(n, views, N, D)``; returns the shards' bounds."""
    bounds = shard_bounds(len(chosen), params.shard_size)

    def start_batch(batch: ImageBatch) -> Arriving[Tensor]:
        pixels = batch.images.to(encoder.device, non_blocking=True)
        return Arriving(torch.stack([encoder(view).half() for view in views_of(pixels, mirror)], dim=1))

    def make(start: int, end: int) -> Shard:
        parts = []
        for _ in in_batches(range(start, end), runtime.batch_size):
            parts.append(next(encoded))
            shown.update(len(parts[-1]))
        return {"features": torch.cat(parts)}

    with progress("features", "image", share_of(bounds, rank, world_size)) as shown:
        missing = missing_shards(folder, bounds, rank, world_size, shown)
        order = rows_to_read(chosen, bounds, missing, runtime.batch_size)
        with read_ahead(images, order, runtime.num_workers) as batches:
            encoded = one_behind(map(start_batch, batches))
            write_shards(folder, bounds, make, missing)
    return bounds


@dataclass(frozen=True)
class FeaturesIndex:
    """Facts about all stored features ``(num_views, tokens, feature_dim)``.

    ``images``: the rows of the training images, in order. ``centre``: the side of the centre crop that the encoder saw, pixels; None: the images
    as they are prepared. ``precision``: the type in which the encoder computed.
    """

    num_views: int
    tokens: int
    feature_dim: int
    images: list[int]
    centre: int | None
    precision: ComputedIn = "fp32"


class FeatureBatch(NamedTuple):
    """``features``: the encoder's patch features, fp16 as they are stored, ``(B, N, D)``."""

    features: Tensor


class FeatureDataset:
    """Stored features, one sample per view."""

    def __init__(self, folder: Path) -> None:
        """Raises :class:`UserError` if a shard is missing. Whether they are whole, ``reader.check`` says."""
        self.reader = ShardReader(folder, FeaturesIndex)

    @property
    def index(self) -> FeaturesIndex:
        """Facts about all stored features."""
        return self.reader.facts

    def __len__(self) -> int:
        return len(self.reader) * self.index.num_views

    def __getitems__(self, indices: list[int]) -> FeatureBatch:
        """The features of these samples."""
        rows = self.reader.rows("features", [index // self.index.num_views for index in indices])
        views = [row[index % self.index.num_views] for row, index in zip(rows, indices, strict=True)]
        return FeatureBatch(torch.stack(views))
