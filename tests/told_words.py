"""A text encoder without training, and a served model that is told words, for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from safetensors.torch import save_file
from served import SAMPLE, model_of, untrained_decoder

from sfd import names
from sfd.encoders.text.places import PlacedWord
from sfd.generation.images import ImageGenerator
from sfd.generation.settings import Settings
from sfd.models.text_condition import TextCondition
from sfd.models.words import Words, stack_words
from sfd.network_files import network_digest
from sfd.registry.load import RegisteredModel

WIDTH, MAX_TOKENS = 6, 5
CAPTIONS = ("a red bar", "a blue bar", "stripes, lying")


class LetterEncoder:
    """A token per word, whose numbers are the shares of some letters in it, times the encoder's only weight."""

    kind: ClassVar[str] = "letters"
    width, max_tokens = WIDTH, MAX_TOKENS

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = torch.tensor([scale])

    def encode(self, texts: Sequence[str]) -> Words:
        tokens = [
            [[word.count(letter) / len(word) for letter in "aerltb"] for word in self._words(text)] for text in texts
        ]
        return stack_words([self.scale * torch.tensor(each[:MAX_TOKENS]) for each in tokens])

    @staticmethod
    def _words(text: str) -> list[str]:
        return text.split() or ["-"]

    def num_tokens(self, text: str) -> int:
        return len(self._words(text))

    def place_words(self, text: str) -> list[PlacedWord]:
        return [PlacedWord(word, (n,)) for n, word in enumerate(text.split()[:MAX_TOKENS])]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"kind": self.kind}))
        save_file({"scale": self.scale}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        from safetensors.torch import load_file

        return cls(float(load_file(folder / "model.safetensors")["scale"]))

    def to(self, device: torch.device | str) -> Self:  # noqa: ARG002
        return self


def add_entry(patch: pytest.MonkeyPatch) -> None:
    """Makes the encoder loadable by its kind."""
    patch.setitem(names.TEXT_ENCODERS, "letters", names.Entry(f"{__name__}:LetterEncoder", "a toy"))


def told_words(
    sample: dict[str, Any] | None = None, condition: TextCondition | None = None, **options: Any
) -> RegisteredModel:
    """A version with random weights as it is in a server's memory. ``options``: of its backbone."""
    model = model_of(condition or TextCondition(WIDTH, MAX_TOKENS, examples=CAPTIONS), {"tau": 0.3}, **options)
    settings = Settings.model_validate(SAMPLE | (sample or {}))
    return RegisteredModel("sfd-test", "1", ImageGenerator(model, untrained_decoder(), words=LetterEncoder()), settings)


def condition_in(folder: Path) -> TextCondition:
    """The condition of a model that reads the words of the text encoder in this folder."""
    return TextCondition(WIDTH, MAX_TOKENS, network_digest(folder), CAPTIONS)
