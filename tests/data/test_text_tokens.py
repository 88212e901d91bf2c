"""Token embeddings of captions: stored ragged, read as words; and beside latents."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from support import small_params

from sfd.data.shards import ShardReader
from sfd.data.text_tokens import (
    SPANS,
    CaptionTexts,
    TextTokens,
    TokensIndex,
    close_tokens,
    decoded,
    examples_of,
    open_captions,
    write_texts,
    write_tokens,
)
from sfd.errors import UserError
from sfd.models.words import Words, stack_words
from sfd.params import parse_params, with_values
from sfd.training.order import SeededBatchSampler

TEXT = {"text.source": "pretrained", "text.name": "t5"}
CAPTIONS = [["a", "bcd"], ["ef"], ["g", "h", "ijklm"], ["no"], ["pqr"]]


def encode(texts: list[str]) -> Words:
    """A token per letter, which is its number."""
    return stack_words([torch.tensor([[float(ord(letter)), 1.0] for letter in text or "."]) for text in texts])


def letters(words: Words) -> list[str]:
    return [
        "".join(chr(int(number)) for number in row[mask][:, 0])
        for row, mask in zip(words.tokens, words.mask, strict=True)
    ]


def stored(folder: Path, shard_size: int = 2, seed: int = 0) -> TextTokens:
    bounds = write_tokens(folder / "shards", CAPTIONS, encode, shard_size, "images")
    facts = TokensIndex(2, 5, "ab", sum(map(len, CAPTIONS)), 0, examples_of(CAPTIONS))
    close_tokens(folder / "shards", bounds, facts, encode([""]))
    return TextTokens(folder / "shards", seed)


def test_each_image_gets_one_of_its_captions_whole(tmp_path: Path) -> None:
    tokens = stored(tmp_path)
    for number in range(20):
        found = letters(tokens.words(range(5), [number] * 5))
        assert all(text in texts for text, texts in zip(found, CAPTIONS, strict=True))
    assert letters(tokens.null_words) == ["."] and tokens.null_words.tokens.dtype == torch.float16
    assert tokens.facts.examples == [text for texts in CAPTIONS for text in texts] and len(tokens) == 5


def test_the_caption_depends_on_the_seed_and_the_sample_alone(tmp_path: Path) -> None:
    one, other = stored(tmp_path / "a"), stored(tmp_path / "b", shard_size=3)
    numbers = [number * 5 + 2 for number in range(40)]
    drawn = [letters(one.words([2], [number]))[0] for number in numbers]
    assert drawn == letters(other.words([2] * 40, numbers))
    assert drawn == letters(one.words([2] * 40, numbers[::-1]))[::-1]
    assert set(Counter(drawn)) == set(CAPTIONS[2]) and min(Counter(drawn).values()) > 5
    assert drawn != letters(stored(tmp_path / "c", seed=1).words([2] * 40, numbers))


def test_shards_that_are_there_are_kept_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    stored(tmp_path)
    files = {file: file.read_bytes() for file in (tmp_path / "shards").glob("*.safetensors")}
    damaged = min(files)
    damaged.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="missing or damaged"):
        ShardReader(tmp_path / "shards", TokensIndex).check()
    asked: list[str] = []

    def counted(texts: list[str]) -> Words:
        asked.extend(texts)
        return encode(texts)

    write_tokens(tmp_path / "shards", CAPTIONS, counted, 2, "images")
    assert {file: file.read_bytes() for file in files} == files
    assert asked == ["a", "bcd", "ef"]


def texts_of(folder: Path, captions: list[list[str]], shard_size: int = 2) -> CaptionTexts:
    bounds = write_texts(folder / "captions", captions, shard_size)
    close_tokens(folder / "captions", bounds, TokensIndex(2, 5, "ab", sum(map(len, captions)), 0, []), encode([""]))
    return CaptionTexts(folder / "captions", seed=0)


def test_texts_in_place_of_tokens_are_drawn_alike(tmp_path: Path) -> None:
    texts, tokens = texts_of(tmp_path, CAPTIONS), stored(tmp_path)
    for number in range(20):
        found = texts.texts(range(5), [number] * 5)
        assert found.dtype == torch.uint8
        assert decoded(found) == letters(tokens.words(range(5), [number] * 5))
    assert len(texts) == 5 and texts.facts.num_captions == 8 and letters(texts.null_words) == ["."]


def test_texts_of_any_script_and_the_empty_one_come_back_as_they_were(tmp_path: Path) -> None:
    captions = [["Ähre"], ["ein 🐘"], [""], ["日本"], ["a\x00b"]]
    texts = texts_of(tmp_path, captions, shard_size=1)
    assert decoded(texts.texts(range(5), [0] * 5)) == [text for (text,) in captions]
    assert decoded(texts.texts([2], [0])) == [""]


def test_shards_of_texts_are_kept_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    texts = texts_of(tmp_path, CAPTIONS)
    files = {file: file.read_bytes() for file in (tmp_path / "captions").glob("*.safetensors")}
    min(files).write_bytes(b"x")
    with pytest.raises(UserError, match="missing or damaged"):
        texts.reader.check()
    texts_of(tmp_path, CAPTIONS).reader.check()
    assert {file: file.read_bytes() for file in files} == files


def test_the_option_says_whether_tokens_or_texts_are_read(tmp_path: Path) -> None:
    params = parse_params(small_params(), "params.yaml")
    assert open_captions(params, tmp_path / "latents") is None
    captioned = with_values(params, {"diffusion.model.condition": "text", "data.captions": "auto", **TEXT})
    stored(tmp_path / "text")
    assert isinstance(open_captions(captioned, tmp_path / "latents"), TextTokens)
    without = with_values(captioned, {"text.store_tokens": False})
    with pytest.raises(
        UserError, match=r"captions.index\.json is missing, so these shards are not complete; rerun the stage"
    ):
        open_captions(without, tmp_path / "latents")
    texts_of(tmp_path / "text", CAPTIONS)
    assert isinstance(open_captions(without, tmp_path / "latents"), CaptionTexts)


def test_tokens_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def broken(texts: list[str]) -> Words:
        words = encode(texts)
        return Words(words.tokens * 1e6, words.mask)

    with pytest.raises(UserError, match="a token of the captions of images 0 to 1 is not finite in fp16"):
        write_tokens(tmp_path / "shards", CAPTIONS, broken, 2, "images")


def test_spans_are_read_at_their_place_whatever_the_shard(tmp_path: Path) -> None:
    reader = stored(tmp_path).reader
    assert reader.span(SPANS, 0, 1, 2).tolist() == [[1, 3], [4, 2]]
    assert reader.span(SPANS, 3, 3, 1).tolist() == [[7, 2]]


def test_samples_are_numbered_on_over_the_epochs_only_where_that_is_asked_for() -> None:
    plain = SeededBatchSampler(0, "x", 5, 4, 0, 5, slice(0, 4))
    counted = SeededBatchSampler(0, "x", 5, 4, 0, 5, slice(0, 4), counts_epochs=True)
    assert [[number % 5 for number in batch] for batch in counted] == list(plain)
    assert [number // 5 for batch in counted for number in batch] == [place // 5 for place in range(20)]
