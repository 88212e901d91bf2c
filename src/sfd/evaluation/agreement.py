"""Whether samples show what their prompts say, by retrieval: are the real images nearest to a sample those that carry its prompt?

The judge sees images only, so nothing here knows the text encoder. A prompt stands for the images whose captions say the same.

Legend of shapes: Q queries (samples, or real images in their place), M candidates (all held-out images), P distinct prompts, D features.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd.evaluation.uncertainty import group_weights
from sfd.names import RECALLED

ROWS = 1_000
"""Queries of one block of distances; 1,000 rows by 50,000 candidates take 0.4 GB in float64, and their ranks by prompt as much again."""
CONFIDENCE = 0.95

Carriers = Sequence[Sequence[int]]
"""By prompt, the images that carry it; none is empty."""


def same_text(text: str) -> str:
    """What two texts have in common that say the same: composed characters, one space for white space, no case."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def carriers_of(captions: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    """By text (:func:`same_text`), the places of the images that carry it, ascending. ``captions``: those of every image."""
    found: dict[str, list[int]] = {}
    for place, texts in enumerate(captions):
        for text in dict.fromkeys(map(same_text, texts)):
            found.setdefault(text, []).append(place)
    return found


@dataclass(frozen=True)
class Asked:
    """What some queries were drawn for.

    Attributes:
        rows: the queries whose prompt some candidate carries, ascending: (Q,) places among all.
        prompts: of each of them, the number of its prompt (Q,).
        texts: the distinct prompts, by number, as :func:`same_text` gives them.
        carriers: by prompt, the candidates that carry it.
    """

    rows: list[int]
    prompts: Tensor
    texts: list[str]
    carriers: list[list[int]]

    @classmethod
    def of(cls, prompts: Sequence[str], carried: dict[str, list[int]]) -> "Asked":
        """``carried``: :func:`carriers_of` the candidates."""
        plain = list(map(same_text, prompts))
        rows = [row for row, text in enumerate(plain) if text in carried]
        texts = list(dict.fromkeys(plain[row] for row in rows))
        number = {text: place for place, text in enumerate(texts)}
        numbers = torch.tensor([number[plain[row]] for row in rows], dtype=torch.int64)
        return cls(rows, numbers, texts, [carried[text] for text in texts])

    def part(self, chosen: Sequence[int]) -> "Asked":
        """Some of the queries, by their places in :attr:`rows`; prompts that nobody is left of go."""
        kept = self.prompts[list(chosen)].tolist()
        left = list(dict.fromkeys(kept))
        number = {old: new for new, old in enumerate(left)}
        prompts = torch.tensor([number[old] for old in kept], dtype=torch.int64)
        rows = [self.rows[place] for place in chosen]
        return Asked(rows, prompts, [self.texts[old] for old in left], [self.carriers[old] for old in left])


@dataclass(frozen=True)
class Retrieval:
    """Outcome of :func:`retrieve`.

    Attributes:
        ranks: of each query's own prompt (Q,), from 1.
        nearest: the candidate nearest to each query (Q,).
        chance: by k of :data:`RECALLED`, the expected recall of each query (Q, 3) with the prompt of another one; None if all prompts are one.
        chance_ranks: how often each rank (M + 1,) occurs over all pairs of a query and another one's prompt; None as above.
        prompts: the number of each query's prompt (Q,).
    """

    ranks: Tensor
    nearest: Tensor
    chance: Tensor | None
    chance_ranks: Tensor | None
    prompts: Tensor

    def recall(self, k: int) -> float:
        """The share of queries with a rank of at most k."""
        return float((self.ranks <= k).double().mean())

    def chance_recall(self, k: int) -> float | None:
        """The same if prompts are shuffled: the mean over all shuffles that give each query the prompt of a query with another one."""
        return None if self.chance is None else float(self.chance[:, RECALLED.index(k)].mean())

    @property
    def median(self) -> int:
        """The median rank; the lower one of two."""
        return weighted_median(torch.bincount(self.ranks).double())

    @property
    def chance_median(self) -> int | None:
        """The same over all pairs of a query and another one's prompt."""
        return None if self.chance_ranks is None else weighted_median(self.chance_ranks)


def weighted_median(weights: Tensor) -> int:
    """The smallest rank up to which half of the weight lies; ``weights`` by rank, from 0."""
    sums = weights.cumsum(0)
    return int(torch.searchsorted(sums, sums[-1] / 2.0))


@torch.no_grad()
def retrieve(
    queries: Tensor, asked: Tensor, candidates: Tensor, carriers: Carriers, device: torch.device | None = None
) -> Retrieval:
    """Ranks prompts by the distances from queries (Q, D) to candidates (M, D), all of which are looked at.

    The rank of a prompt is that of the nearest candidate that carries it: 1, and one for each candidate that does not carry it and is as near
    or nearer. So equal distances count against a query, and a judge that sees no difference finds nothing.

    Args:
        asked: the number of each query's prompt (Q,).
        carriers: by prompt, the candidates that carry it.
        device: where distances are computed; None: where the queries are.
    """
    frequency = torch.bincount(asked, minlength=len(carriers)).double()
    ranks, nearest, chance = [], [], []
    counted = torch.zeros(len(candidates) + 1, dtype=torch.float64)
    for first, by_prompt, closest in _blocks(queries, candidates, carriers, device):
        own = asked[first : first + len(by_prompt)]
        others = frequency.repeat(len(own), 1)
        others[torch.arange(len(own)), own] = 0.0
        hits = torch.stack([((by_prompt <= k) * others).sum(dim=1) for k in RECALLED], dim=1)
        chance.append(hits / others.sum(dim=1, keepdim=True))
        counted += torch.bincount(by_prompt.flatten(), others.flatten(), minlength=len(counted))
        ranks.append(by_prompt[torch.arange(len(own)), own])
        nearest.append(closest)
    has_others = len(carriers) > 1
    return Retrieval(
        torch.cat(ranks),
        torch.cat(nearest),
        torch.cat(chance) if has_others else None,
        counted if has_others else None,
        asked,
    )


def _blocks(
    queries: Tensor, candidates: Tensor, carriers: Carriers, device: torch.device | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Blocks of queries: the first one's place, the rank of every prompt (B, P), and the nearest candidate (B,), on the CPU."""
    device = device or queries.device
    pairs = [(place, number) for number, places in enumerate(carriers) for place in places]
    place, number = torch.tensor(pairs, dtype=torch.int64, device=device).T
    against = candidates.to(device, torch.float64)
    for first in range(0, len(queries), ROWS):
        block = queries[first : first + ROWS].to(device, torch.float64)
        distances = torch.cdist(block, against)
        carried, index = distances[:, place], number.expand(len(block), -1)
        best = torch.full((len(block), len(carriers)), torch.inf, dtype=torch.float64, device=device)
        best.scatter_reduce_(1, index, carried, "amin")
        own = torch.zeros_like(best).scatter_add_(1, index, (carried == best.gather(1, index)).double())
        as_near = torch.searchsorted(distances.sort(dim=1).values, best, right=True)
        yield first, (1 + as_near - own.long()).cpu(), distances.min(dim=1).indices.cpu()


@dataclass(frozen=True)
class Measured:
    """A metric: its value, its standard error, its 95 % interval, and that of its difference from chance (None: no chance is known)."""

    value: float
    error: float
    interval: tuple[float, float]
    above_chance: tuple[float, float] | None = None


def measure_fraction(found: Tensor, groups: Tensor, seed: int, purpose: str, chance: Tensor | None = None) -> Measured:
    """The mean of values (Q,) of images in ``groups`` (Q,), by the bootstrap over groups. ``chance`` (Q,): what each is expected to be."""
    values, expected = found.double(), None if chance is None else chance.double()
    drawn = [
        (
            float(weights @ values / weights.sum()),
            None if expected is None else float(weights @ expected / weights.sum()),
        )
        for weights in group_weights(groups, seed, purpose)
    ]
    means = torch.tensor([value for value, _ in drawn], dtype=torch.float64)
    gains = [value - by_chance for value, by_chance in drawn if by_chance is not None]
    return Measured(
        float(values.mean()),
        float(means.std()),
        _interval(means),
        _interval(torch.tensor(gains, dtype=torch.float64)) if gains else None,
    )


def measure_median(found: Retrieval, seed: int) -> Measured:
    """The median rank, by the bootstrap over prompts."""
    medians = torch.tensor(
        [
            weighted_median(torch.bincount(found.ranks, weights))
            for weights in group_weights(found.prompts, seed, "text_rank")
        ],
        dtype=torch.float64,
    )
    return Measured(float(found.median), float(medians.std()), _interval(medians))


def _interval(values: Tensor) -> tuple[float, float]:
    """The middle 95 % of resamples (B,)."""
    ends = torch.tensor([(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0], dtype=torch.float64)
    low, high = values.quantile(ends).tolist()
    return low, high
