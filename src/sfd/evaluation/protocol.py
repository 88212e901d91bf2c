"""The evaluation protocol: which images the judge sees, how many, and what they are compared with."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sfd.class_mix import count_alike, scarcest
from sfd.data.images import ManifestImages
from sfd.data.latents import views_of
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.texture_vae import TextureVae
from sfd.errors import UserError
from sfd.evaluation.enough import count_images
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import Reference, Sets, check_num_images, score
from sfd.evaluation.memorisation import memorisation
from sfd.evaluation.reference import ReferenceBatch
from sfd.evaluation.views import NUM_CLOSEST, choose, choose_like, choose_mix, picture_nearest
from sfd.generation.samples import read_images, read_table
from sfd.names import INCEPTION, reference_name
from sfd.params import EvaluateParams
from sfd.seeding import generator

SAMPLES, REFERENCE, RECONSTRUCTIONS, FLIPPED = "samples", "reference", "reconstructions", "flipped"
"""Names of sets of features, beside those of the manifest's splits."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Every process extracts its share of the features; after a barrier, one process computes the metrics.

    ``table``: the table of the samples in folder ``samples``. ``reference``: None if the held-out images are the reference.
    """

    params: EvaluateParams
    data: Prepared
    vae: TextureVae
    samples: Path
    seed: int
    store: FeatureStore
    table: pd.DataFrame
    heldout: ManifestImages
    train: ManifestImages
    reference: ReferenceBatch | None

    @classmethod
    def open(
        cls, params: EvaluateParams, data: Prepared, vae: TextureVae, samples: Path, seed: int, store: FeatureStore
    ) -> "Evaluation":
        """Opens everything before the judge sees an image.

        Raises:
            UserError: samples are missing; or the reference is broken, too small, or needs another judge.
        """
        reference = None
        if params.reference is not None:
            if store.judge.name != INCEPTION:
                raise UserError(
                    f"evaluate.reference holds statistics of Inception-v3, but the judge in results/judge is {store.judge.name!r}; "
                    f"run `dvc repro judge`, or set evaluate.reference to null"
                )
            reference = ReferenceBatch.open(Path(params.reference), store.judge)
            if reference.image_shape is not None:
                check_num_images(reference.image_shape[0], params)
        table, heldout, train = read_table(samples), data.images(HELDOUT), data.images(TRAIN)
        found = cls(params, data, vae, samples, seed, store, table, heldout, train, reference)
        try:
            check_num_images(found.count, params)
        except UserError as error:
            raise UserError(". ".join([str(error), *found.notes])) from None
        return found

    @cached_property
    def count(self) -> int:
        """Number of images in every set that is compared: the most with the samples' class mix. A published reference keeps its own number."""
        others = [self.train] if self.reference else [self.train, self.heldout]
        if self.classes is None:
            return min(len(self.table), *map(len, others))
        return count_alike(self.classes, *(images.class_indices.tolist() for images in others))

    @property
    def asked_classes(self) -> list[int] | None:
        """The class index for which each sample was drawn; None if the model is not told a class."""
        return self.table["class_index"].tolist() if "class_index" in self.table else None

    @property
    def classes(self) -> list[int] | None:
        """:attr:`asked_classes`, if they are classes of this data set: then the sets that are compared have the mix of their first ones."""
        asked = self.asked_classes
        return asked if asked is not None and max(asked) < self.data.num_classes else None

    @property
    def notes(self) -> list[str]:
        """What a user must know of the class mix: which class is short, or that the mix is not the same."""
        asked, sets = self.asked_classes, [self.train] if self.reference else [self.train, self.heldout]
        if asked is None or self.count == min(len(self.table), *map(len, sets)):
            return []
        if self.classes is None:
            return [f"samples have class index {max(asked)}, but the data set has {self.data.num_classes} classes"]
        short = scarcest(asked, *(images.class_indices.tolist() for images in sets))
        return [
            f"{self.count} of {len(self.table)} samples are compared, because there are too few images of class "
            f"{self.data.summary.classes[short]!r} to compare more in the samples' class mix; with sample.class_mix `natural`, or a "
            "larger data.holdout_fraction, there are more"
        ]

    @property
    def heldout_rows(self) -> Sequence[int]:
        """Rows of the held-out images that are the reference; all rows if the reference is a file."""
        if self.reference:
            return range(len(self.heldout))
        return self._rows_like_samples(self.heldout, "heldout")

    @property
    def train_rows(self) -> list[int]:
        """Rows of the training images that give the floors."""
        return self._rows_like_samples(self.train, "train")

    def _rows_like_samples(self, images: ManifestImages, purpose: str) -> list[int]:
        """Rows of images with the class mix of the compared samples, so that these differ from them in nothing but quality.

        If samples were drawn without a class, the images are chosen at random.
        """
        if self.classes is None:
            return choose(len(images), self.count, self.seed, purpose)
        return choose_like(self.classes[: self.count], images.class_indices.tolist(), self.seed, purpose)

    def extract(self) -> None:
        """Extracts this process's share of all features."""
        files, train_rows, mirror = self.table["file"].tolist(), self.train_rows, self.data.params.mirror

        def sampled(rows: range) -> list[Tensor]:
            return [read_images(self.samples, files[rows.start : rows.stop])]

        def reconstructions(rows: range) -> list[Tensor]:
            chosen = train_rows[rows.start : rows.stop]
            return [_reconstruct(_read(self.train, chosen).to(self.store.device), self.vae, self.seed, chosen)]

        fill = self.store.fill
        fill([SAMPLES], len(files), sampled, self._all_fields)
        self.extract_reference()
        if self.reference is not None:
            fill([HELDOUT], len(self.heldout), lambda rows: [_read(self.heldout, rows)])
        fill([RECONSTRUCTIONS], len(train_rows), reconstructions)
        fill(self._training_sets, len(self.train), lambda rows: views_of(_read(self.train, rows), mirror))

    def extract_reference(self) -> None:
        """Extracts this process's share of the features of the images that samples are compared with."""
        if self.reference is None:
            self.store.fill(
                [HELDOUT], len(self.heldout), lambda rows: [_read(self.heldout, rows)], keep=self._all_fields
            )
        elif self.reference.image_shape is not None:
            with self.reference.images() as read:
                self.store.fill([REFERENCE], self.reference.image_shape[0], lambda rows: [read(rows)])

    def compared_with(self) -> Reference:
        """What samples are compared with, when :meth:`extract_reference` is done."""
        if self.reference is None:
            return Reference.of(self.store.read(HELDOUT).take(self.heldout_rows))
        images = None if self.reference.image_shape is None else self.store.read(REFERENCE)
        return Reference(self.reference.statistics, self.reference.spatial, images)

    @property
    def _all_fields(self) -> list[str]:
        """The fields of :class:`sfd.evaluation.fidelity.Features` that this judge has."""
        return ["features", "logits", "spatial"] if self.store.judge.num_spatial_features else ["features", "logits"]

    @property
    def _training_sets(self) -> list[str]:
        return [TRAIN, FLIPPED] if self.data.params.mirror else [TRAIN]

    def measure(self, out: Path) -> tuple[dict[str, float], list[Path]]:
        """Writes ``metrics.json``, ``measurement.json``, ``nearest.csv`` and ``nearest.png``; returns the metrics and the files.

        ``measurement.json`` records how the metrics were measured. Only metrics with equal records can be compared.
        """
        samples, heldout, asked = self.store.read(SAMPLES), self.store.read(HELDOUT), self.asked_classes
        sets = Sets(
            samples=samples.take(range(self.count)),
            heldout=heldout.take(self.heldout_rows),
            train=self.store.read(TRAIN, self.train_rows),
            reconstruction=self.store.read(RECONSTRUCTIONS),
            sample_labels=None if asked is None else torch.tensor(asked[: self.count]),
            heldout_labels=self.heldout.class_indices[list(self.heldout_rows)],
            reference=None if self.reference is None else self.compared_with(),
        )
        train, device = self.store.blocks(self._training_sets), self.store.device
        like = choose_mix(self.classes, self.heldout.class_indices.tolist(), self.seed, "memorisation")
        memorised = memorisation(samples.features, train, heldout.take(like).features, device=device)
        metrics = score(self.store.judge, sets, memorised, self.params, self.seed, device)
        others = {
            "class_accuracy_heldout": len(sets.heldout),
            "memorised_fraction": min(len(samples), len(like)),
        }
        if sets.reference is not None and sets.reference.images is not None:
            others["recall"] = len(sets.reference.images)
        metrics |= count_images(metrics, others, self.params, self.store.judge)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (out / "measurement.json").write_text(json.dumps(self._measurement(), indent=2) + "\n", encoding="utf-8")
        memorised.table.to_csv(out / "nearest.csv", index=False)
        closest = memorised.table.head(NUM_CLOSEST)
        shown = read_images(self.samples, self.table["file"].iloc[closest["sample_index"]].tolist())
        picture_nearest(closest, shown, self.train, out / "nearest.png")
        return metrics, [out / name for name in ("metrics.json", "measurement.json", "nearest.csv", "nearest.png")]

    def _measurement(self) -> dict[str, object]:
        """The judge, the number and size of images, their class mix (a digest of the number per class), the reference (its name, and
        a digest of the sha256 of its images in order, or of its file), and all options that change a metric."""
        rows = "\n".join(self.heldout.sha256[row] for row in self.heldout_rows)
        mix = None if self.asked_classes is None else sorted(Counter(self.asked_classes[: self.count]).items())
        return {
            "judge": self.store.judge.name,
            "judge_digest": self.store.judge.digest,
            "num_images": self.count,
            "image_size": self.heldout.size,
            "reference_name": reference_name(self.params.reference),
            "class_mix": hashlib.sha256(json.dumps(mix).encode()).hexdigest(),
            "reference": hashlib.sha256(rows.encode()).hexdigest()
            if self.reference is None
            else self.reference.digest(),
            **self.params.model_dump(exclude={"reference", "min_images"}),
        }


def _read(source: ManifestImages, rows: Sequence[int]) -> Tensor:
    """The images in these rows, uint8 ``(B, 3, S, S)``."""
    return source.__getitems__(list(rows)).images


def _reconstruct(images: Tensor, vae: TextureVae, seed: int, rows: Sequence[int]) -> Tensor:
    """Images, numbered ``rows``, after the VAE round trip. Latents are samples of the posterior, as in the training set of diffusion."""
    shape = vae.latent_shape(1, images.shape[-1])[1:]
    noise = torch.stack([torch.randn(shape, generator=generator(seed, "evaluate/reconstruction", row)) for row in rows])
    return vae.decode(vae.encode(images, noise.to(images.device)))
