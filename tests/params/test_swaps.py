"""Attribute swaps: prompts with one place for words, which are colours."""

from typing import Any

import pytest
from changed_params import refusal
from pydantic import ValidationError

from sfd.params import EvaluateParams


def test_prompts_with_colour_words_are_accepted_and_none_at_all_is_the_default() -> None:
    swaps = ["a {red, blue} heart", "{ orange, teal, black }"]
    found = EvaluateParams.model_validate({"swaps": swaps})
    assert found.swap_words == {"a {} heart": ("red", "blue"), "{}": ("orange", "teal", "black")}
    assert EvaluateParams().swaps is None and EvaluateParams().swap_words == {}


@pytest.mark.parametrize(
    ("swaps", "said"),
    [
        (["a red heart"], r"'a red heart' must have exactly one place for words"),
        (["{red, blue} and {red, blue}"], "exactly one place"),
        (["{red, {blue}}"], "exactly one place"),
        (["a {red, gren} heart"], "'gren' of template 'a {} heart' is no colour of CSS; nearest: `green`"),
        (["a {gray, grey} heart"], "has 'gray' and 'grey', which are one colour"),
        (["a {red, red} heart"], "which are one colour"),
        (["a {red} heart"], "two words or more"),
        (["a {red, blue} heart", "a {green, black} heart"], "'a {} heart' is there twice"),
        ([], "at least 1 item"),
    ],
)
def test_prompts_and_words_that_cannot_be_scored_are_refused(swaps: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EvaluateParams.model_validate({"swaps": swaps})


def test_swaps_need_a_model_that_is_told_words() -> None:
    said = refusal({"evaluate.swaps": ["a {red, blue} heart"]})
    assert "evaluate.swaps puts words into prompts, but diffusion.model.condition is `class`" in said
