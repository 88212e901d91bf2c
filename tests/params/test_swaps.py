"""Attribute swaps: templates with one place, and words that are colours."""

from typing import Any

import pytest
from changed_params import refusal
from pydantic import ValidationError

from sfd.params import EvaluateParams


def test_templates_with_colour_words_are_accepted_and_none_at_all_is_the_default() -> None:
    swaps = {"a {} heart": ["red", "blue"], "{}": ["orange", "teal", "black"]}
    found = EvaluateParams.model_validate({"swaps": swaps}).swaps
    assert found == {"a {} heart": ("red", "blue"), "{}": ("orange", "teal", "black")}
    assert EvaluateParams().swaps is None


@pytest.mark.parametrize(
    ("swaps", "said"),
    [
        ({"a red heart": ["red", "blue"]}, r"'a red heart' must have exactly one place"),
        ({"{} and {}": ["red", "blue"]}, "exactly one place"),
        ({"{} {x}": ["red", "blue"]}, "no other brace"),
        ({"a {} heart": ["red", "gren"]}, "'gren' of template 'a {} heart' is no colour of CSS; nearest: `green`"),
        ({"a {} heart": ["gray", "grey"]}, "has 'gray' and 'grey', which are one colour"),
        ({"a {} heart": ["red", "red"]}, "which are one colour"),
        ({"a {} heart": ["red"]}, "at least 2 items"),
        ({}, "at least 1 item"),
    ],
)
def test_templates_and_words_that_cannot_be_scored_are_refused(swaps: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EvaluateParams.model_validate({"swaps": swaps})


def test_swaps_need_a_model_that_is_told_words() -> None:
    said = refusal({"evaluate.swaps": {"a {} heart": ["red", "blue"]}})
    assert "evaluate.swaps puts words into prompts, but diffusion.model.condition is `class`" in said
