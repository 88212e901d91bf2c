"""Heat maps over an image: where it looks at each word of its prompt, as in DAAM (arXiv 2210.04885).

Legend of shapes: N tokens of the image in G rows of G, L tokens of the text.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from sfd.encoders.text.places import PlacedWord

MIN_SIDE = 128
"""Pixels along a side of a heat map, at least: a grid of tokens is enlarged by the smallest whole factor that gives them."""


@dataclass(frozen=True)
class WordMap:
    """How much of the attention of each place in an image goes to a word.

    Attributes:
        word: as it is written in the prompt.
        shares: per token of the image, the probability that attention gives to the tokens of the word together, ``(G, G)``.
    """

    word: str
    shares: Tensor

    @property
    def share(self) -> float:
        """The mean over the image. Over all words it sums to at most 1; the rest goes to tokens that belong to no word."""
        return float(self.shares.mean())

    @property
    def low(self) -> float:
        """The least share of a place."""
        return float(self.shares.min())

    @property
    def high(self) -> float:
        """The largest share of a place."""
        return float(self.shares.max())

    def png(self) -> bytes:
        """A grey PNG file, black where the share is least and white where it is largest; black if it is the same everywhere.

        The grid is enlarged bicubically, to ``MIN_SIDE`` pixels or a little more.
        """
        span = self.high - self.low
        unit = (self.shares - self.low) / span if span > 0.0 else self.shares * 0.0
        side = len(unit) * math.ceil(MIN_SIDE / len(unit))
        large = Image.fromarray(unit.numpy()).resize((side, side), Image.Resampling.BICUBIC)
        grey = large.point(lambda value: value * 255.0 + 0.5).convert("L")
        stream = io.BytesIO()
        grey.save(stream, format="PNG")
        return stream.getvalue()


def word_maps(words: Sequence[PlacedWord], attention: Tensor) -> list[WordMap]:
    """The map of each word.

    Args:
        words: of the prompt, with the numbers of their tokens.
        attention: of one image, ``(N, L)`` as :meth:`sfd.models.attention.AttentionSum.mean` gives it.
    """
    grid = math.isqrt(len(attention))
    return [WordMap(word, attention[:, list(tokens)].sum(dim=1).unflatten(0, (grid, grid))) for word, tokens in words]
