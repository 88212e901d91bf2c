"""Attribute swaps scored: does the colour word of a prompt become the colour of the picture?

The rule reads pixels alone (:mod:`sfd.evaluation.colours`), so no network judges itself. It says nothing of shape: a red blot is a red heart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sfd.data.images import ManifestImages
from sfd.evaluation.agreement import Measured, carriers_of, measure_fraction, same_text
from sfd.evaluation.colours import named_colour
from sfd.evaluation.words import Scores
from sfd.generation.samples import read_images
from sfd.generation.swaps import SWAPS
from sfd.names import HELDOUT, SWAP_ACCURACY

BATCH = 64


@dataclass(frozen=True)
class SwapScores:
    """Outcome of :func:`score_swaps`.

    Attributes:
        table: that of the images, with ``shown``, the word that the picture is nearest to (empty: it shows nothing), and ``right``.
        accuracy: the share of right pictures, with its error over seeds.
        chance: what pictures reach whose colour does not depend on the word.
        real: the same share of real images with such captions, None without any; and how many these are.
        blank: the number of pictures that show nothing.
    """

    table: pd.DataFrame
    accuracy: Measured
    chance: float
    real: float | None
    num_real: int
    blank: int

    def add_to(self, scores: Scores) -> None:
        """Adds the accuracy, and what is counted beside it."""
        scores.add(SWAP_ACCURACY, self.accuracy, len(self.table), chance=self.chance, heldout=self.real)
        scores.counts[f"{SWAP_ACCURACY}_{HELDOUT}"] = self.num_real
        scores.report["swaps"] = {
            "images": len(self.table),
            "right": int(self.table["right"].sum()),
            "blank": self.blank,
            "real_images": self.num_real,
            "by_template": {
                str(template): {
                    "images": len(rows),
                    "right": int(rows["right"].sum()),
                    "words": int(rows["word"].nunique()),
                }
                for template, rows in self.table.groupby("template", sort=False)
            },
        }


def score_swaps(
    samples: Path, table: pd.DataFrame, real: Sequence[tuple[ManifestImages, Sequence[Sequence[str]]]], seed: int
) -> SwapScores:
    """Scores the images of stage ``sample``.

    Chance is the mean of 1 / words: every word of a template has as many images as another, so a colour that does not follow the word is right
    that often, whatever it is.

    Args:
        samples: the results of stage ``sample``; ``table``: that of its swaps.
        real: image sets with the captions of each image: what real images reach whose caption is one of the prompts.
    """
    words = {
        str(template): list(dict.fromkeys(rows["word"].tolist()))
        for template, rows in table.groupby("template", sort=False)
    }
    shown = [
        named_colour(picture, words[template])
        for picture, template in zip(_pictures(samples, table), table["template"], strict=True)
    ]
    scored = table.assign(shown=[word or "" for word in shown])
    scored["right"] = scored["shown"] == scored["word"]
    # Pictures of one template and seed start from one noise: they are drawn together in the bootstrap.
    groups = torch.tensor(scored.groupby(["template", "seed"], sort=False).ngroup().tolist())
    right = torch.tensor(scored["right"].tolist())
    columns = (table[name].tolist() for name in ("prompt", "word", "template"))
    by_prompt = {same_text(prompt): (word, words[template]) for prompt, word, template in zip(*columns, strict=True)}
    seen = [verdict for images, captions in real for verdict in _real_verdicts(images, captions, by_prompt)]
    return SwapScores(
        scored,
        measure_fraction(right, groups, seed, SWAP_ACCURACY),
        float(pd.Series([1.0 / len(words[template]) for template in table["template"]]).mean()),
        sum(seen) / len(seen) if seen else None,
        len(seen),
        shown.count(None),
    )


def _pictures(samples: Path, table: pd.DataFrame) -> Iterator[Tensor]:
    files = table["file"].tolist()
    for first in range(0, len(files), BATCH):
        yield from read_images(samples / SWAPS, files[first : first + BATCH])


def _real_verdicts(
    images: ManifestImages, captions: Sequence[Sequence[str]], by_prompt: Mapping[str, tuple[str, Sequence[str]]]
) -> Iterator[bool]:
    """Of each image that carries a prompt, whether its colour is that of the prompt's word."""
    for text, places in carriers_of(captions).items():
        if text not in by_prompt:
            continue
        word, words = by_prompt[text]
        for picture in images.__getitems__(places).images:
            yield named_colour(picture, words) == word
