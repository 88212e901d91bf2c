"""Training on from a registered model, as a user does it: parameters, stages, DVC, and an alias that moves."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from support import IN_ONE_PROCESS, Project, finished_project, small_params

from sfd.errors import UserError
from sfd.registry.source import open_source, write_init_from
from sfd.workspace import Workspace

pytestmark = pytest.mark.long
RACERS = """
import importlib, sys, threading
from sfd.tracking import import_mlflow

def run(module, name):
    import_mlflow()
    getattr(importlib.import_module(module), name)
    sys.stdout.write("whole\\n")  # one write, unlike print: threads do not come between a word and its line end

names = [("mlflow.entities", "Run"), ("mlflow.artifacts", "download_artifacts"), ("mlflow", "MlflowClient")]
threads = [threading.Thread(target=run, args=each) for each in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
CHAMPION = "models:/sfd-digits@champion"


def params_with(**changes: Any) -> dict[str, Any]:
    tree = small_params()
    tree["data"] |= {"source": "folder", "root": "images", "mirror": True}
    tree["diffusion"] |= {"init_from": CHAMPION} | changes
    tree["diffusion"]["training"]["warmup_steps"] = 1
    return tree


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("source") / "project")


@pytest.fixture
def here(project: Project) -> Iterator[Project]:
    with project.entered():
        yield project


def train(project: Project, **changes: Any) -> tuple[int, str]:
    project.write_params(params_with(**changes))
    return project.run("python", "-c", IN_ONE_PROCESS, "scan", "diffusion")


def test_a_moved_alias_trains_again_and_one_that_stays_does_not(here: Project) -> None:
    status, output = train(here)
    assert status == 0, output
    assert (
        f"diffusion: starts from {CHAMPION}, version 1\n" in output
        and "diffusion: copied: pos_embed (1 tensor)" in output
    )
    said = [line.removeprefix("diffusion: ") for line in output.splitlines() if line.startswith("diffusion: ")]
    assert (here.result("diffusion") / "start.txt").read_text().splitlines() == said[:-1]
    assert said[-1] == "the newest sample grid is results/preview.png"
    registry = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (experiment,) = registry.search_experiments(filter_string="name = 'sfd'")
    newest = registry.search_runs([experiment.experiment_id], "attributes.run_name = 'diffusion'", max_results=1)[0]
    assert newest.data.metrics["trainable_parameters"] > 0
    assert newest.data.tags["sfd.init_from"] == f"{CHAMPION}, version 1"
    assert {"start.txt", "start.json"} <= {file.path for file in registry.list_artifacts(newest.info.run_id)}

    assert here.run("dvc", "commit", "-f", "diffusion")[0] == 0
    again = here.repro("-s", "scan", "diffusion")
    assert "Stage 'diffusion' didn't change, skipping" in again
    first = registry.get_model_version("sfd-digits", "1")
    made = registry.create_model_version("sfd-digits", first.source, first.run_id)
    registry.set_registered_model_alias("sfd-digits", "champion", made.version)
    assert "Running stage 'diffusion'" in here.repro("-s", "scan", "diffusion")
    assert json.loads((here.result("scan") / "init_from.json").read_text())["version"] == str(made.version)


def test_adapters_and_decoded_features_leave_a_model_that_samples(project: Project) -> None:
    tree = params_with(lora={"rank": 2, "alpha": 4}, init_from="models:/sfd-digits/1")
    tree["diffusion"]["loss"]["repa_target"] = "decoded"
    project.write_params(tree)
    status, output = project.run("python", "-c", IN_ONE_PROCESS, "scan", "diffusion", "sample")
    assert status == 0, output
    trained = next(line for line in output.splitlines() if line.startswith("diffusion: trained:"))
    number, total = (int(word.replace(",", "")) for word in trained.split() if word[0].isdigit())
    assert number < total / 4
    assert (project.result("sample") / "samples.csv").is_file()
    curve = (project.result("diffusion") / "curves.csv").read_text()
    assert "repa" in curve.splitlines()[0]


def test_a_folder_that_holds_no_model_is_one_line(project: Project) -> None:
    (project.folder / "empty").mkdir(exist_ok=True)
    status, output = train(project, init_from="empty")
    assert status == 2 and output.endswith("rerun the stage that makes it, or correct the path\n")
    assert "error: diffusion: empty holds no network: config.json is missing" in output


def test_mlflow_is_imported_whole_while_the_delivery_imports_it_too() -> None:
    done = subprocess.run([sys.executable, "-c", RACERS], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["whole"] * 3, "")


def test_an_address_without_a_model_and_a_folder_that_does_not_exist_are_refused(here: Project) -> None:
    elsewhere = Workspace(here.folder / "elsewhere")
    for address, said in (
        ("models:/sfd-digits@nobody", "there is no alias `nobody` of model `sfd-digits`"),
        ("models:/sfd-digits/77", "there is no version 77 of model `sfd-digits`"),
        ("nowhere", "nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            write_init_from(elsewhere, address)
    assert not elsewhere.init_from.exists()


def test_nothing_to_start_from_is_written_down_as_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_init_from(workspace, None)
    assert json.loads(workspace.init_from.read_text()) == {"init_from": None}
    with open_source(workspace, None) as folder:
        assert folder is None
