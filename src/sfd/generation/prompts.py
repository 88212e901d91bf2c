"""Prompts: what a model that is told words draws, from a file or from its own record; and words that are known before."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sfd.errors import UserError
from sfd.models.conditions import Condition, Encode, Value
from sfd.models.text_condition import TextCondition, read_prompt
from sfd.models.words import Words
from sfd.params import SampleParams

GRID_PROMPTS = 24
"""Prompts in a grid of a model that is told words."""


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one per line; empty lines are passed over.

    Raises:
        UserError: it cannot be read, is not UTF-8, holds no prompt, or holds one that no client could send.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"the prompts in {file} cannot be read ({reason}); correct the path or the file") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompt = read_prompt(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}") from None
        prompts += [prompt] if prompt else []
    if not prompts:
        raise UserError(f"{file} holds no prompt: write one per line")
    return prompts


def plan_values(condition: Condition, params: SampleParams) -> list[Value]:
    """What each image of a set of samples is drawn for: the prompts of ``params.prompts`` in turn, else as the condition plans it.

    ``params``: with its paths resolved.

    Raises:
        UserError: prompts are given to a model that is told no words; or as :func:`read_prompts` and :meth:`Condition.plan` do.
    """
    if params.prompts is None:
        return condition.plan(params.num_images, params.class_mix)
    if condition.words is None:
        raise UserError(
            f"sample.prompts is {params.prompts}, but the model is told no words (condition `{condition.kind}`): set it to null"
        )
    prompts = read_prompts(params.prompts)
    return [prompts[n % len(prompts)] for n in range(params.num_images)]


def prompts_to_draw(condition: Condition, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The prompts that a model draws in turn: those that are given, else captions of its record; None for one that is told no words.

    Raises:
        UserError: prompts are given to a model that is told none, or there are none.
    """
    if not isinstance(condition, TextCondition):
        if given is not None:
            raise UserError("--prompts is for models that are told words, and this one is not; leave the option out")
        return None
    found = tuple(given or condition.examples)
    if not found:
        raise UserError("the model's record holds no captions of held-out images to draw for: give --prompts")
    return found


class KnownWords:
    """Some prompts as words, so that the text encoder need not stay in memory: an :data:`sfd.models.conditions.Encode`."""

    def __init__(self, encode: Encode, prompts: Sequence[str]) -> None:
        self.places = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
        words = encode(list(self.places))
        self.words = words.to("cpu")

    def __call__(self, texts: Sequence[str]) -> Words:
        """Raises ``KeyError`` for a prompt that is not known."""
        return self.words.select(torch.tensor([self.places[text] for text in texts]))
