"""Stage `text`: nothing for other conditions; else a text encoder, tokens of all captions, and how well they tell images apart."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from captioned import captioned_params, captioned_project
from support import Project, run_stages, small_params, wait_until

from sfd.data.manifest import HELDOUT, TRAIN, read_manifest
from sfd.data.text_tokens import TextTokens
from sfd.encoders.text.encoder import load_text_encoder
from sfd.network_files import network_digest

TRAINING = {"num_steps": 40, "batch_size": 16, "learning_rate": 0.003}


def captioned(factory: pytest.TempPathFactory, folder: Path) -> Project:
    """A project of two kinds of stripes with captions beside them, before stage `text`."""
    params = captioned_params()
    params["text"]["training"] |= TRAINING
    params["runtime"]["text"] = {"num_workers": 0, "compile": False, "checkpoint_every": 5, "log_every": 5}
    project = captioned_project(factory).copy_to(folder)
    for made in (project.result("text"), project.folder / ".sfd" / "finished" / "text"):
        shutil.rmtree(made)
    project.write_params(params)
    return project


def run(project: Project) -> str:
    status, output = project.run("python", "stages/text.py")
    assert status == 0, output
    return output


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_without_words_the_stage_leaves_the_same_record_whatever_its_options(
    tmp_path: Path,
) -> None:
    params = small_params()
    project = Project(tmp_path, params)
    found = []
    for width in (16, 32):
        params["text"]["width"] = width
        project.write_params(params)
        run_stages(project, "scan", "text")
        found.append(files(project.result("text")))
        assert json.loads((project.result("text") / "text.json").read_text()) == {"captions": None}
    assert [each.keys() for each in found] == [{"text.json", "fingerprint.json"}] * 2
    published = [json.loads(each["fingerprint.json"]) for each in found]
    assert published[0] == published[1]


@pytest.mark.long
def test_a_text_encoder_is_trained_and_the_tokens_of_all_captions_are_stored(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = captioned(tmp_path_factory, tmp_path / "project")
    run(project)
    folder, rows = project.result("text"), read_manifest(project.result("prepare"))
    encoder = load_text_encoder(folder / "model")
    quality = json.loads((folder / "quality.json").read_text())
    assert quality["captions"] == 2 * (rows["split"] == TRAIN).sum() and quality["truncated"] == 0
    assert 0.0 < quality["chance"] < 1.0 and 0.0 <= quality["heldout_retrieval"] <= 1.0
    for name, split in (("shards", TRAIN), ("heldout", HELDOUT)):
        captions = rows.loc[rows["split"] == split, "captions"].tolist()
        tokens = TextTokens(folder / name, seed=0)
        assert len(tokens) == len(captions) and tokens.facts.encoder == network_digest(folder / "model")
        for image in (0, len(captions) - 1):
            stored = tokens.words([image], [3]).tokens[0].float()
            wanted = [encoder.encode([text]).tokens[0] for text in captions[image]]
            assert any(each.shape == stored.shape and torch.allclose(each, stored, atol=1e-2) for each in wanted)
    null = TextTokens(folder / "shards", seed=0).null_words
    torch.testing.assert_close(null.tokens.float(), encoder.encode([""]).tokens, atol=1e-2, rtol=1e-2)
    assert (folder / "curves.csv").is_file() and (folder / "captions.png").is_file()


def kill_once(project: Project, work: Path, name: str, seconds: float) -> bool:
    """Starts the stage and kills it some seconds after it wrote a file of its work folder. False: it was done before."""
    begun = time.time()
    process = project.start("python", "stages/text.py", forked=True)
    is_written = lambda: (work / name).is_file() and (work / name).stat().st_mtime > begun  # noqa: E731
    wait_until(lambda: process.poll() is not None or is_written(), 60)
    time.sleep(seconds)
    is_running = process.poll() is None
    if is_running:
        os.kill(int((work / "owner").read_text().split()[0]), signal.SIGKILL)
    process.communicate()
    return is_running


@pytest.mark.long
def test_the_stage_killed_at_any_moment_and_continued_ends_with_the_same_bytes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = captioned(tmp_path_factory, tmp_path / "whole")
    params = yaml.safe_load((whole.folder / "params.yaml").read_text())
    params["text"]["training"]["num_steps"] = 400  # enough to be killed within, on a quick machine, too
    whole.write_params(params)
    killed = whole.copy_to(tmp_path / "killed")
    run(whole)
    moments, work = random.Random(0), killed.folder / ".sfd/work/text"
    kills = [
        kill_once(killed, work, "checkpoint.pt" if number % 2 else "owner", moments.uniform(0.0, 0.3))
        for number in range(4)
    ]
    assert kills[:2] == [True, True]
    run(killed)
    ours, theirs = files(whole.result("text")), files(killed.result("text"))
    assert ours.keys() == theirs.keys()
    assert [name for name, content in ours.items() if content != theirs[name]] == []


@pytest.mark.long
def test_an_encoder_of_another_project_is_taken_and_one_of_other_sizes_is_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = captioned(tmp_path_factory, tmp_path / "project")
    run(project)
    model = project.result("text/model").rename(project.folder / "words")
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["text"] |= {"source": "file", "file": "words", "training": None}
    project.write_params(params)
    run(project)
    assert files(project.result("text") / "model") == files(model)
    project.write_params(params | {"text": params["text"] | {"attend_padding": True}})
    status, output = project.run("python", "stages/text.py")
    assert (
        status == 2
        and "was written by stage `text`, and reads texts in its own way: remove text.hidden_layers" in output
    )
    params["text"]["width"] = 32
    project.write_params(params)
    status, output = project.run("python", "stages/text.py")
    assert status == 2 and "text.width is 32, but words has 16: write text.width 16" in output.replace(
        f"{project.folder}/", ""
    )


def test_options_of_words_that_do_not_fit_together_are_refused() -> None:
    from sfd.errors import UserError
    from sfd.params import parse_params

    for changes, sentence in (
        ({"source": "pretrained"}, "text.name is needed by text.source `pretrained`"),
        ({"name": "t5"}, "text.name is needed by text.source `pretrained`, and by no other"),
        ({"source": "file"}, "text.source is `file`, so text.file must name the weights"),
        ({"hidden_layers": [1]}, "text.hidden_layers is for a model of the library `transformers`, but text.source is"),
        ({"hidden_layers": [-1], "source": "pretrained", "name": "t5"}, "text.hidden_layers.0` is -1, but"),
        ({"attend_padding": True}, "text.attend_padding is for a model of the library"),
        ({"width": 30, "num_heads": 4}, "text.width 30 must be a multiple of text.num_heads 4"),
    ):
        params = small_params()
        params["text"] |= changes
        with pytest.raises(UserError, match=sentence):
            parse_params(params, "params.yaml")
