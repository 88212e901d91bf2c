"""The evaluation protocol: what judges see of the samples and of real images, and what is made of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from sfd.data.images import Pixels
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge
from sfd.encoders.texture_vae import TextureVae
from sfd.errors import UserError
from sfd.evaluation.classes import class_table
from sfd.evaluation.comparison import Comparison
from sfd.evaluation.enough import count_images
from sfd.evaluation.extraction import FeatureStore, Source, fill
from sfd.evaluation.fidelity import Features, Reference, Sets, check_num_images, resampled_distances, score
from sfd.evaluation.kernel import cmmd
from sfd.evaluation.memorisation import Memorisation, memorisation
from sfd.evaluation.originals import EVERYTHING, RECONSTRUCTIONS, Kept, Originals, holding
from sfd.evaluation.reference import ReferenceBatch
from sfd.evaluation.several import ratios, score_distance
from sfd.evaluation.swaps import SwapScores, score_swaps
from sfd.evaluation.views import NUM_CLOSEST, choose_mix, picture_nearest
from sfd.evaluation.words import Prompts, Scores
from sfd.generation.samples import SampledImages, read_images, read_table
from sfd.generation.swaps import SWAPS, read_swaps
from sfd.names import (
    CLIP_SCORE,
    FDR,
    FLOORS,
    INCEPTION,
    MIRRORED,
    distance_name,
    floor_name,
    ratio_name,
    reference_name,
    with_floors,
)
from sfd.params import EvaluateParams

SAMPLES, REFERENCE = "samples", "reference"
"""Names of sets of features, beside those of :mod:`sfd.evaluation.originals`."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Every process extracts its share of the features; after a barrier, one process computes the metrics.

    Attributes:
        params: section ``evaluate``.
        samples: the folder of the samples; ``table``: its table.
        originals: what they are compared with.
        stores: one per judge, the first judge's first, for what is not kept.
        kept: what stage ``reference`` extracted, by judge.
        counted: the judges whose distances make `fdr`: all but the encoder.
        reference: None if the held-out images are the reference.
    """

    params: EvaluateParams
    samples: Path
    table: pd.DataFrame
    originals: Originals
    stores: Sequence[FeatureStore]
    kept: Kept
    counted: Sequence[str]
    reference: ReferenceBatch | None

    @classmethod
    def open(
        cls,
        params: EvaluateParams,
        data: Prepared,
        vae: TextureVae,
        samples: Path,
        seed: int,
        stores: Sequence[FeatureStore],
        kept: Kept | None = None,
        counted: Sequence[str] | None = None,
    ) -> "Evaluation":
        """Opens everything before a judge sees an image. ``kept`` None: nothing; ``counted`` None: all judges.

        Raises:
            UserError: samples are missing; or the reference is broken, too small, or needs another judge.
        """
        reference, first = None, stores[0].judge
        if params.reference is not None:
            if first.name != INCEPTION:
                raise UserError(
                    f"evaluate.reference holds statistics of Inception-v3, but the first judge in results/judge is {first.name!r}; "
                    f"run `dvc repro judge`, or set evaluate.reference to null"
                )
            reference = ReferenceBatch.open(Path(params.reference), first)
            if reference.image_shape is not None:
                check_num_images(reference.image_shape[0], params)
        table = read_table(samples)
        asked = table["class_index"].tolist() if "class_index" in table else None
        originals = Originals.of(params, vae, Comparison(data, len(table), asked, seed))
        names = [store.judge.name for store in stores] if counted is None else counted
        found = cls(params, samples, table, originals, stores, kept or [None] * len(stores), names, reference)
        try:
            check_num_images(found.comparison.count, params)
        except UserError as error:
            raise UserError(". ".join([str(error), *found.comparison.notes])) from None
        return found

    @cached_property
    def words(self) -> Prompts | None:
        """The prompts of the samples and the captions of the images; None if the model is told no words."""
        return Prompts.of(self.table, self.comparison.data, self.comparison.seed)

    @property
    def comparison(self) -> Comparison:
        """That of the first judge."""
        return self.originals.comparison

    @property
    def judges(self) -> list[Judge]:
        """The judges, in their order."""
        return [store.judge for store in self.stores]

    def extract(self) -> None:
        """Extracts this process's share of all features that are not kept."""
        files, first = self.table["file"].tolist(), self.stores[0].judge
        drawn = Source(SampledImages(self.samples, files))
        fill(self.stores, [SAMPLES], range(len(files)), drawn, {first.name: EVERYTHING})
        self.originals.fill(self.stores, self.kept)
        self.extract_reference()
        if self.words is not None and self.words.asked.rows:
            rows, read = sorted(set(self.words.mirrored)), Pixels(self.comparison.heldout)
            fill(self.stores[:1], [MIRRORED], rows, Source(read, lambda images, _rows: [images.flip(-1)]))

    def extract_reference(self) -> None:
        """Extracts this process's share of what the first judge sees of the images that samples are compared with, unless it is kept."""
        if self.reference is None:
            self.originals.fill_heldout(self.stores[:1], self.kept[:1])
        elif self.reference.image_shape is not None:
            with self.reference.images() as images:
                self.stores[0].fill([REFERENCE], range(len(images)), Source(images, is_stream=True))

    def compared_with(self) -> Reference:
        """What the first judge compares samples with, when :meth:`extract_reference` is done."""
        return self._published() or Reference.of(self._seen(0, HELDOUT, self.comparison.heldout_rows))

    def _seen(self, number: int, name: str, rows: Sequence[int]) -> Features:
        """What one of the judges saw of real images."""
        return holding([self.kept[number], self.stores[number]], name, rows).read(name, rows)

    def _sets(self, number: int) -> Sets:
        """What one of the judges saw of the images that it compares."""
        chosen = self.comparison if number == 0 else self.originals.plain
        asked = chosen.asked
        return Sets(
            samples=self.stores[number].read(SAMPLES, range(chosen.count)),
            heldout=self._seen(number, HELDOUT, chosen.heldout_rows),
            train=self._seen(number, TRAIN, chosen.train_rows),
            reconstruction=self._seen(number, RECONSTRUCTIONS, chosen.train_rows),
            sample_labels=None if asked is None else torch.tensor(asked[: chosen.count]),
            heldout_labels=chosen.heldout.class_indices[list(chosen.heldout_rows)],
            reference=self._published() if number == 0 else None,
        )

    def measure(self, out: Path) -> tuple[dict[str, float], list[Path]]:
        """Writes ``metrics.json``, ``measurement.json``, ``classes.csv``, about memorisation ``nearest.csv`` and ``nearest.png``, and about words
        ``text.json``, ``text.csv`` and ``swaps.csv``; returns the metrics and the files.

        ``measurement.json`` records how the metrics were measured. Only metrics with equal records can be compared.
        """
        memorised, device = self._memorisation(), self.stores[0].device
        sets = [self._sets(number) for number in range(len(self.stores))]
        spreads = {
            judge.name: resampled_distances(each, self.comparison.seed, device)
            for judge, each in zip(self.judges, sets, strict=True)
        }
        first = self.judges[0]
        metrics = score(first, sets[0], memorised, self.params, self.comparison.seed, spreads[first.name])
        for judge, each in zip(self.judges[1:], sets[1:], strict=True):
            metrics |= score_distance(judge.name, each, spreads[judge.name])
        metrics |= ratios(metrics, spreads, self.counted) | self._cmmd(sets)
        words, counts = Scores(), self._counts(sets[0])
        of_words = self._score_words(words, memorised, out)
        metrics |= words.all_metrics()
        metrics |= count_images(metrics, counts | words.counts, self.params, first, self.judges[1:])
        files = {"metrics.json": metrics, "measurement.json": self._measurement()}
        for name, content in files.items():
            (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        made = [*(out / name for name in files), *of_words]
        if sets[0].sample_labels is not None and first.knows_classes:
            made.append(out / "classes.csv")
            class_table(first, sets[0], self.comparison.data.summary.classes, self.params).to_csv(made[-1], index=False)
        return metrics, made + ([] if memorised is None else self._write_nearest(memorised, out))

    @cached_property
    def _like(self) -> list[int]:
        """Rows of the held-out images that show how near to training images samples may be: as many as have the samples' class mix."""
        labels = self.comparison.heldout.class_indices.tolist()
        return choose_mix(self.comparison.classes, labels, self.comparison.seed, "memorisation")

    def _memorisation(self) -> Memorisation | None:
        """Which samples are nearly training images; None if that was not asked for."""
        if not self.params.memorisation:
            return None
        comparison, stores = self.comparison, [self.kept[0], self.stores[0]]
        train = holding(stores, TRAIN, range(len(comparison.train))).blocks(self.originals.training_sets)
        heldout = holding(stores, HELDOUT, self._like).read(HELDOUT, self._like).features
        return memorisation(self.stores[0].read(SAMPLES).features, train, heldout, device=self.stores[0].device)

    def _score_words(self, scores: Scores, memorised: Memorisation | None, out: Path) -> list[Path]:
        """Adds the scores of a model that is told words, and writes what is known beside them; returns the files."""
        words, first = self.words, self.judges[0]
        if words is None:
            return []
        heldout, device = self.comparison.heldout, self.stores[0].device
        samples, real = self.stores[0].read(SAMPLES), self._seen(0, HELDOUT, range(len(heldout))).features
        train = next(store for store in (self.kept[0], self.stores[0]) if store is not None and TRAIN in store.rows)
        found = None
        if words.asked.rows:
            flipped = _read_rows(self.stores[0], MIRRORED, words.mirrored)
            found = words.score_retrieval(
                scores,
                samples.features,
                real,
                flipped,
                lambda rows: _read_rows(train, TRAIN, rows),
                train.rows[TRAIN],
                device,
            )
            words.score_classes(scores, first, samples, heldout.class_indices)
        if memorised is not None:
            words.score_pairs(scores, memorised)
        clip = self._clip
        if clip is not None:
            embedded = self._seen(clip, HELDOUT, range(len(heldout))).features
            words.score_clip(scores, self.judges[clip], self.stores[clip].read(SAMPLES).features, embedded)
        files = self._score_swaps(words, scores, out)
        return [*words.write(out, scores, found, heldout.paths), *files]

    @property
    def _clip(self) -> int | None:
        """The place of the first judge that embeds texts."""
        return next((place for place, judge in enumerate(self.judges) if judge.embeds_texts), None)

    @cached_property
    def _swaps(self) -> pd.DataFrame | None:
        """The table of attribute swaps that stage `sample` drew; None if it drew none."""
        return read_swaps(self.samples)

    def _score_swaps(self, words: Prompts, scores: Scores, out: Path) -> list[Path]:
        if self._swaps is None:
            return []
        real = [(self.comparison.heldout, words.heldout), (self.comparison.train, words.train)]
        found: SwapScores = score_swaps(self.samples, self._swaps, real, self.comparison.seed)
        found.add_to(scores)
        found.table.to_csv(out / "swaps.csv", index=False)
        return [out / "swaps.csv"]

    def _cmmd(self, sets: Sequence[Sets]) -> dict[str, float]:
        """The kernel distance on the judge that the parameters name, and its floors."""
        number = next((place for place, judge in enumerate(self.judges) if judge.name == self.params.cmmd), None)
        if number is None:
            return {}
        seen = sets[number]
        images = {"cmmd": seen.samples, "cmmd_heldout": seen.train, "cmmd_reconstruction": seen.reconstruction}
        return {name: cmmd(each.features, seen.heldout.features) for name, each in images.items()}

    def _counts(self, sets: Sets) -> dict[str, int]:
        """Images of the metrics that rest on another number than the compared samples."""
        counts = {"class_accuracy_heldout": len(sets.heldout)}
        if self.params.memorisation:
            counts["memorised_fraction"] = min(len(self.table), len(self._like))
        if sets.reference is not None and sets.reference.images is not None:
            counts["recall"] = counts["coverage"] = len(sets.reference.images)
        names = [judge.name for judge in self.judges[1:]]
        own = [key for name in names for key in (distance_name(name), ratio_name(name))]
        floors = [floor_name(name, floor, is_first=False) for name in names for floor in FLOORS]
        return counts | dict.fromkeys([*own, *floors, FDR, *with_floors("cmmd")], self.originals.plain.count)

    def _write_nearest(self, memorised: Memorisation, out: Path) -> list[Path]:
        table, picture = out / "nearest.csv", out / "nearest.png"
        memorised.table.to_csv(table, index=False)
        closest = memorised.table.head(NUM_CLOSEST)
        shown = read_images(self.samples, self.table["file"].iloc[closest["sample_index"]].tolist())
        picture_nearest(closest, shown, self.comparison.train, picture)
        return [table, picture]

    def _published(self) -> Reference | None:
        if self.reference is None:
            return None
        images = None if self.reference.image_shape is None else self.stores[0].read(REFERENCE)
        return Reference(self.reference.statistics, self.reference.spatial, images)

    def _measurement(self) -> dict[str, object]:
        """The first judge, the type it computes in, the number and size of images, their class mix (a digest of the number per class), the
        reference (its name, and a digest of the sha256 of its images in order, or of its file), and all options that change a metric; and the
        digests of the other judges, `judge_digest.NAME`, on which no metric but their own and `fdr` rests. Of words: digests of the prompts, and of
        the attribute swaps, on which `swap_accuracy` alone rests; and the judge of the CLIP score."""
        comparison = self.comparison
        rows = "\n".join(comparison.heldout.sha256[row] for row in comparison.heldout_rows)
        asked = comparison.asked
        mix = None if asked is None else sorted(Counter(asked[: comparison.count]).items())
        first, *others = self.judges
        record: dict[str, object] = {
            "judge": first.name,
            "judge_digest": first.digest,
            "precision": first.computed_in,
            "num_images": comparison.count,
            "image_size": comparison.heldout.size,
            "reference_name": reference_name(self.params.reference),
            "class_mix": hashlib.sha256(json.dumps(mix).encode()).hexdigest(),
            "reference": hashlib.sha256(rows.encode()).hexdigest()
            if self.reference is None
            else self.reference.digest(),
            **self.params.model_dump(include={"neighbours", "kid_subsets", "kid_subset_size"}),
        }
        if others:
            record |= {f"judge_digest.{judge.name}": judge.digest for judge in others} | {FDR: ", ".join(self.counted)}
        if self.words is not None:
            record["prompts"] = self.words.digest()
            record |= {} if self._clip is None else {CLIP_SCORE: self.judges[self._clip].name}
        if self._swaps is not None:
            record[SWAPS] = hashlib.sha256(self._swaps.to_csv(index=False).encode()).hexdigest()
        return record | ({} if self.params.cmmd is None else {"cmmd": self.params.cmmd})


def _read_rows(store: FeatureStore, name: str, rows: Sequence[int]) -> torch.Tensor:
    """Features of a set by rows in any order, which may repeat."""
    held = sorted(set(rows))
    place_of = {row: place for place, row in enumerate(held)}
    return store.read(name, held).features[[place_of[row] for row in rows]]
