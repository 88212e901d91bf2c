"""Prompts in files and tables, the text encoder beside a model, and negative prompts."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from served import model_of, untrained_decoder
from told_words import CAPTIONS, MAX_TOKENS, WIDTH, LetterEncoder, add_entry, condition_in, told_words
from torch import Tensor

from sfd.errors import UserError
from sfd.generation.images import ImageGenerator, load_words
from sfd.generation.prompts import KnownWords, plan_values, read_prompts
from sfd.generation.samples import finish_samples, read_table, write_samples
from sfd.generation.settings import Settings, read_settings, write_settings
from sfd.models.conditions import ClassCondition
from sfd.models.text_condition import TextCondition
from sfd.params import SampleParams

WORDS = TextCondition(WIDTH, MAX_TOKENS, examples=CAPTIONS)


def sampling(**changes: Any) -> SampleParams:
    guidance = {"kind": "cfg", "scale_texture": 2.0, "scale_semantic": 2.0}
    return SampleParams.model_validate(
        {"num_images": 4, "sampler": "euler", "num_steps": 2, "guidance": guidance} | changes
    )


def test_a_file_has_a_prompt_per_line_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffa red  bar\r\n\nnull\nein grüner\n".encode())
    assert read_prompts(tmp_path / "p.txt") == ["a red bar", "null", "ein grüner"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "it is not UTF-8"),
        (b"\n \n", "holds no prompt: write one per line"),
        (b"a\nb\x07\n", r"line 2: `prompt` has the control character U\+0007"),
        (b"a" * 3000, "line 1: `prompt` has 3,000 characters"),
    ],
)
def test_a_file_without_usable_prompts_is_refused_with_the_line(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_prompts(file)


def test_samples_are_drawn_for_the_prompts_of_the_file_else_for_held_out_captions(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    assert plan_values(WORDS, sampling(prompts=str(tmp_path / "p.txt"))) == ["one", "two", "one", "two"]
    assert plan_values(WORDS, sampling()) == [*CAPTIONS, CAPTIONS[0]]
    assert plan_values(ClassCondition(("a", "b")), sampling()) == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"told no words \(condition `class`\): set it to null"):
        plan_values(ClassCondition(("a",)), sampling(prompts=str(tmp_path / "p.txt")))


def test_the_table_names_the_prompts_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('NA\na, "b"\n007\n')
    images, params = told_words().images, sampling(prompts=str(tmp_path / "p.txt"))
    table = write_samples(tmp_path, images, params, 3, 0, 0, 1)
    finish_samples(tmp_path, table, images.model.condition, params)
    read = read_table(tmp_path)
    assert list(read) == ["file", "prompt", "seed"]
    assert read["prompt"].tolist() == ["NA", 'a, "b"', "007", "NA"] and (tmp_path / "grid.png").is_file()
    pd.testing.assert_frame_equal(read, table)


def draw(images: ImageGenerator, prompt: str, **guidance: Any) -> Tensor:
    params = sampling(guidance={"kind": "cfg", "scale_texture": 2.0, "scale_semantic": 2.0} | guidance)
    return next(images.sample([prompt], [3], params, 1))


def test_guidance_steers_away_from_the_empty_caption_or_from_the_negative_prompt() -> None:
    images = told_words().images
    plain, empty = draw(images, "a red bar"), draw(images, "a red bar", negative_prompt="")
    assert torch.equal(plain, empty)
    away = draw(images, "a red bar", negative_prompt="a blue bar")
    assert not torch.equal(plain, away)
    unguided = next(images.sample(["a red bar"], [3], sampling(guidance={"kind": "none"}), 1))
    itself = draw(images, "a red bar", negative_prompt="a red bar")
    assert (itself.int() - unguided.int()).abs().max() <= 1, "guided away from itself, a prompt is not guided"


def test_words_that_are_known_before_need_no_encoder() -> None:
    model = model_of(WORDS, {"tau": 0.3})
    known = KnownWords(LetterEncoder().encode, ["a red bar", ""])
    with_encoder = ImageGenerator(model, untrained_decoder(), words=LetterEncoder())
    assert torch.equal(
        draw(ImageGenerator(model, untrained_decoder(), encode=known), "a red bar"), draw(with_encoder, "a red bar")
    )
    with pytest.raises(UserError, match="without its text encoder"):
        draw(ImageGenerator(model, untrained_decoder()), "a red bar")


def test_the_text_encoder_of_the_training_is_loaded_and_another_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_entry(monkeypatch)
    own, other = tmp_path / "own", tmp_path / "other"
    LetterEncoder().save(own)
    LetterEncoder(2.0).save(other)
    model = model_of(condition_in(own), {"tau": 0.3})
    assert isinstance(load_words(own, model, other_networks=False), LetterEncoder)
    with pytest.raises(UserError, match="another text encoder"):
        load_words(other, model, other_networks=False)
    assert load_words(other, model, other_networks=True) is not None
    assert load_words(tmp_path / "none", model_of(ClassCondition(("a",)), {"tau": 0.3}), False) is None


def test_prompts_survive_the_record_of_a_registered_model_and_old_records_have_none(tmp_path: Path) -> None:
    told = Settings.of(sampling(prompts="p.txt", guidance={"kind": "cfg", "negative_prompt": "grey"}), 4)
    write_settings(tmp_path / "s.json", told)
    assert read_settings(tmp_path / "s.json") == told
    write_settings(tmp_path / "s.json", Settings.of(sampling(), 4))
    assert "prompt" not in (tmp_path / "s.json").read_text()
