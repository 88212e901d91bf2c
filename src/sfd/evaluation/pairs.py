"""Memorised pairs: samples that are nearly a training image, drawn for that image's own caption."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd.evaluation.agreement import carriers_of, same_text
from sfd.evaluation.memorisation import Memorisation


@dataclass(frozen=True)
class Pairs:
    """Outcome of :func:`memorised_pairs`, over the samples whose prompt some training image carries.

    Attributes:
        found: of each of them, whether it is a memorised pair (Q,).
        chance: of each, the share of the prompts of all of them with which it would be one (Q,).
        prompts: the number of each one's prompt (Q,).
    """

    found: Tensor
    chance: Tensor
    prompts: Tensor


def memorised_pairs(memorised: Memorisation, prompts: Sequence[str], captions: Sequence[Sequence[str]]) -> Pairs | None:
    """Which samples are nearer to a training image than the limit of :func:`sfd.evaluation.memorisation.memorisation`, and have one of that
    image's captions as their prompt; None if no training image carries any prompt.

    A model that has learnt a caption's images by heart draws one of them when it is asked with that caption. A copy that is drawn for another
    prompt does not count here, though it does in `memorised_fraction`.

    Args:
        prompts: of the samples, by sample index.
        captions: of each training image. Row r of the memorisation's table is that of image ``r % len(captions)``, flipped beyond the first.
    """
    carried = carriers_of(captions)
    plain = list(map(same_text, prompts))
    rows = [row for row, text in enumerate(plain) if text in carried]
    if not rows:
        return None
    texts = list(dict.fromkeys(plain[row] for row in rows))
    number = {text: place for place, text in enumerate(texts)}
    numbers = torch.tensor([number[plain[row]] for row in rows], dtype=torch.int64)
    frequency = torch.bincount(numbers).double() / len(rows)
    place_of = {row: place for place, row in enumerate(rows)}
    found, chance = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.float64)
    table = memorised.table[memorised.table["distance"] < memorised.threshold]
    for sample, image in zip(table["sample_index"].tolist(), table["train_index"].tolist(), strict=True):
        place = place_of.get(sample)
        if place is None:
            continue
        own = {number[text] for text in map(same_text, captions[image % len(captions)]) if text in number}
        found[place] = float(int(numbers[place]) in own)
        chance[place] = sum(float(frequency[each]) for each in own)
    return Pairs(found, chance, numbers)
