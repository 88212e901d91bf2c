"""A model that is told nothing about an image: from the latents to the registry, and wherever a registered model is asked for images."""

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
from PIL import Image
from served import Running, running
from support import IN_ONE_PROCESS, Project, finished_project
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.generation.generated import read_table
from sfd.params import parse_params
from sfd.registry.load import load_registered
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

HERE = Workspace(Path())


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The finished project with condition `none`: the stages that read this option run again, in one process, with a store of their own."""
    made = finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("no condition") / "project")
    params = yaml.safe_load((made.folder / "params.yaml").read_text())
    params["diffusion"]["model"] |= {"condition": "none", "class_dropout": 0.0}
    params["sample"]["guidance"] = {"kind": "none"}
    del params["register"]["gates"]["class_accuracy"]
    made.write_params(params)
    shutil.rmtree(made.folder / "mlruns")
    status, output = made.run(
        "python", "-c", IN_ONE_PROCESS, "schedule", "diffusion", "sample", "reference", "evaluate", "register"
    )
    assert status == 0, output
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


def run(*arguments: str) -> str:
    """A command in this process; returns what it prints."""
    made = CliRunner().invoke(cli.app, list(arguments))
    if made.exception is not None:
        raise made.exception
    return made.output


def pixels(png: bytes | Path) -> Any:
    return np.asarray(Image.open(io.BytesIO(png) if isinstance(png, bytes) else png), dtype=int)


def test_samples_have_no_class_and_their_accuracy_is_not_measured(project: Project) -> None:
    table = pd.read_csv(project.result("sample") / "samples.csv")
    assert list(table) == ["file", "seed"] and len(table) == 12
    metrics = json.loads((project.result("evaluate") / "metrics.json").read_text())
    assert not {"class_accuracy", "se_class_accuracy"} & set(metrics)
    assert {"class_accuracy_heldout", "fd_digits_judge", "se_fd_digits_judge", "memorised_fraction"} <= set(metrics)


def test_the_registered_model_takes_seeds_alone_and_gives_the_samples_again(project: Project, model: Any) -> None:
    table = pd.read_csv(project.result("sample") / "samples.csv")
    answer = model.predict(table[["seed"]])
    for file, png in zip(table["file"], answer["png"], strict=True):
        difference = np.abs(pixels(png) - pixels(project.result("sample") / "images" / file))
        assert difference.max() <= 1, "one grey level is the rounding allowed"
    with pytest.raises(mlflow.MlflowException, match="draws images without a class; leave the class out"):
        model.predict(pd.DataFrame({"label": ["quer"], "seed": [1]}))
    with pytest.raises(mlflow.MlflowException, match="guidance cannot be chosen"):
        model.predict(pd.DataFrame({"seed": [1]}), params={"scale_texture": 2.0})


def test_generated_images_lie_in_one_folder_and_no_confidence_can_be_asked_for() -> None:
    assert "3 images by sfd-digits version 1: plain" in run("generate", "plain", "--per-class", "3", "--version", "1")
    table = read_table(Path("plain"))
    assert table["file"].tolist() == [f"images/{number:06d}.png" for number in range(3)]
    assert table["confidence"].isna().all() and (table["nearest_distance"] > 0.0).all()
    assert sorted(Path("plain/images").iterdir()) == [Path("plain") / file for file in table["file"]]
    with pytest.raises(UserError, match="the model has no classes; leave the option out"):
        run("generate", "sure", "--per-class", "3", "--version", "1", "--min-confidence", "0.5")
    assert not Path("sure").exists()


def test_samples_are_audited_with_an_attack_on_the_model() -> None:
    run("audit", "results/sample")
    facts = json.loads(Path("results/audit/audit.json").read_text())
    assert facts["membership"]["model"].endswith("which made these samples.")
    near = facts["nearest"]["fraction"]
    assert near == json.loads(Path("results/evaluate/metrics.json").read_text())["memorised_fraction"]


def test_a_request_over_http_needs_no_class_and_one_that_has_a_class_is_refused_in_words(
    server: Running, model: Any
) -> None:
    answer = server.ask("/generate", {"seed": 3})
    assert answer.status == 200 and "X-SFD-Class" not in answer.headers
    (expected,) = model.predict(pd.DataFrame({"seed": [3]}))["png"]
    assert np.abs(pixels(answer.content) - pixels(expected)).max() <= 1
    listed = server.ask("/generate", {"seed": 3, "count": 2, "format": "json"}).json
    assert set(listed) == {"model", "version", "images"} and len(listed["images"]) == 2
    for wanted in ("quer", 0):
        refused = server.ask("/generate", {"class": wanted})
        assert refused.status == 422 and refused.error.endswith("without a class; leave the class out")
    assert server.ask("/model").json["classes"] is None


def test_the_summary_and_a_study_know_no_classes(project: Project) -> None:
    shown = run("show")
    assert "class_accuracy" not in shown and "fd_digits_judge" in shown
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    study = {"study": "plain", "trials": 1, "repeats": 1, "space": {"sample.num_steps": {"low": 2, "high": 3}}}
    project.write_params(params | {"tune": params["tune"] | study | {"pruner": "none"}})
    status, output = project.run("sfd", "tune")
    project.write_params(params)
    assert status == 0, output
    assert "class_accuracy" not in output


def test_a_gate_on_class_accuracy_is_refused_with_the_parameters(project: Project) -> None:
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["register"]["gates"]["class_accuracy"] = {"limit": 0.5}
    with pytest.raises(UserError, match=r"gates.class_accuracy needs samples of known classes.*remove the gate"):
        parse_params(params)


def test_samples_of_either_mix_are_what_the_model_draws(project: Project) -> None:
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    before = (project.result("sample") / "samples.csv").read_bytes()
    project.write_params(params | {"sample": params["sample"] | {"class_mix": "natural"}})
    status, output = project.run("python", "stages/sample.py")
    project.write_params(params)
    assert status == 0, output
    assert (project.result("sample") / "samples.csv").read_bytes() == before
