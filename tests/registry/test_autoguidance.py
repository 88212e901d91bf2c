"""A model that a less trained one guides: the version carries both, and draws what stage `sample` drew."""

import io
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from served import running
from support import IN_ONE_PROCESS, Project, finished_project

from sfd.generation.model import DiffusionModel
from sfd.registry.load import load_registered
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

WEAK = "results/diffusion/steps/step-0000002"


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A finished project whose sampling a kept step is to guide."""
    copied = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    tree = yaml.safe_load((copied.folder / "params.yaml").read_text())
    tree["diffusion"]["training"]["keep_every"] = 2
    tree["sample"]["guidance"] |= {"kind": "autoguidance", "weak_model": WEAK, "scale_texture": 2.0}
    copied.write_params(tree)
    with copied.entered():
        yield copied


def run(project: Project, *stages: str) -> tuple[int, str]:
    return project.run("python", "-c", IN_ONE_PROCESS, *stages)


def pixels(content: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_registered_version_carries_the_weak_model_and_draws_the_samples_by_pyfunc_and_over_http(
    project: Project,
) -> None:
    status, output = run(project, "scan", "diffusion", "sample", "evaluate", "register")
    assert status == 0, output
    samples = project.result("sample")
    table = pd.read_csv(samples / "samples.csv", dtype={"class": str})
    drawn = [(samples / "images" / file).read_bytes() for file in table["file"]]
    loaded = load_registered(Workspace.find(), "sfd-digits", "candidate")
    kept = DiffusionModel.load(project.folder / WEAK).network.state_dict()
    assert loaded.images.weak is not None
    assert all(torch.equal(value, kept[name]) for name, value in loaded.images.weak.state_dict().items())
    (project.folder / WEAK).rename(project.folder / "elsewhere")  # the version has its own copy

    mlflow.set_tracking_uri(f"sqlite:///{project.folder}/mlruns/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/sfd-digits@candidate")
    answer = model.predict(table.rename(columns={"class": "label"})[["label", "seed"]])
    assert [(pixels(mine) == pixels(theirs)).all() for mine, theirs in zip(answer["png"], drawn, strict=True)] == [
        True
    ] * len(drawn)
    with running(loaded) as server:
        for number in (0, 5):
            row = table.iloc[number]
            found = server.ask("/generate", {"class": row["class"], "seed": int(row["seed"])})
            assert found.status == 200, found.text
            difference = pixels(found.content).astype(int) - pixels(drawn[number]).astype(int)
            assert np.abs(difference).max() <= 1, "one grey level is the rounding between shapes of batches"


def test_a_version_is_not_made_with_another_weak_model_than_the_samples_were_drawn_with(project: Project) -> None:
    status, output = run(project, "scan", "diffusion", "sample", "evaluate")
    assert status == 0, output
    weak = project.folder / WEAK / "config.json"
    weak.write_text(weak.read_text() + "\n")
    status, output = run(project, "register")
    assert status == 2 and "run `dvc repro -f -s sample`" in output and "Traceback" not in output
    status, output = run(project, "sample", "evaluate", "register")
    assert status == 0, output
