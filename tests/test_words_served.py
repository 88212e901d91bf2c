"""A tiny captioned folder through all stages to a registered model that is asked for images in words: by MLflow, and over HTTP."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from captioned import NAMES, captioned_project
from PIL import Image
from served import Running, running
from support import Project

from sfd.generation.samples import read_table
from sfd.network_files import network_digest
from sfd.registry.load import load_registered
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

HERE = Workspace(Path())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Its model is drawn with guidance away from a negative prompt."""
    made = captioned_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("words served") / "project")
    with made.entered():
        yield made


@pytest.fixture(scope="module")
def model(project: Project) -> Any:  # noqa: ARG001  # which this process works in
    """Version 1 as MLflow loads it."""
    return mlflow.pyfunc.load_model("models:/sfd-digits/1")


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Running]:  # noqa: ARG001  # which this process works in
    with running(load_registered(HERE, "sfd-digits", "1")) as started:
        yield started


def pixels(png: bytes | Path) -> Any:
    return np.asarray(Image.open(io.BytesIO(png) if isinstance(png, bytes) else png), dtype=int)


def test_samples_are_drawn_for_held_out_captions_and_grids_show_them(project: Project) -> None:
    table = read_table(project.result("sample"))
    assert list(table) == ["file", "prompt", "seed"] and len(table) == 12
    record = json.loads((project.result("diffusion") / "model" / "config.json").read_text())["condition"]
    assert record["kind"] == "text" and record["encoder"] == network_digest(project.result("text") / "model")
    examples = record["examples"]
    assert table["prompt"].tolist() == [examples[n * len(examples) // 12] for n in range(12)], "evenly spaced"
    captions = {f"{name} bar number {digit}" for name in NAMES for digit in range(10)}
    assert set(table["prompt"]) <= captions | {f"a {name} stripe" for name in NAMES}
    assert len(list((project.result("diffusion") / "grids").glob("*.png"))) == 2
    curves = (project.result("diffusion") / "curves.csv").read_text()
    assert "heldout" in curves.splitlines()[0]
    assert json.loads((project.result("register") / "registration.json").read_text())


def test_the_registered_model_takes_prompts_alone_and_gives_the_samples_again(project: Project, model: Any) -> None:
    table = read_table(project.result("sample"))
    shutil.move(project.result("text"), project.folder / "elsewhere")  # the version carries its text encoder
    try:
        answer = mlflow.pyfunc.load_model("models:/sfd-digits/1").predict(table[["prompt", "seed"]])
    finally:
        shutil.move(project.folder / "elsewhere", project.result("text"))
    for file, png in zip(table["file"], answer["png"], strict=True):
        difference = np.abs(pixels(png) - pixels(project.result("sample") / "images" / file))
        assert difference.max() <= 1, "one grey level is the rounding allowed"
    row = pd.DataFrame({"prompt": ["an upright bar"], "seed": [1]})
    assert len(model.predict(row, params={"negative_prompt": "a lying bar", "num_steps": 2})) == 1
    with pytest.raises(mlflow.MlflowException, match="`negative_prompt` has the control character"):
        model.predict(row, params={"negative_prompt": "a\x07"})
    with pytest.raises(mlflow.MlflowException, match="control character"):
        model.predict(pd.DataFrame({"prompt": ["a\x07"], "seed": [1]}))


def test_the_server_draws_what_is_written_and_offers_captions(server: Running, model: Any) -> None:
    answer = server.ask("/generate", {"prompt": "an upright bar", "seed": 3})
    assert answer.status == 200
    (expected,) = model.predict(pd.DataFrame({"prompt": ["an upright bar"], "seed": [3]}))["png"]
    assert np.abs(pixels(answer.content) - pixels(expected)).max() <= 1
    assert len(server.ask("/model").json["prompts"]) > 1
    long = server.ask("/generate", {"prompt": "a bar " * 50, "format": "json"})
    assert "the model reads 8: the end had no effect" in long.json["note"]


def test_prompts_of_a_file_are_drawn_and_a_damaged_file_is_refused(project: Project) -> None:
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    kept = shutil.copytree(project.result("sample"), project.folder / "kept")
    try:
        (project.folder / "prompts.txt").write_text("a lying bar\n\nein stehender Balken\n")
        project.write_params(params | {"sample": params["sample"] | {"prompts": "prompts.txt"}})
        status, output = project.run("python", "stages/sample.py")
        assert status == 0, output
        assert set(read_table(project.result("sample"))["prompt"]) == {"a lying bar", "ein stehender Balken"}
        (project.folder / "prompts.txt").write_bytes(b"\xff")
        status, output = project.run("python", "stages/sample.py")
        assert status != 0 and "it is not UTF-8" in output
    finally:
        project.write_params(params)
        shutil.rmtree(project.result("sample"))
        shutil.move(kept, project.result("sample"))


def test_generate_draws_prompts_in_turn_and_records_them(project: Project) -> None:
    (project.folder / "two.txt").write_text("a lying bar\nan upright bar\n")
    arguments = ["--per-class", "3", "--version", "1"]
    status, output = project.run("sfd", "generate", "drawn", *arguments, "--prompts", "two.txt")
    assert status == 0, output
    table = pd.read_parquet(project.folder / "drawn" / "samples.parquet")
    assert table["prompt"].tolist() == ["a lying bar", "an upright bar", "a lying bar"]
    status, output = project.run("sfd", "generate", "drawn", *arguments)
    assert status != 0 and "made by another command" in output
