"""Words: texts as sequences of token embeddings, as a network takes them. It needs torch and nothing else of ours."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Words(NamedTuple):
    """Texts, padded to one length. Every text has at least one real token. A padded token is zero.

    Attributes:
        tokens: float ``(B, L, E)``.
        mask: bool ``(B, L)``, True where a token is real. The real tokens come first.
    """

    tokens: Tensor
    mask: Tensor

    @property
    def num_texts(self) -> int:
        """B."""
        return len(self.mask)

    @property
    def length(self) -> int:
        """L."""
        return self.mask.shape[1]

    @property
    def width(self) -> int:
        """E."""
        return self.tokens.shape[2]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Words":
        """The same on a device. ``dtype``: of the tokens alone."""
        return Words(self.tokens.to(device=device, dtype=dtype), self.mask.to(device=device))

    def select(self, index: Tensor | slice) -> "Words":
        """Some of the texts: a slice, or an index or a mask along the first dimension. The length stays."""
        return Words(self.tokens[index], self.mask[index])

    def padded(self, length: int) -> "Words":
        """With ``length`` tokens; it must not be less than L."""
        missing = length - self.length
        return Words(pad(self.tokens, (0, 0, 0, missing)), pad(self.mask, (0, missing)))

    def repeated(self, count: int) -> "Words":
        """``count`` copies of a single text, without memory of their own."""
        return Words(self.tokens.expand(count, -1, -1), self.mask.expand(count, -1))

    def replaced(self, where: Tensor, by: "Words") -> "Words":
        """``by``, a single text, where the mask ``where`` ``(B,)`` is True; these texts elsewhere."""
        length = max(self.length, by.length)
        own, other = self.padded(length), by.padded(length)
        return Words(
            torch.where(where[:, None, None], other.tokens.to(own.tokens.dtype), own.tokens),
            torch.where(where[:, None], other.mask, own.mask),
        )


def stack_words(texts: Sequence[Tensor]) -> Words:
    """Texts of token embeddings ``(L_i, E)`` -> words, padded to the longest."""
    lengths = torch.tensor([len(text) for text in texts])
    length = int(lengths.max())
    return Words(
        torch.stack([pad(text, (0, 0, 0, length - len(text))) for text in texts]),
        (torch.arange(length) < lengths[:, None]).to(texts[0].device),
    )


def join_words(batches: Sequence[Words]) -> Words:
    """Batches of words as one, padded to the longest."""
    length = max(words.length for words in batches)
    return Words(
        torch.cat([words.padded(length).tokens for words in batches]),
        torch.cat([words.padded(length).mask for words in batches]),
    )
