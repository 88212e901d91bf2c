"""What is asked of a text encoder, and loading one that stage ``text`` wrote. A new kind is one file beside this one and one line of
``names.TEXT_ENCODERS``."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch

from sfd.encoders.text.places import PlacedWord
from sfd.models.words import Words
from sfd.names import TEXT_ENCODERS
from sfd.network_files import read_implementation


class TextEncoder(Protocol):
    """A frozen network: texts to one embedding per token.

    Attributes:
        kind: its name in ``names.TEXT_ENCODERS``, and in ``config.json``.
    """

    kind: ClassVar[str]

    @property
    def width(self) -> int:
        """E, the numbers per token."""

    @property
    def max_tokens(self) -> int:
        """L, the most tokens that it keeps of a text."""

    def encode(self, texts: Sequence[str]) -> Words:
        """Texts -> words on its device, float32, padded to the longest of these texts.

        A text of more than ``max_tokens`` tokens is cut. Every text has at least one real token, the empty one too, which is the null
        condition. What a text becomes does not depend on the others, up to rounding.
        """

    def num_tokens(self, text: str) -> int:
        """How many tokens the whole text needs. More than ``max_tokens``: :meth:`encode` cuts it."""

    def place_words(self, text: str) -> list[PlacedWord]:
        """The words of a text and which tokens of :meth:`encode` are theirs. Tokens that the encoder adds belong to no word."""

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``, and the tokenizer."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Inverse of :meth:`save`. Raises :class:`UserError` if files are missing or do not fit."""

    def to(self, device: torch.device | str) -> Self:
        """Moves its weights."""


def load_text_encoder(folder: Path) -> TextEncoder:
    """A text encoder in ``folder``, frozen and in evaluation mode. Raises :class:`UserError` if it is missing or does not fit."""
    kind: type[TextEncoder] = read_implementation(folder, TEXT_ENCODERS)
    return kind.load(folder)
