"""Which tokens are a word's, by the characters that tokens stand for."""

import pytest

from sfd.encoders.text.places import Span, place_words


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("a red bar", [(0, 1), (1, 5), (5, 9), None], [("a", (0,)), ("red", (1,)), ("bar", (2,))]),
        ("stripes, lying", [(0, 0), (0, 4), (4, 7), (7, 8), (8, 14)], [("stripes,", (1, 2, 3)), ("lying", (4,))]),
        ("red red", [(0, 3), (3, 7)], [("red", (0,)), ("red", (1,))]),
        ("a 🍏", [(0, 1), (1, 2), (2, 3), (2, 3)], [("a", (0,)), ("🍏", (2, 3))]),
        ("红苹果 x", [(0, 1), (1, 3), (3, 5)], [("红", (0,)), ("苹果", (1,)), ("x", (2,))]),
        ("New York city", [(0, 8), (8, 13)], [("New York", (0,)), ("city", (1,))]),
        ("one two three", [(0, 3), (3, 7)], [("one", (0,)), ("two", (1,))]),
        ("", [None], []),
    ],
)
def test_tokens_are_merged_to_words_and_those_of_no_word_left_out(
    text: str, spans: list[Span | None], expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    assert place_words(text, spans) == expected
