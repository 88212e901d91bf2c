"""Stage ``evaluate``: puts samples, held-out images and their floors before the judge."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sfd.data.images import ManifestImages
from sfd.data.latents import mirrorings
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judge import Judge
from sfd.encoders.texture_vae import TextureVae
from sfd.evaluation.fidelity import Features, Sets, extract, score
from sfd.evaluation.memorisation import memorisation
from sfd.evaluation.pictures import pairs
from sfd.evaluation.samples import read_images, read_table
from sfd.params import EvaluateParams
from sfd.seeding import generator

NUM_CLOSEST = 12
"""Rows in the picture of samples and their nearest training images."""


def evaluate(
    params: EvaluateParams, data: Prepared, judge: Judge, vae: TextureVae, samples: Path, seed: int, out: Path
) -> tuple[dict[str, float], list[Path]]:
    """Writes ``metrics.json``, ``measurement.json``, ``nearest.csv`` and ``nearest.png``; returns the metrics and the files.

    ``measurement.json`` says what the metrics were measured with: only metrics of equal measurements can be compared.
    All sets have the same count: that of the smaller of samples and held-out images (and training images).
    """
    table, heldout, train = read_table(samples), data.images(HELDOUT), data.images(TRAIN)
    count = min(len(table), len(heldout), len(train))
    sampled = Batches(params.batch_size, judge)
    heldout_rows, train_rows = choose(len(heldout), count, seed, "heldout"), choose(len(train), count, seed, "train")
    everything = judge_training_images(judge, train, params.batch_size, data.params.mirror)
    sample_features = extract(judge, sampled.of_files(samples, table["file"].tolist()))
    heldout_features = extract(judge, sampled.of_images(heldout, list(range(len(heldout)))))
    sets = Sets(
        samples=_take(sample_features, list(range(count))),
        heldout=_take(heldout_features, heldout_rows),
        train=_take(everything, train_rows),
        reconstruction=extract(judge, _reconstructions(sampled.of_images(train, train_rows), vae, seed)),
        sample_labels=torch.tensor(table["class_index"].tolist()[:count]),
        heldout_labels=heldout.class_indices[heldout_rows],
    )
    memorised = memorisation(sample_features.features, everything.features, heldout_features.features)
    metrics = score(judge, sets, memorised, params, seed)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _write_measurement(params, judge, heldout, heldout_rows, out / "measurement.json")
    memorised.table.to_csv(out / "nearest.csv", index=False)
    closest = memorised.table.head(NUM_CLOSEST)
    shown = read_images(samples, table["file"].iloc[closest["sample_index"]].tolist())
    picture_nearest(closest, shown, train, out / "nearest.png")
    return metrics, [out / name for name in ("metrics.json", "measurement.json", "nearest.csv", "nearest.png")]


def _write_measurement(
    params: EvaluateParams, judge: Judge, heldout: ManifestImages, rows: Sequence[int], file: Path
) -> None:
    """The judge, the reference (a digest of its images' sha256 in order), how many images, and all options but the batch size."""
    facts = {
        "judge": judge.name,
        "judge_digest": judge.digest,
        "num_images": len(rows),
        "image_size": heldout.size,
        "reference": hashlib.sha256("\n".join(heldout.sha256[row] for row in rows).encode()).hexdigest(),
        **params.model_dump(exclude={"batch_size"}),
    }
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def choose(num_images: int, count: int, seed: int, purpose: str) -> list[int]:
    """A random choice of ``count`` images, in order."""
    chosen = torch.randperm(num_images, generator=generator(seed, f"evaluate/{purpose}"))[:count]
    return sorted(chosen.tolist())


def _take(features: Features, rows: list[int]) -> Features:
    return Features(features.features[rows], None if features.logits is None else features.logits[rows])


class Batches:
    """Images in batches, on the judge's device."""

    def __init__(self, size: int, judge: Judge) -> None:
        self.size = size
        self.device = next(judge.parameters()).device

    def of_files(self, folder: Path, files: list[str]) -> Iterator[Tensor]:
        """Sampled images by file name, uint8 ``(B, 3, S, S)``."""
        for start in range(0, len(files), self.size):
            yield read_images(folder, files[start : start + self.size]).to(self.device)

    def of_images(self, images: ManifestImages, rows: Sequence[int]) -> Iterator[Tensor]:
        """Rows of the manifest, uint8 ``(B, 3, S, S)``."""
        for start in range(0, len(rows), self.size):
            yield images.__getitems__(list(rows[start : start + self.size]))[0].to(self.device)


def judge_training_images(judge: Judge, train: ManifestImages, batch_size: int, mirror: bool) -> Features:
    """All training images, and behind them all mirrored ones, if the model was trained on those too."""
    batches = Batches(batch_size, judge)
    views = [
        extract(judge, (mirrorings(batch, mirror)[n] for batch in batches.of_images(train, list(range(len(train))))))
        for n in range(1 + mirror)
    ]
    logits = [view.logits for view in views if view.logits is not None]
    return Features(torch.cat([view.features for view in views]), torch.cat(logits) if logits else None)


def _reconstructions(batches: Iterator[Tensor], vae: TextureVae, seed: int) -> Iterator[Tensor]:
    """What the texture VAE makes of images, by a sample of the posterior, as in the training set of diffusion."""
    for number, images in enumerate(batches):
        random = generator(seed, "evaluate/reconstruction", number)
        noise = torch.randn(vae.latent_shape(len(images), images.shape[-1]), generator=random)
        yield vae.decode(vae.encode(images, noise.to(images.device)))


def training_views(train: ManifestImages, rows: Sequence[int]) -> Tensor:
    """Training images uint8 ``(B, 3, S, S)`` by their rows in :func:`judge_training_images`: behind the last one they are mirrored."""
    originals = train.__getitems__([row % len(train) for row in rows])[0]
    return torch.stack(
        [image.flip(-1) if row >= len(train) else image for image, row in zip(originals, rows, strict=True)]
    )


def picture_nearest(closest: pd.DataFrame, samples: Tensor, train: ManifestImages, file: Path) -> None:
    """Samples uint8 ``(n, 3, S, S)`` beside their nearest training images.

    ``closest``: their rows of the table of :class:`sfd.evaluation.memorisation.Memorisation`.
    """
    originals = training_views(train, closest["train_index"].tolist())
    captions = [f"distance {distance:.3f}" for distance in closest["distance"]]
    pairs(samples, originals, captions, file, titles=("sample", "nearest training image"))
