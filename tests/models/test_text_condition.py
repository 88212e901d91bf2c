"""Words as a condition: prompts in, what a network is told, tables and requests."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from sfd.errors import UserError
from sfd.models.conditions import ClassCondition, NoCondition, TextFacts, placeholder, read_condition
from sfd.models.text_condition import PooledWords, TextCondition, read_prompt
from sfd.models.words import Words, stack_words

WORDS = TextCondition(width=3, max_tokens=4, encoder="d1", examples=("a red apple", "a green apple", "grün"))


def encode(texts: Sequence[str]) -> Words:
    """One token per word, whose numbers are its length; the empty text is one token of zeros."""
    return stack_words(
        [torch.tensor([[len(word)] * 3 for word in text.split()] or [[0] * 3]).float() for text in texts]
    )


def test_it_survives_its_record_and_a_record_that_does_not_fit_is_refused() -> None:
    assert read_condition("text", WORDS.to_config()) == WORDS
    with pytest.raises(ValueError, match="0 tokens of width 3"):
        read_condition("text", WORDS.to_config() | {"max_tokens": 0})


def test_it_is_made_of_what_the_latents_know_of_their_captions_and_refused_without() -> None:
    made = TextCondition.from_data(["a"], [3], TextFacts(3, 4, "d1", WORDS.examples))
    assert made == WORDS
    with pytest.raises(UserError, match=r"hold no captions: set data\.captions"):
        TextCondition.from_data(["a"], [3])


def test_prompts_become_padded_words_and_none_is_the_empty_prompt() -> None:
    found = WORDS.batch(["a red apple", None, "a red apple"], encode=encode)
    assert found.tokens.shape == (3, 4, 3) and found.mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3] + [
        [True] * 3 + [False]
    ]
    assert found.tokens[0, :, 0].tolist() == [1.0, 3.0, 5.0, 0.0]
    null = WORDS.null(2, encode=encode)
    assert torch.equal(null.tokens[0], found.tokens[1]) and null.mask.shape == (2, 4)


def test_words_are_rounded_as_they_are_stored() -> None:
    exact = torch.tensor([[0.1, 1 / 3, 2.0]])
    found = WORDS.batch(["x"], encode=lambda _texts: stack_words([exact]))
    assert torch.equal(found.tokens[0, :1], exact.half().float()) and found.tokens.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "encoder", "reason"),
    [
        (["a"], None, "without its text encoder"),
        ([3], encode, "draws images for prompts, but is given 3"),
        (["one two three four five"], encode, "at most 4 tokens of width 3, but is given 5"),
        (["a"], lambda _texts: Words(torch.zeros(1, 1, 7), torch.ones(1, 1, dtype=torch.bool)), "1 of width 7"),
    ],
)
def test_what_does_not_become_words_is_refused(values: list[object], encoder: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        WORDS.batch(values, encode=encoder)  # type: ignore[arg-type]


def test_images_are_told_their_captions_and_images_without_are_refused() -> None:
    captions = encode(["a b", "c"])
    assert WORDS.of_images(torch.tensor([0, 1]), captions).mask.sum(dim=1).tolist() == [2, 1]
    with pytest.raises(UserError, match="come without captions"):
        WORDS.of_images(torch.tensor([0, 1]))


def test_samples_are_drawn_for_the_examples_in_turn_and_tables_name_the_prompts() -> None:
    many = replace(WORDS, examples=tuple(f"caption {n}" for n in range(9)))
    assert many.plan(3) == ["caption 0", "caption 3", "caption 6"], "captions come class by class"
    assert WORDS.plan(4) == [*WORDS.examples, "a red apple"] == WORDS.plan(4, "natural")
    assert WORDS.columns(["a", None]) == {"prompt": ["a", ""]}
    with pytest.raises(UserError, match=r"give prompts, in sample\.prompts"):
        TextCondition(3, 4).plan(1)


def test_labels_are_short_and_files_are_not_named_after_prompts() -> None:
    assert WORDS.label("../" * 30).endswith("…") and len(WORDS.label("../" * 30)) <= 40
    assert WORDS.label("an apple") == "an apple" and WORDS.label(None) == WORDS.label("") == "no words"
    assert WORDS.file_stem("../../etc/passwd", 7) == "image-7"


def test_a_client_asks_in_words_of_any_script_and_may_ask_for_none() -> None:
    assert WORDS.asked_as == "prompt" and ClassCondition(("a",)).asked_as == NoCondition().asked_as == "class"
    for given, read in (
        (" a  red\tapple\n", "a red apple"),
        ("ein grüner Apfel 苹果 🍏", "ein grüner Apfel 苹果 🍏"),
        ("", ""),
    ):
        assert WORDS.from_request(given) == read and WORDS.to_request(read) == read


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "`prompt` is missing"),
        (3, "must be a string, but is 3"),
        (["a"], "must be a string"),
        ("a" * 10_000, "10,000 characters, but at most 2,000"),
        ("a\x07b", r"control character U\+0007 behind 1 others"),
        ("a\ud800", r"U\+D800"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(given: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        WORDS.from_request(given)


def test_a_negative_prompt_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="`negative_prompt` must be a string"):
        read_prompt(1, "negative_prompt")


def test_the_mean_word_leaves_out_the_padding() -> None:
    pooled = PooledWords(3, 3)
    torch.nn.init.eye_(pooled.proj.weight)
    torch.nn.init.zeros_(pooled.proj.bias)
    found = WORDS.batch(["a ccc", ""], encode=encode)
    assert pooled(found)[:, 0].tolist() == [2.0, 0.0]


def test_a_placeholder_has_the_shape_of_the_argument() -> None:
    assert placeholder(WORDS, 2).tokens.shape == (2, 4, 3)  # type: ignore[union-attr]
    assert placeholder(ClassCondition(("a", "b")), 3).tolist() == [0, 1, 0]  # type: ignore[union-attr]
