"""Conditions: what a model is told about an image.

A condition is one object. It defines how its values enter the network, how tables hold them, and how clients name them. Each image is
drawn for one value: the index of a class, a prompt, or None where there is nothing to choose. The condition of words is in
:mod:`sfd.models.text_condition`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from sfd.class_mix import BALANCED, ClassMix, interleave
from sfd.errors import UserError
from sfd.models.words import Words
from sfd.names import CONDITIONS, load

Value = int | str | None
"""What one image is drawn for, as plain JSON holds it."""

Told = Tensor | Words
"""The argument ``condition`` of a network: class indices ``(B,)``, or words."""

Encode = Callable[[Sequence[str]], Words]
"""A frozen text encoder: texts -> words."""

NO_CLASS = "no class"
"""The null class among the names of classes."""

NAMED_CLASSES = 50
"""The most classes that an error lists."""


class WordsShape(NamedTuple):
    """The words that a network is told: ``length`` tokens of ``width`` numbers each, padded."""

    width: int
    length: int


class TextFacts(NamedTuple):
    """What a condition of words needs to know of its data set.

    Attributes:
        width: numbers per token E of the text encoder.
        max_tokens: the most tokens of a text; longer ones are cut.
        encoder: digest of the text encoder; None where it is not known.
        examples: captions of held-out images.
    """

    width: int
    max_tokens: int
    encoder: str | None = None
    examples: tuple[str, ...] = ()


class Condition(Protocol):
    """What code outside this module needs to know of a condition.

    ``kind``: its name in :data:`sfd.names.CONDITIONS`, ``params.yaml`` and ``config.json``. ``asked_as``: the key of a request that holds its
    value.
    """

    kind: ClassVar[str]
    asked_as: ClassVar[str]

    @property
    def words(self) -> WordsShape | None:
        """The shape of the words that a network is told; None: its argument ``condition`` is a tensor."""

    @property
    def has_null(self) -> bool:
        """Whether there is a null value, which classifier-free guidance steers away from."""

    @property
    def choices(self) -> list[str] | None:
        """Names of the values that a client can choose from; None if there is nothing to choose."""

    @classmethod
    def from_data(
        cls, classes: Sequence[str], counts: Sequence[int] | None = None, text: TextFacts | None = None
    ) -> Self:
        """The condition of a data set with these classes.

        ``counts``: training images per class; None: not known. ``text``: what is known of its captions; None: it has none.
        """

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_config`. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for a record that does not fit."""

    def to_config(self) -> dict[str, Any]:
        """Plain values for ``config.json``, without the kind."""

    def embedding(self, width: int) -> nn.Module | None:
        """The module that maps a batch of values to vectors ``(B, width)``; None: nothing is added to the time embedding."""

    def rows(self) -> dict[str, list[str]]:
        """Names of the rows of each table of the embedding, by parameter name. Fine-tuning copies rows by these names."""

    def of_images(self, class_indices: Tensor, words: Words | None = None) -> Told:
        """Class indices ``(B,)`` and captions of the data set's images -> the argument ``condition`` of the network."""

    def batch(self, values: Sequence[Value], device: torch.device | str = "cpu", encode: Encode | None = None) -> Told:
        """Values -> the argument ``condition`` of the network, on ``device``.

        ``encode``: the text encoder, which a condition of words needs. Raises :class:`UserError` for a value that does not exist.
        """

    def null(self, count: int, device: torch.device | str = "cpu", encode: Encode | None = None) -> Told:
        """The null value, ``count`` times, as :meth:`batch` gives it. Raises :class:`UserError` if there is none."""

    def plan(self, num_images: int, mix: ClassMix = BALANCED) -> list[Value]:
        """The values of a set of samples: equally many of each, or as frequent as in training. Any first n of them are so, as nearly as
        can be.

        Raises:
            UserError: ``mix`` is `natural`, and the frequencies of the training are not known.
        """

    def columns(self, values: Sequence[Value]) -> dict[str, list[Any]]:
        """Columns for a table of images. They appear in ``samples.csv`` and in the answers of `sfd serve`."""

    def label(self, value: Value) -> str:
        """The caption of an image in a grid."""

    def file_stem(self, value: Value, seed: int) -> str:
        """The name of an image file, without its ending."""

    def from_request(self, given: object) -> Value:
        """The value that a client asks for; ``given`` is None if it gave none. Raises ``ValueError`` with a message for the client."""

    def to_request(self, value: Value) -> str | None:
        """What a client sends to get this value; None: it sends nothing."""


def placeholder(condition: Condition, count: int) -> Told:
    """An argument ``condition`` of a network of the right shape, for measuring; its values mean nothing."""
    encode = placeholder_encoder(condition)
    return condition.batch(condition.plan(count)) if encode is None else encode([""] * count)


def placeholder_encoder(condition: Condition) -> Encode | None:
    """What takes the place of a text encoder for measuring; None for a condition that needs none."""
    if condition.words is None:
        return None
    shape = condition.words
    return lambda texts: Words(
        torch.zeros(len(texts), *reversed(shape)), torch.ones(len(texts), shape.length, dtype=torch.bool)
    )


def read_condition(kind: str, config: dict[str, Any]) -> Condition:
    """A condition from its record in ``config.json``. Raises as :meth:`Condition.from_config` and :func:`sfd.names.load` do."""
    condition: Condition = load(CONDITIONS, kind).from_config(config)
    return condition


class ClassEmbedding(nn.Module):
    """One row per class; the last is the null class. Named as in the published weights."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_rows, width)

    def forward(self, y: Tensor) -> Tensor:
        """``(B,)`` -> ``(B, D)``."""
        return self.embedding_table(y)


@dataclass(frozen=True)
class ClassCondition:
    """The class of the image. ``names``: by class index. A value is a class index; None is the null class, whose row is the last.

    ``counts``: training images per class; None where they are not known, as of published weights.
    """

    names: tuple[str, ...]
    has_null: bool = True
    counts: tuple[int, ...] | None = None

    kind: ClassVar[str] = "class"
    asked_as: ClassVar[str] = "class"
    words: ClassVar[None] = None

    @classmethod
    def numbered(cls, num_classes: int, has_null: bool = True) -> Self:
        """Classes whose names are their indices."""
        return cls(tuple(str(index) for index in range(num_classes)), has_null)

    @classmethod
    def from_data(
        cls,
        classes: Sequence[str],
        counts: Sequence[int] | None = None,
        text: TextFacts | None = None,  # noqa: ARG003  # as every condition
    ) -> Self:
        return cls(tuple(classes), counts=None if counts is None else tuple(counts))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        names, counts = tuple(config["names"]), config.get("counts")
        if counts is not None and (len(counts) != len(names) or sum(counts) < 1 or min(counts) < 0):
            raise ValueError(f"{len(names)} classes are named, but their counts are {counts}")
        return cls(names, bool(config["has_null"]), None if counts is None else tuple(counts))

    def to_config(self) -> dict[str, Any]:
        known = {} if self.counts is None else {"counts": list(self.counts)}
        return {"names": list(self.names), "has_null": self.has_null, **known}

    @property
    def choices(self) -> list[str] | None:
        return list(self.names)

    def embedding(self, width: int) -> nn.Module:
        return ClassEmbedding(len(self.names) + self.has_null, width)

    def rows(self) -> dict[str, list[str]]:
        return {"embedding_table.weight": [*self.names, *([NO_CLASS] if self.has_null else [])]}

    def of_images(self, class_indices: Tensor, words: Words | None = None) -> Tensor:  # noqa: ARG002  # as every condition
        return class_indices

    def batch(
        self,
        values: Sequence[Value],
        device: torch.device | str = "cpu",
        encode: Encode | None = None,  # noqa: ARG002  # as every condition
    ) -> Tensor:
        return torch.tensor([self._row(value) for value in values], device=device)

    def _row(self, value: Value) -> int:
        if value is None and self.has_null:
            return len(self.names)
        if not isinstance(value, int) or not 0 <= value < len(self.names):
            raise UserError(f"class index {value} is not in 0..{len(self.names) - 1}")
        return value

    def null(
        self,
        count: int,
        device: torch.device | str = "cpu",
        encode: Encode | None = None,  # noqa: ARG002  # as every condition
    ) -> Tensor:
        if not self.has_null:
            raise UserError(
                "this model has no null class, which classifier-free guidance needs: set sample.guidance.kind to none"
            )
        return torch.full((count,), len(self.names), device=device)

    def plan(self, num_images: int, mix: ClassMix = BALANCED) -> list[Value]:
        if mix == BALANCED:
            return [index % len(self.names) for index in range(num_images)]
        if self.counts is None:
            raise UserError(
                "sample.class_mix is `natural`, but the model has no record of how many training images each class had: set it to "
                "`balanced`, or train the model again"
            )
        return list(interleave(self.counts, num_images))

    def columns(self, values: Sequence[Value]) -> dict[str, list[Any]]:
        return {"class_index": list(values), "class": [self.label(value) for value in values]}

    def label(self, value: Value) -> str:
        return self.names[value] if isinstance(value, int) else NO_CLASS

    def file_stem(self, value: Value, seed: int) -> str:
        return f"{value}-{seed}"

    def from_request(self, given: object) -> Value:
        if given is None and len(self.names) == 1:
            return 0  # nothing to choose
        if isinstance(given, int) and not isinstance(given, bool):
            if not 0 <= given < len(self.names):
                raise ValueError(f"class index {given} is not in 0..{len(self.names) - 1}")
            return given
        more = f" and {len(self.names) - NAMED_CLASSES} more" if len(self.names) > NAMED_CLASSES else ""
        known = f"its classes are {', '.join(self.names[:NAMED_CLASSES])}{more}"
        if given is None:
            raise ValueError(f"`class` is missing: give the name of a class, or its index; {known}")
        if given not in self.names:
            raise ValueError(f"{str(given)[:100]!r} is not a class of this model; {known}")
        return self.names.index(str(given))

    def to_request(self, value: Value) -> str | None:
        return self.label(value)


@dataclass(frozen=True)
class NoCondition:
    """No condition: the model is told only the times. The only value is None."""

    kind: ClassVar[str] = "none"
    asked_as: ClassVar[str] = "class"
    words: ClassVar[None] = None
    has_null: ClassVar[bool] = False
    choices: ClassVar[None] = None

    @classmethod
    def from_data(
        cls,
        classes: Sequence[str],  # noqa: ARG003  # as every condition
        counts: Sequence[int] | None = None,  # noqa: ARG003
        text: TextFacts | None = None,  # noqa: ARG003
    ) -> Self:
        return cls()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        if config:
            raise ValueError(f"condition `none` has no configuration, but is given {', '.join(config)}")
        return cls()

    def to_config(self) -> dict[str, Any]:
        return {}

    def embedding(self, width: int) -> None:  # noqa: ARG002  # as every condition
        return None

    def rows(self) -> dict[str, list[str]]:
        return {}

    def of_images(self, class_indices: Tensor, words: Words | None = None) -> Tensor:  # noqa: ARG002  # as every condition
        return torch.zeros_like(class_indices)

    def batch(
        self,
        values: Sequence[Value],
        device: torch.device | str = "cpu",
        encode: Encode | None = None,  # noqa: ARG002  # as every condition
    ) -> Tensor:
        given = next((value for value in values if value is not None), None)
        if given is not None:
            raise UserError(f"this model draws images without a class, but is given {given!r}; give None")
        return torch.zeros(len(values), dtype=torch.int64, device=device)

    def null(
        self,
        count: int,  # noqa: ARG002  # as every condition
        device: torch.device | str = "cpu",  # noqa: ARG002
        encode: Encode | None = None,  # noqa: ARG002
    ) -> Tensor:
        raise UserError(
            "condition `none` has no null value, which classifier-free guidance needs: set sample.guidance.kind to none"
        )

    def plan(self, num_images: int, mix: ClassMix = BALANCED) -> list[Value]:  # noqa: ARG002  # as every condition
        return [None] * num_images

    def columns(self, values: Sequence[Value]) -> dict[str, list[Any]]:  # noqa: ARG002  # as every condition
        return {}

    def label(self, value: Value) -> str:  # noqa: ARG002  # as every condition
        return ""

    def file_stem(self, value: Value, seed: int) -> str:  # noqa: ARG002  # as every condition
        return str(seed)

    def from_request(self, given: object) -> Value:
        if given is not None:
            raise ValueError("this model draws images without a class; leave the class out")
        return None

    def to_request(self, value: Value) -> str | None:  # noqa: ARG002  # as every condition
        return None
