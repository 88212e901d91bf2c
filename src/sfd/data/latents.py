"""Composite latents ``[texture ; semantic]``: written in shards, with statistics; read normalised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd.class_mix import evenly_spaced
from sfd.data.batches import BatchedDataset, in_batches, read_ahead
from sfd.data.networks import Networks
from sfd.data.shards import Shard, ShardReader, missing_shards, rows_to_read, shard_bounds, share_of, write_shards
from sfd.data.text_tokens import CaptionTexts, TextTokens, TokensIndex
from sfd.data.transfer import Arriving, one_behind
from sfd.errors import UserError
from sfd.models.conditions import TextFacts
from sfd.models.words import Words
from sfd.network_files import write_tensors
from sfd.params import ComputedIn, LatentsParams, ReadingRuntime
from sfd.progress import progress

if TYPE_CHECKING:
    from sfd.data.images import ImageBatch  # that module imports pandas, and whoever loads a model would wait for it

STATISTICS = "statistics.safetensors"
LATENTS, LABELS, FEATURES = "latents", "labels", "features"
"""Tensors of a shard. ``labels`` is the class of each image, which conditions are made of."""
HELDOUT_IMAGES = 1000
"""The most held-out images that are encoded. Stage ``diffusion`` measures its loss on them; of ImageNet, with features, they take 0.4 GB."""
Encode = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]
"""Images uint8 ``(B, 3, S, S)`` and one draw number per image -> composite latent ``(B, C, H, W)`` and features ``(B, N, D)``."""


@dataclass(frozen=True)
class LatentsIndex:
    """What holds for all stored latents ``(num_views, C, grid, grid)``.

    Attributes:
        num_views: 2 if each image is stored flipped, too; else 1.
        grid: side of the latents, positions.
        texture_channels: the first channels of the composite.
        semantic_channels: the last ones; 0 without semantics.
        feature_dim: channels of the encoder's patch features, stored or not; 0 without an encoder.
        classes: names of the classes, by class index.
        class_counts: images of each class, by class index.
        networks: what the latents came from.
        tiles: parts along one side of an image that were encoded to semantics one by one.
        precision: the type in which the networks computed.
    """

    num_views: int
    grid: int
    texture_channels: int
    semantic_channels: int
    feature_dim: int
    classes: list[str]
    class_counts: list[int]
    networks: Networks
    tiles: int
    precision: ComputedIn = "fp32"


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of every channel of the composite, ``(C,)``."""

    mean: Tensor
    std: Tensor

    def normalise(self, latent: Tensor) -> Tensor:
        """``(B, C, H, W)`` raw -> mean 0 and standard deviation 1 per channel."""
        return (latent - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, latent: Tensor) -> Tensor:
        """Inverse of :meth:`normalise`."""
        return latent * self.std[:, None, None] + self.mean[:, None, None]

    def to(self, device: torch.device) -> "ChannelStatistics":
        """The same on a device."""
        return ChannelStatistics(self.mean.to(device), self.std.to(device))

    def save(self, file: Path) -> None:
        """Writes safetensors."""
        write_tensors(file, {"mean": self.mean, "std": self.std})

    @classmethod
    def load(cls, file: Path) -> "ChannelStatistics":
        """Inverse of :meth:`save`."""
        tensors = load_file(file)
        return cls(tensors["mean"], tensors["std"])


def heldout_rows(total: int) -> list[int]:
    """The rows of the held-out images that are encoded, evenly spaced. ``total``: of all."""
    return evenly_spaced(total, HELDOUT_IMAGES)


def views_of(images: Tensor, mirror: bool) -> list[Tensor]:
    """The images ``(B, C, H, W)``; and flipped horizontally, if ``mirror`` allows that."""
    return [images, images.flip(-1)] if mirror else [images]


def write_latents(
    folder: Path,
    images: BatchedDataset["ImageBatch"],
    rows: Sequence[int],
    encode: Encode,
    device: torch.device,
    params: LatentsParams,
    runtime: ReadingRuntime,
    mirror: bool,
    rank: int,
    world_size: int,
    split: str = "training",
) -> list[tuple[int, int]]:
    """Latents of these images in fp16 ``(n, views, C, H, W)``, their classes, and features if they are wanted; returns the bounds.

    Every draw is numbered by (place in ``rows``, view). ``device``: where ``encode`` takes images. ``split``: what messages call the images.
    Raises :class:`UserError` naming the images if a latent is NaN, or infinite in fp16.
    """
    bounds = shard_bounds(len(rows), params.shard_size)

    def start_batch(batch: "ImageBatch", places: list[int]) -> Arriving[_Encoded]:
        views = enumerate(views_of(batch.images.to(device, non_blocking=True), mirror))
        encoded = [encode(view, [place * 2 + n for place in places]) for n, view in views]
        latents = torch.stack([latent.half() for latent, _ in encoded], dim=1)
        features = torch.stack([feature.half() for _, feature in encoded], dim=1) if params.store_features else None
        return Arriving(_Encoded(latents, latents.isfinite().all(), batch.class_indices, features))

    def make(start: int, end: int) -> Shard:
        parts = []
        for places in in_batches(range(start, end), runtime.batch_size):
            parts.append(next(encoded))
            if not parts[-1].is_finite:
                raise UserError(
                    f"a latent of {split} images {places[0]} to {places[-1]} is not finite in fp16; "
                    "check the texture VAE, the encoder and the semantic encoder"
                )
            shown.update(len(places))
        shard = {
            LATENTS: torch.cat([part.latents for part in parts]),
            LABELS: torch.cat([part.labels for part in parts]),
        }
        features = [part.features for part in parts if part.features is not None]
        return shard | ({FEATURES: torch.cat(features)} if features else {})

    with progress(f"latents of {split} images", "image", share_of(bounds, rank, world_size)) as shown:
        missing = missing_shards(folder, bounds, rank, world_size, shown)
        order = rows_to_read(range(len(rows)), bounds, missing, runtime.batch_size)
        with read_ahead(
            images, [[rows[place] for place in places] for places in order], runtime.num_workers
        ) as batches:
            encoded = one_behind(map(start_batch, batches, order))
            write_shards(folder, bounds, make, missing)
    return bounds


class _Encoded(NamedTuple):
    """A batch of images, encoded: what :func:`write_latents` stores, and whether all latents are finite, a single truth value."""

    latents: Tensor
    is_finite: Tensor
    labels: Tensor
    features: Tensor | None


def channel_statistics(reader: ShardReader[Any], max_images: int) -> ChannelStatistics:
    """Statistics of at most ``max_images`` images, evenly spaced, all views, summed in float64."""
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for row in evenly_spaced(len(reader), max_images):
        latent = reader.rows(LATENTS, [row])[0].double()
        total, squares = total + latent.sum(dim=(0, 2, 3)), squares + latent.square().sum(dim=(0, 2, 3))
        count += latent.numel() // latent.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return ChannelStatistics(mean.float(), std.float())


class LatentBatch(NamedTuple):
    """What the diffusion model is trained on.

    Attributes:
        latents: normalised composite latents, float32 ``(B, C, H, W)``.
        class_indices: the class of each image, int64 ``(B,)``.
        features: the encoder's patch features, fp16 as they are stored, ``(B, N, D)``; None unless they are stored and wanted.
        words: a caption of each image, fp16 as it is stored; None where a model is told no words.
        texts: where no words are stored, the captions' bytes (:meth:`sfd.data.text_tokens.CaptionTexts.texts`); a task makes words of them.
    """

    latents: Tensor
    class_indices: Tensor
    features: Tensor | None = None
    words: Words | None = None
    texts: Tensor | None = None


def text_facts(facts: TokensIndex) -> TextFacts:
    """What a condition of words is made of."""
    return TextFacts(facts.width, facts.max_tokens, facts.encoder, tuple(facts.examples))


class LatentDataset:
    """Normalised composite latents for training, one sample per view.

    With captions, a sample's number goes on over the epochs, and each epoch draws a caption anew.
    """

    def __init__(self, folder: Path, with_features: bool, text: TextTokens | CaptionTexts | None = None) -> None:
        """Raises :class:`UserError` naming a shard that is missing. Whether they are whole, ``reader.check`` says.

        ``text``: the captions of the same images; None: a model is told no words.
        """
        self.reader = ShardReader(folder, LatentsIndex)
        self.statistics = ChannelStatistics.load(folder / STATISTICS)
        self.with_features, self.text = with_features, text
        self.null_words = None if text is None else text.null_words
        self.text_facts = None if text is None else text_facts(text.facts)
        if text is not None and len(text) != len(self.reader):
            raise UserError(
                f"{text.reader.folder} has captions of {len(text)} images, but {folder} has {len(self.reader)} images; run `dvc repro`"
            )

    @property
    def index(self) -> LatentsIndex:
        """What holds for all latents."""
        return self.reader.facts

    @property
    def counts_epochs(self) -> bool:
        """As :class:`sfd.data.batches.BatchedDataset` says."""
        return self.text is not None

    def __len__(self) -> int:
        return len(self.reader) * self.index.num_views

    def __getitems__(self, numbers: list[int]) -> LatentBatch:
        """The samples of these numbers, with features if they are wanted."""
        indices = [number % len(self) for number in numbers]
        images = [index // self.index.num_views for index in indices]
        latents = self.statistics.normalise(self._pick(LATENTS, images, indices).float())
        features = self._pick(FEATURES, images, indices) if self.with_features else None
        words = self.text.words(images, numbers) if isinstance(self.text, TextTokens) else None
        texts = self.text.texts(images, numbers) if isinstance(self.text, CaptionTexts) else None
        return LatentBatch(latents, torch.stack(self.reader.rows(LABELS, images)), features, words, texts)

    def _pick(self, name: str, images: list[int], indices: list[int]) -> Tensor:
        views = [index % self.index.num_views for index in indices]
        return torch.stack(self.reader.rows(name, images, views))
