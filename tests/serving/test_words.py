"""What clients of a model that is told words may ask, and every refusal in words."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from served import Running, gated, running, untrained
from support import wait_until
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
        ({"prompt": "a", "attention": "yes", "format": "json"}, 422, "attention"),
        ({"prompt": "a", "attention": 1, "format": "json"}, 422, "attention"),
        ({"prompt": "a", "attention": True}, 422, "format is `png`: set format to `json`"),
        ({"prompt": "a", "attention": True, "format": "zip"}, 422, "set format to `json`"),
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


def test_where_each_word_looks_is_answered_beside_an_image_of_the_same_bytes(server: Running) -> None:
    body = {"prompt": "a red, red bar", "format": "json", "count": 2, "seed": 5}
    plain, asked = server.ask("/generate", body).json, server.ask("/generate", body | {"attention": True}).json
    assert [image["png"] for image in asked["images"]] == [image["png"] for image in plain["images"]]
    assert all("attention" not in image for image in plain["images"])
    assert server.ask("/generate", body | {"attention": False}).json == plain
    for image in asked["images"]:
        assert [found["word"] for found in image["attention"]] == ["a", "red,", "red", "bar"]
        assert sum(found["share"] for found in image["attention"]) == pytest.approx(1.0, abs=1e-5), "no token is left"
        for found in image["attention"]:
            picture = Image.open(io.BytesIO(base64.b64decode(found["png"])))
            assert (picture.mode, picture.size, picture.getextrema()) == ("L", (128, 128), (0, 255))
            assert 0.0 <= found["low"] <= found["share"] <= found["high"] <= 1.0
    first, second = ([found["png"] for found in image["attention"]] for image in asked["images"])
    assert len({*first, *second}) == 8, "every word and every image has a map of its own"


def test_words_that_are_cut_off_and_the_empty_prompt_have_no_map(server: Running) -> None:
    cut = server.ask("/generate", {"prompt": "1 2 3 4 5 6 7", "format": "json", "attention": True}).json
    assert [found["word"] for found in cut["images"][0]["attention"]] == list("12345") and "note" in cut
    empty = server.ask("/generate", {"prompt": "", "format": "json", "attention": True}).json
    assert empty["images"][0]["attention"] == []


def test_requests_with_and_without_attention_that_are_drawn_together_get_what_they_get_alone() -> None:
    body = {"prompt": "a red bar", "format": "json"}
    model, gate = gated(told_words())
    with running(model) as server, ThreadPoolExecutor() as clients:

        def ask(**more: Any) -> Any:
            return server.ask("/generate", body | more).json["images"]

        first = clients.submit(ask)
        assert gate.entered.wait(60)
        mixed = [clients.submit(ask, seed=seed, attention=seed != 2) for seed in (1, 2, 3)]
        wait_until(lambda: server.queued() == 3, 60)
        gate.open.set()
        assert first.result() == ask()
        for seed, answer in zip((1, 2, 3), mixed, strict=True):
            assert answer.result() == ask(seed=seed, attention=seed != 2)
        assert sorted(gate.calls[1]) == [1, 2, 3]


def test_after_a_failure_with_attention_the_next_request_is_answered() -> None:
    model, gate = gated(told_words())
    gate.open.set()
    body = {"prompt": "a red bar", "format": "json", "attention": True}
    with running(model) as server:
        gate.failure = RuntimeError("out of memory")
        assert server.ask("/generate", body).status == 500
        gate.failure = None
        answer = server.ask("/generate", body)
        assert answer.status == 200 and len(answer.json["images"][0]["attention"]) == 3


def test_models_without_cross_attention_refuse_it_in_words_and_say_so_before() -> None:
    body = {"format": "json", "attention": True}
    in_context = told_words(text_attention="in_context")
    with running(in_context) as server, running(untrained()) as classes:
        assert server.ask("/model").json["attention"] is False
        assert server.ask("/generate", {"prompt": "a", "format": "json"}).status == 200
        for answer in (server.ask("/generate", body | {"prompt": "a"}), classes.generate(**body)):
            assert answer.status == 422
            assert "`attention` is for models that look at words by cross-attention" in answer.error
        assert "attention" not in classes.ask("/model").json
    with running(told_words()) as server:
        assert server.ask("/model").json["attention"] is True
