"""Options that need less training, through the real stages: Muon and iREPA together."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import Project, finished_project

from sfd.generation.model import DiffusionModel
from sfd.pipeline.diffusion import SampleGrids, make_diffusion
from sfd.pipeline.sample import make_samples
from sfd.pipeline.stage import stage

pytestmark = pytest.mark.long


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    copied = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    with copied.entered():
        yield copied


def change(project: Project, **diffusion: Any) -> None:
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    tree["diffusion"]["loss"] |= {"repa_projector": "conv", "repa_target_norm": "tokens"}
    tree["diffusion"]["training"] |= {"optimizer": "muon", "num_steps": 5, "warmup_steps": 2}
    tree["diffusion"] |= diffusion
    tree["runtime"]["diffusion"] |= {"grid_every": 2, "checkpoint_every": 1}
    project.write_params(tree)


def train(project: Project, source: Path | None = None) -> bytes:
    """The weights that stage `diffusion` leaves."""
    shutil.rmtree(project.result("diffusion"), ignore_errors=True)
    with stage("diffusion") as s:
        make_diffusion(s, source)
    return (project.result("diffusion") / "model/model.safetensors").read_bytes()


def test_a_model_trained_with_muon_and_irepa_is_the_same_after_a_kill_and_is_drawn_from(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(project)
    draw = SampleGrids.__call__

    def killed_at_4(self: SampleGrids, network: torch.nn.Module, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        draw(self, network, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleGrids, "__call__", killed_at_4)
        train(project)
    continued = train(project)
    said = capsys.readouterr().err
    assert "plans at least 80,000 for size tiny" in said, "the run is far too short for any picture, and says so"
    shutil.rmtree(project.folder / ".sfd")
    assert train(project) == continued
    config = json.loads((project.result("diffusion") / "model/config.json").read_text())
    assert config["model"]["repa_projector"] == "conv"
    with stage("sample") as s:
        make_samples(s)
    assert len(list(project.result("sample").rglob("*.png"))) > 0


def test_fine_tuning_with_the_convolution_says_that_the_projector_is_new_and_copies_the_rest(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    source = project.folder / "source"
    shutil.copytree(project.result("diffusion") / "model", source)
    change(project, init_from="source")
    train(project, source)
    assert "plans at least" not in capsys.readouterr().err, "a short training is what fine-tuning is for"
    report = (project.result("diffusion") / "start.txt").read_text()
    assert "re-initialised: repa_projector (2 tensors)" in report and "unused: repa_projector (6 tensors)" in report
    tuned = DiffusionModel.load(project.result("diffusion") / "model").network
    assert hasattr(tuned.repa_projector, "proj")
