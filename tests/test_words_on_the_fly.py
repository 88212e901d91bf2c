"""A project whose captions are encoded in its trainings (`text.store_tokens: false`), beside one with stored tokens."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from captioned import captioned_params, captioned_project
from safetensors.torch import load_file
from support import Project, run_stages

from sfd.names import HELDOUT

pytestmark = pytest.mark.long
TRAINED = ("text", "schedule", "diffusion")


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Project]]:
    """A learnt schedule and a model, trained with stored tokens, and without."""
    params = captioned_params()
    params["text"]["training"] |= {"num_steps": 10, "batch_size": 16}
    params["schedule"] |= {"kind": "learnt", "learnt": {"probe_steps": 6}}
    params["diffusion"]["loss"]["timestep_sampling"] = "per_part"
    params["diffusion"]["training"]["decay"] = "constant"  # so that a longer training goes on
    folder = tmp_path_factory.mktemp("on the fly")
    stored = captioned_project(tmp_path_factory).copy_to(folder / "stored")
    stored.write_params(params)
    read = stored.copy_to(folder / "read")
    params["text"]["store_tokens"] = False
    read.write_params(params)
    for project in (stored, read):
        run_stages(project, *TRAINED)
    yield stored, read


def test_the_stage_leaves_the_same_encoder_and_captions_in_place_of_tokens(projects: tuple[Project, Project]) -> None:
    stored, read = (project.result("text") for project in projects)
    same = ("model/model.safetensors", "model/config.json", "null.safetensors", "curves.csv", "captions.png")
    for name in same:
        assert (stored / name).read_bytes() == (read / name).read_bytes(), name
    assert not (read / "shards").exists() and not (read / HELDOUT).exists()
    for name, taken in (("captions", "shards"), ("captions-heldout", HELDOUT)):
        one, other = (json.loads((folder / "index.json").read_text()) for folder in (stored / taken, read / name))
        assert one.pop("shards") and other.pop("shards") and one == other
        sizes = [
            sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            for folder in (stored / taken, read / name)
        ]
        assert sizes[1] < sizes[0]
    qualities = [json.loads((folder / "quality.json").read_text()) for folder in (stored, read)]
    assert qualities[1] == pytest.approx(qualities[0], abs=1e-6)


def test_schedule_and_model_are_those_of_stored_tokens_up_to_rounding(projects: tuple[Project, Project]) -> None:
    stored, read = projects
    knots = [
        json.loads((each.result("schedule") / "schedule.json").read_text())["schedule"]["knots"] for each in projects
    ]
    assert knots[1] == pytest.approx(knots[0], abs=1e-4)
    curves = [pd.read_csv(each.result("diffusion") / "curves.csv") for each in projects]
    assert any(name.startswith("heldout") for name in curves[0])
    pd.testing.assert_frame_equal(curves[0], curves[1], rtol=1e-3, atol=1e-4)
    one, other = (load_file(each.result("diffusion") / "model/model.safetensors") for each in (stored, read))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-3)


def test_a_longer_training_goes_on_and_ends_with_the_bytes_of_one_that_never_stopped(
    projects: tuple[Project, Project], tmp_path: Path
) -> None:
    read = projects[1].copy_to(tmp_path / "longer")
    params = yaml.safe_load((read.folder / "params.yaml").read_text())
    params["diffusion"]["training"]["num_steps"] += 3
    read.write_params(params)
    whole = read.copy_to(tmp_path / "whole")
    for folder in ("results/diffusion", ".sfd/work/diffusion", ".sfd/finished"):
        shutil.rmtree(whole.folder / folder, ignore_errors=True)
    assert "goes on after step 4 of the finished training" in run_stages(read, "diffusion")
    assert "goes on" not in run_stages(whole, "diffusion")
    one, other = (each.result("diffusion") / "model/model.safetensors" for each in (read, whole))
    assert one.read_bytes() == other.read_bytes()
