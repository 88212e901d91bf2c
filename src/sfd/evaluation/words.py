"""What a model that is told words is scored by: agreement of samples and prompts, memorised pairs, the CLIP score and the classes of prompts.

Every score has what chance gives beside it (`_chance`: prompts are shuffled), and where real images can be put in the samples' place, what they
reach (`_heldout`, `_mirrored`). See docs/evaluation.md, "Words".

Legend of shapes: S samples, Q of them that are scored, M held-out images, D features.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge
from sfd.evaluation.agreement import (
    Asked,
    Measured,
    Retrieval,
    carriers_of,
    measure_fraction,
    measure_median,
    retrieve,
    same_text,
)
from sfd.evaluation.fidelity import Features, class_accuracy
from sfd.evaluation.memorisation import Memorisation
from sfd.evaluation.pairs import memorised_pairs
from sfd.evaluation.uncertainty import balanced_error
from sfd.names import CHANCE, CLIP_SCORE, ERROR_PREFIX, MEMORISED_PAIRS, MIRRORED, RECALLED, TEXT_RANK
from sfd.seeding import generator

TABLE, REPORT = "text.csv", "text.json"
CAPTIONS = "captions"
"""The manifest's column with the captions of each image."""


def captions_of(data: Prepared, split: str) -> list[list[str]]:
    """The captions of every image of a split, in the manifest's order; none of any where the images have no captions."""
    rows = data.manifest[data.manifest["split"] == split]
    if CAPTIONS not in rows:
        return [[] for _ in range(len(rows))]
    return [[str(text) for text in texts] for texts in rows[CAPTIONS]]


@dataclass
class Scores:
    """Metrics with their standard errors, the number of images of each, and what a report says beside them. Filled step by step."""

    metrics: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, found: Measured, count: int, **beside: float | None) -> None:
        """A metric, and what is ``beside`` it by ending (None: not known)."""
        known = {f"{name}_{ending}": value for ending, value in beside.items() if value is not None}
        self.metrics |= {name: found.value} | known
        self.errors[name] = found.error
        self.counts |= dict.fromkeys((name, *known), count)
        self.report[name] = asdict(found) | {ending: value for ending, value in beside.items() if value is not None}

    def all_metrics(self) -> dict[str, float]:
        """Metrics and ``se_METRIC``."""
        return self.metrics | {ERROR_PREFIX + name: error for name, error in self.errors.items()}


@dataclass(frozen=True)
class Prompts:
    """The words of one evaluation.

    Attributes:
        files: of the samples; ``prompts``: theirs, in their order.
        heldout, train: captions of the images, in the manifest's order.
        seed: of the choice of real images, and of the bootstrap.
    """

    files: list[str]
    prompts: list[str]
    heldout: list[list[str]]
    train: list[list[str]]
    seed: int

    @classmethod
    def of(cls, table: pd.DataFrame, data: Prepared, seed: int) -> Self | None:
        """Those of a table of samples; None if it has no prompts."""
        if "prompt" not in table:
            return None
        heldout, train = (captions_of(data, split) for split in (HELDOUT, TRAIN))
        return cls(table["file"].tolist(), table["prompt"].tolist(), heldout, train, seed)

    @cached_property
    def asked(self) -> Asked:
        """The samples whose prompt some held-out image carries."""
        return Asked.of(self.prompts, carriers_of(self.heldout))

    @property
    def note(self) -> str | None:
        """What a user must know of the samples that no score by retrieval is about."""
        missing = len(self.prompts) - len(self.asked.rows)
        if not missing:
            return None
        return (
            f"{missing} of {len(self.prompts)} samples have a prompt that is no held-out image's caption, so `text_recall_K`, `text_rank` and "
            "`class_accuracy` are not about them"
        )

    @cached_property
    def mirrored(self) -> list[int]:
        """One held-out image per scored sample (Q,) that carries its prompt, drawn by seed."""
        carriers = [self.asked.carriers[number] for number in self.asked.prompts.tolist()]
        return self._choose(carriers, "text/mirrored")

    def digest(self) -> str:
        """sha256 of the prompts, whatever their order."""
        return hashlib.sha256(json.dumps(sorted(map(same_text, self.prompts))).encode()).hexdigest()

    def _choose(self, carriers: Sequence[Sequence[int]], purpose: str) -> list[int]:
        """One of each query's carriers."""
        return [
            each[int(torch.randint(len(each), (), generator=generator(self.seed, f"evaluate/{purpose}", place)))]
            for place, each in enumerate(carriers)
        ]

    def score_retrieval(
        self,
        scores: Scores,
        samples: Tensor,
        heldout: Tensor,
        mirrored: Tensor,
        train: Callable[[list[int]], Tensor],
        kept: Sequence[int],
        device: torch.device | None = None,
    ) -> Retrieval | None:
        """Adds recall and median rank; None where no sample can be scored.

        Args:
            samples: features (S, D) of the samples, ``heldout`` (M, D) of all held-out images.
            mirrored: features (Q, D) of the flipped images :attr:`mirrored`.
            train: features of training images by row; ``kept``: the rows that it knows.
        """
        asked = self.asked
        if not asked.rows:
            return None
        found = retrieve(samples[asked.rows], asked.prompts, heldout, asked.carriers, device)
        flipped = retrieve(mirrored, asked.prompts, heldout, asked.carriers, device)
        real, places = self._real(heldout, train, kept, device)
        count = min(len(asked.rows), len(heldout))
        for k in RECALLED:
            chance = None if found.chance is None else found.chance[:, RECALLED.index(k)]
            measured = measure_fraction(found.ranks <= k, asked.prompts, self.seed, "text_recall", chance)
            beside = {
                CHANCE: found.chance_recall(k),
                HELDOUT: None if real is None else real.recall(k),
                MIRRORED: flipped.recall(k),
            }
            scores.add(f"text_recall_{k}", measured, count, **beside)
        beside = {
            CHANCE: found.chance_median,
            HELDOUT: None if real is None else real.median,
            MIRRORED: flipped.median,
        }
        scores.add(TEXT_RANK, measure_median(found, self.seed), count, **beside)
        kinds = (*(f"text_recall_{k}" for k in RECALLED), TEXT_RANK)
        scores.counts |= {f"{kind}_{HELDOUT}": min(len(places), len(heldout)) for kind in kinds if real is not None}
        scores.report["images"] = {
            "samples": len(self.prompts),
            "scored": len(asked.rows),
            "prompts": len(asked.texts),
            "candidates": len(heldout),
            "with_a_training_image_of_their_prompt": len(places),
        }
        return found

    def _real(
        self,
        heldout: Tensor,
        train: Callable[[list[int]], Tensor],
        kept: Sequence[int],
        device: torch.device | None,
    ) -> tuple[Retrieval | None, list[int]]:
        """Training images in the samples' place, one per sample whose prompt one carries, and the places of these samples."""
        known, carried = set(kept), carriers_of(self.train)
        rows_of = {text: [row for row in carried.get(text, ()) if row in known] for text in self.asked.texts}
        texts = [self.asked.texts[number] for number in self.asked.prompts.tolist()]
        places = [place for place, text in enumerate(texts) if rows_of[text]]
        if not places:
            return None, []
        part = self.asked.part(places)
        rows = self._choose([rows_of[texts[place]] for place in places], "text/heldout")
        return retrieve(train(rows), part.prompts, heldout, part.carriers, device), places

    def score_pairs(self, scores: Scores, memorised: Memorisation) -> None:
        """Adds memorised pairs, where some training image carries a sample's prompt."""
        found = memorised_pairs(memorised, self.prompts, self.train)
        if found is not None:
            measured = measure_fraction(found.found, found.prompts, self.seed, MEMORISED_PAIRS, found.chance)
            scores.add(MEMORISED_PAIRS, measured, len(found.found), chance=float(found.chance.mean()))

    def score_classes(self, scores: Scores, judge: Judge, samples: Features, classes: Tensor) -> None:
        """Adds the class accuracy: a prompt is of the class of the held-out images that carry it, if they are of one class.

        ``classes``: those of the held-out images (M,).
        """
        of_prompt = [set(classes[carriers].tolist()) for carriers in self.asked.carriers]
        chosen = [
            (row, next(iter(of_prompt[number])))
            for row, number in zip(self.asked.rows, self.asked.prompts.tolist(), strict=True)
            if len(of_prompt[number]) == 1
        ]
        if not judge.knows_classes or not chosen:
            return
        labels = torch.tensor([label for _, label in chosen])
        value = class_accuracy(samples.take([row for row, _ in chosen]), labels, judge)
        scores.metrics["class_accuracy"] = value
        scores.errors["class_accuracy"] = balanced_error(value, labels)
        scores.counts["class_accuracy"] = len(chosen)

    def score_clip(self, scores: Scores, judge: Judge, samples: Tensor, heldout: Tensor) -> None:
        """Adds the CLIP score. ``samples`` (S, D), ``heldout`` (M, D): their embeddings."""
        texts = list(dict.fromkeys(self.prompts))
        number = {text: place for place, text in enumerate(texts)}
        asked = torch.tensor([number[text] for text in self.prompts])
        own, chance = clip_scores(samples, judge.embed_texts(texts), asked)
        measured = measure_fraction(own, asked, self.seed, CLIP_SCORE, chance)
        captions = [(place, text) for place, each in enumerate(self.heldout) for text in each]
        real = None
        if captions:
            known = list(dict.fromkeys(text for _, text in captions))
            place_of = {text: place for place, text in enumerate(known)}
            images = heldout[[place for place, _ in captions]]
            pairs, _ = clip_scores(
                images, judge.embed_texts(known), torch.tensor([place_of[text] for _, text in captions])
            )
            real = float(pairs.mean())
        beside = {CHANCE: None if chance is None else float(chance.mean()), HELDOUT: real}
        scores.add(CLIP_SCORE, measured, len(self.prompts), **beside)
        scores.counts[f"{CLIP_SCORE}_{HELDOUT}"] = len(captions)

    def write(self, out: Path, scores: Scores, found: Retrieval | None, heldout_files: Sequence[str]) -> list[Path]:
        """Writes ``text.json`` and, where there was a retrieval, ``text.csv``: a row per scored sample. Returns the files."""
        (out / REPORT).write_text(json.dumps(scores.report, indent=2) + "\n", encoding="utf-8")
        if found is None:
            return [out / REPORT]
        table = pd.DataFrame(
            {
                "file": [self.files[row] for row in self.asked.rows],
                "prompt": [self.prompts[row] for row in self.asked.rows],
                "rank": found.ranks.tolist(),
                "nearest_file": [heldout_files[place] for place in found.nearest.tolist()],
            }
        )
        table.to_csv(out / TABLE, index=False)
        return [out / REPORT, out / TABLE]


def clip_scores(images: Tensor, texts: Tensor, asked: Tensor) -> tuple[Tensor, Tensor | None]:
    """CLIP scores (N,) float64 of images (N, D) with their texts, and their means over the texts of the others; None if all texts are one.

    ``texts`` (P, D); ``asked`` (N,): the number of each image's text. The score is ``max(100 * cos, 0)`` (arXiv 2104.08718, whose own weight is
    2.5 in place of 100; as torchmetrics scales it).
    """
    frequency = torch.bincount(asked, minlength=len(texts)).double()
    directions = torch.nn.functional.normalize(texts.double(), dim=1)
    own, others = [], []
    for block, numbers in zip(images.split(1_000), asked.split(1_000), strict=True):
        scores = (100.0 * torch.nn.functional.normalize(block.double(), dim=1) @ directions.T).clamp_min(0.0)
        mine = scores.gather(1, numbers[:, None])[:, 0]
        own.append(mine)
        others.append((scores @ frequency - mine * frequency[numbers]) / (len(asked) - frequency[numbers]))
    return torch.cat(own), torch.cat(others) if len(texts) > 1 else None
