"""The condition of words: an image is drawn for a prompt, which a frozen text encoder turns into tokens.

The null value, which dropped captions and guidance use, is the empty text. A prompt is one line: white space counts as one space.

Legend of shapes: B images, L tokens of a text, E numbers per token, D hidden width.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sfd.class_mix import BALANCED, ClassMix, evenly_spaced
from sfd.errors import UserError
from sfd.models.conditions import Encode, TextFacts, Value, WordsShape
from sfd.models.words import Words

NO_WORDS = ""
"""The null prompt."""
MAX_CHARACTERS = 2000
"""The longest prompt that a client may send. Text encoders read a few hundred tokens."""
MAX_EXAMPLES = 1000
"""The most held-out captions that a model's record holds."""
LABEL_CHARACTERS = 40
"""The longest label of an image in a grid."""


class PooledWords(nn.Module):
    """The mean over the real tokens of a text, and a linear layer: what is added to the embedding of the times."""

    def __init__(self, words_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(words_width, width)

    def forward(self, words: Words) -> Tensor:
        """``(B, L, E)`` -> ``(B, D)``."""
        real = words.mask[:, :, None].to(words.tokens.dtype)
        return self.proj((words.tokens * real).sum(dim=1) / real.sum(dim=1))


@dataclass(frozen=True)
class TextCondition:
    """A prompt. A value is a string; None and the empty string are the null value.

    Attributes:
        width: numbers per token E of the text encoder.
        max_tokens: tokens of a text; a longer one is cut, a shorter one padded.
        encoder: digest of the text encoder; None where it is not known.
        examples: captions of held-out images, which samples are drawn for unless other prompts are given.
    """

    width: int
    max_tokens: int
    encoder: str | None = None
    examples: tuple[str, ...] = ()

    kind: ClassVar[str] = "text"
    asked_as: ClassVar[str] = "prompt"
    has_null: ClassVar[bool] = True
    choices: ClassVar[None] = None

    @property
    def words(self) -> WordsShape:
        return WordsShape(self.width, self.max_tokens)

    @classmethod
    def from_data(
        cls,
        classes: Sequence[str],  # noqa: ARG003  # as every condition
        counts: Sequence[int] | None = None,  # noqa: ARG003
        text: TextFacts | None = None,
    ) -> Self:
        if text is None:
            raise UserError(
                "diffusion.model.condition is `text`, but the latents hold no captions: set data.captions, and make the stages `prepare`, "
                "`text` and `latents` again"
            )
        return cls(text.width, text.max_tokens, text.encoder, text.examples[:MAX_EXAMPLES])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        width, max_tokens = int(config["width"]), int(config["max_tokens"])
        if min(width, max_tokens) < 1:
            raise ValueError(f"a text is {max_tokens} tokens of width {width}, but both must be above 0")
        return cls(width, max_tokens, config["encoder"], tuple(map(str, config["examples"])))

    def to_config(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "max_tokens": self.max_tokens,
            "encoder": self.encoder,
            "examples": list(self.examples),
        }

    def embedding(self, width: int) -> nn.Module:
        return PooledWords(self.width, width)

    def rows(self) -> dict[str, list[str]]:
        return {}

    def of_images(self, class_indices: Tensor, words: Words | None = None) -> Words:  # noqa: ARG002  # as every condition
        if words is None:
            raise UserError(
                "the model is told words, but the images come without captions: make stage `latents` again with data.captions"
            )
        return self._fit(words)

    def batch(self, values: Sequence[Value], device: torch.device | str = "cpu", encode: Encode | None = None) -> Words:
        """Words as training reads them: rounded to fp16, in which they are stored."""
        if encode is None:
            raise UserError("this model is told words, but is used without its text encoder; give the folder of that")
        wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
        if wrong is not None:
            raise UserError(f"this model draws images for prompts, but is given {wrong!r}; give a string")
        prompts = [NO_WORDS if value is None else str(value) for value in values]
        distinct = list(dict.fromkeys(prompts))
        place = {prompt: n for n, prompt in enumerate(distinct)}
        found = self._fit(encode(distinct)).to(device)
        return found.select(torch.tensor([place[prompt] for prompt in prompts], device=device))

    def _fit(self, words: Words) -> Words:
        """In float32, padded to the most tokens, so that a network always sees one shape."""
        if words.width != self.width or words.length > self.max_tokens:
            raise UserError(
                f"the model reads at most {self.max_tokens} tokens of width {self.width}, but is given {words.length} of width {words.width}: "
                "use the text encoder of its training"
            )
        return words.to(dtype=torch.float16).to(dtype=torch.float32).padded(self.max_tokens)

    def null(self, count: int, device: torch.device | str = "cpu", encode: Encode | None = None) -> Words:
        return self.batch([NO_WORDS] * count, device, encode)

    def plan(self, num_images: int, mix: ClassMix = BALANCED) -> list[Value]:  # noqa: ARG002  # as every condition
        """The examples in turn; of fewer, evenly spaced ones, since they come class by class."""
        if not self.examples:
            raise UserError(
                "the model's record holds no captions of held-out images to draw for: give prompts, in sample.prompts"
            )
        if num_images < len(self.examples):
            return [self.examples[place] for place in evenly_spaced(len(self.examples), num_images)]
        return [self.examples[n % len(self.examples)] for n in range(num_images)]

    def columns(self, values: Sequence[Value]) -> dict[str, list[Any]]:
        return {"prompt": [NO_WORDS if value is None else value for value in values]}

    def label(self, value: Value) -> str:
        return shorten(str(value or "no words"), LABEL_CHARACTERS)

    def file_stem(self, value: Value, seed: int) -> str:  # noqa: ARG002  # a prompt is no name for a file
        return f"image-{seed}"

    def from_request(self, given: object) -> Value:
        if given is None:
            raise ValueError('`prompt` is missing: say in words what to draw; "" draws without words')
        return read_prompt(given)

    def to_request(self, value: Value) -> str | None:
        return NO_WORDS if value is None else str(value)


def read_prompt(given: object, what: str = "prompt") -> str:
    """A prompt of a client, on one line. Raises ``ValueError`` with a message for the client; ``what``: its name there."""
    if not isinstance(given, str):
        raise ValueError(f"`{what}` must be a string, but is {str(given)[:100]}")
    if len(given) > MAX_CHARACTERS:
        raise ValueError(f"`{what}` has {len(given):,} characters, but at most {MAX_CHARACTERS:,} are read: shorten it")
    line = " ".join(given.split())
    for place, character in enumerate(line):
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(
                f"`{what}` has the control character U+{ord(character):04X} behind {place} others: remove it"
            )
    return line


def shorten(text: str, most: int) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
