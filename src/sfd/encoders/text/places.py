"""Which tokens of a text belong to which of its words."""

import re
from collections.abc import Sequence
from typing import NamedTuple

Span = tuple[int, int]
"""The first character and the one behind the last, counted from 0."""

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of Chinese and Japanese, which put no space between words."""
_PIECE = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")


class PlacedWord(NamedTuple):
    """A word of a text, as it is written there, and the numbers of its tokens in what the encoder gives, counted from 0."""

    word: str
    tokens: tuple[int, ...]


def place_words(text: str, spans: Sequence[Span | None]) -> list[PlacedWord]:
    """The words of a text with their tokens, in order.

    A word is what stands between white space, with its punctuation; of Chinese and Japanese it is a character. Words that share a token
    are one. A word without a token, as behind the end of what is read, is left out.

    Args:
        text: the whole text.
        spans: which of its characters each token stands for; None, or no character: a token of the encoder's own, which belongs to no word.
    """
    pieces = [match.span() for match in _PIECE.finditer(text)]
    covered = [_covered(pieces, span) for span in spans]
    joined = {number for numbers in covered for number in numbers[1:]}
    found: list[tuple[Span, list[int]]] = []
    for number, piece in enumerate(pieces):
        tokens = [token for token, numbers in enumerate(covered) if number in numbers]
        if number in joined:
            (start, _), before = found.pop()
            found.append(((start, piece[1]), sorted({*before, *tokens})))
        else:
            found.append((piece, tokens))
    return [PlacedWord(text[start:end], tuple(tokens)) for (start, end), tokens in found if tokens]


def _covered(pieces: Sequence[Span], span: Span | None) -> list[int]:
    """The numbers of the pieces of which a token has a character."""
    if span is None:
        return []
    return [number for number, (start, end) in enumerate(pieces) if max(start, span[0]) < min(end, span[1])]
