"""What clients of a model that is told words may ask, and every refusal in words."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from served import Running, running, untrained
from told_words import CAPTIONS, told_words


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(told_words()) as started:
        yield started


@pytest.mark.parametrize("prompt", ["a red bar", "", "ein grüner Apfel 苹果 🍏", "يسار"])
def test_a_prompt_of_any_script_gets_its_image_and_the_empty_one_an_image_without_words(
    server: Running, prompt: str
) -> None:
    answer = server.ask("/generate", {"prompt": prompt, "format": "json"})
    assert answer.status == 200 and answer.json["prompt"] == prompt and len(answer.json["images"]) == 1
    assert unquote(answer.headers["X-SFD-Prompt"]) == prompt and "note" not in answer.json


def test_other_words_and_another_negative_prompt_give_another_image(server: Running) -> None:
    def png(**body: Any) -> str:
        image: str = server.ask("/generate", {"prompt": "a red bar", "format": "json"} | body).json["images"][0]["png"]
        return image

    assert png() == png() == png(prompt="  a red\tbar ")
    assert len({png(), png(prompt="a blue bar"), png(prompt=""), png(negative_prompt="tall")}) == 4
    assert png(negative_prompt="") == png()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 422, "`prompt` is missing"),
        ({"prompt": "a" * 10_000}, 422, "10,000 characters, but at most 2,000 are read"),
        ({"prompt": "a\x07b"}, 422, "control character U+0007"),
        ({"prompt": 3}, 422, "prompt"),
        ({"prompt": ["a"]}, 422, "prompt"),
        ({"class": "lying"}, 422, "draws images for prompts; leave `class` out"),
        ({"prompt": "a", "class": 1}, 422, "leave `class` out"),
        ({"prompt": "a", "negative_prompt": 1}, 422, "negative_prompt"),
        ({"prompt": "a", "negative_prompt": "b\x01"}, 422, "`negative_prompt` has the control character U+0001"),
        ({"prompt": "a", "negative_prompt": "b" * 3000}, 422, "`negative_prompt` has 3,000 characters"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(server: Running, body: dict[str, Any], status: int, reason: str) -> None:
    answer = server.ask("/generate", body)
    assert answer.status == status and reason in answer.json["error"]


def test_what_is_no_json_is_refused_in_words(server: Running) -> None:
    answer = server.ask("/generate", b'{"prompt": "\xff"}')
    assert answer.status in (400, 422) and answer.json["error"]


def test_a_prompt_that_is_cut_is_said_in_the_answer(server: Running) -> None:
    cut = server.ask("/generate", {"prompt": "one two three four five six seven", "format": "json"})
    assert cut.json["note"] == "`prompt` is 7 tokens long, but the model reads 5: the end had no effect"
    assert unquote(cut.headers["X-SFD-Note"]) == cut.json["note"]
    whole = server.ask("/generate", {"prompt": "one two three four five", "format": "json"})
    assert "note" not in whole.json and "X-SFD-Note" not in whole.headers


def test_the_model_offers_captions_of_held_out_images(server: Running) -> None:
    assert server.ask("/model").json["prompts"] == list(CAPTIONS) and server.ask("/model").json["classes"] is None


def test_a_negative_prompt_needs_guidance_and_a_model_of_classes_takes_no_words() -> None:
    with running(told_words({"guidance": {"kind": "none"}})) as unguided:
        answer = unguided.ask("/generate", {"prompt": "a", "negative_prompt": "b"})
        assert answer.status == 422 and "ask for guidance above 1, or leave it out" in answer.json["error"]
        asked = {"prompt": "a", "negative_prompt": "b", "guidance": 2.0}
        assert unguided.ask("/generate", asked).status == 200
    with running(untrained()) as classes:
        for body, reason in (
            ({"class": "lying", "prompt": "a"}, "this model is told no words; leave `prompt` out"),
            ({"class": "lying", "negative_prompt": "a"}, "`negative_prompt` is for models that are told words"),
        ):
            answer = classes.ask("/generate", body)
            assert answer.status == 422 and reason in answer.json["error"]
        assert "prompts" not in classes.ask("/model").json
