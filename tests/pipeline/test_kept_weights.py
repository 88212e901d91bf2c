"""Weights that are kept on the way: whole models, the same however often training is interrupted, drawn from, scored, started from."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from changed_params import refusal
from support import Project, finished_project, run_stages
from typer.testing import CliRunner

from sfd import cli
from sfd.data.latents import LatentDataset
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.params import check_study, parse_params
from sfd.pipeline.diffusion import KeptWeights, make_diffusion
from sfd.pipeline.evaluate import evaluate
from sfd.pipeline.evaluate_steps import evaluate_steps
from sfd.pipeline.sample import make_samples
from sfd.pipeline.stage import stage
from sfd.registry.load import load_registered
from sfd.registry.versions import find_registered, read_registration
from sfd.workspace import Workspace

pytestmark = pytest.mark.long


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    copied = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    with copied.entered():
        yield copied


def change(project: Project, sections: dict[str, dict[str, Any]]) -> None:
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    tree["diffusion"]["training"] |= sections.get("training", {})
    tree["sample"] |= sections.get("sample", {})
    tree["runtime"]["diffusion"] |= sections.get("runtime", {})
    project.write_params(tree)


def train(project: Project, **training: Any) -> dict[str, bytes]:
    """Stage `diffusion` with other options; the weights and pictures that it leaves, but not what says when."""
    change(project, {"training": {"decay": "constant"} | training, "runtime": {"grid_every": 2, "checkpoint_every": 1}})
    shutil.rmtree(project.result("diffusion"), ignore_errors=True)
    with stage("diffusion") as s:
        make_diffusion(s)
    result = project.result("diffusion")
    found = {str(file.relative_to(result)): file.read_bytes() for file in sorted(result.rglob("*")) if file.is_file()}
    del found["fingerprint.json"]
    return found


def test_weights_are_kept_the_same_through_a_kill_and_a_continuation(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = KeptWeights.__call__

    def killed_at_4(self: KeptWeights, averaged: torch.nn.Module, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        write(self, averaged, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KeptWeights, "__call__", killed_at_4)
        train(project, num_steps=5, keep_every=2)
    assert (project.folder / "results/preview.png").is_file(), "the newest grid can be seen while training is under way"
    first = train(project, num_steps=5, keep_every=2)
    assert not (project.folder / "results/preview.png").exists()
    assert [name for name in first if name.startswith("steps/") and name.endswith("model.safetensors")] == [
        "steps/step-0000002/model.safetensors",
        "steps/step-0000004/model.safetensors",
    ]
    longer = train(project, num_steps=8, keep_every=2)
    shutil.rmtree(".sfd/finished/diffusion")
    at_once = train(project, num_steps=8, keep_every=2)
    assert longer == at_once and Workspace.find().kept_steps() == [2, 4, 6, 8]
    assert at_once["steps/step-0000008/model.safetensors"] == at_once["model/model.safetensors"]
    assert at_once["steps/step-0000004/model.safetensors"] == first["steps/step-0000004/model.safetensors"]


def test_the_loss_on_held_out_images_stands_beside_the_losses_and_changes_no_weights(project: Project) -> None:
    with_it = train(project, num_steps=5)
    rows = list(csv.DictReader(io.StringIO(with_it["curves.csv"].decode())))
    assert [row["step"] for row in rows if row["heldout_total"]] == ["2", "4"]
    terms = [name for name in rows[0] if name not in ("step",) and not name.startswith("heldout_")]
    assert [f"heldout_{name}" for name in terms] == [name for name in rows[0] if name.startswith("heldout_")]
    heldout = LatentDataset(project.result("latents") / "heldout", with_features=True)
    prepared = json.loads((project.result("prepare") / "summary.json").read_text())
    assert len(heldout) == prepared["num_heldout"] and heldout.index.num_views == 1
    shutil.rmtree(".sfd/finished/diffusion")
    change(project, {"runtime": {"heldout_every": None}})
    without = train(project, num_steps=5)
    assert "heldout" not in without["curves.csv"].decode()
    assert with_it["model/model.safetensors"] == without["model/model.safetensors"]


def test_a_kept_step_is_drawn_from_and_scored_and_all_of_them_make_a_curve(project: Project) -> None:
    train(project, num_steps=4, keep_every=2)
    early = DiffusionModel.load(Workspace.find().model(2)).network.state_dict()
    late = DiffusionModel.load(Workspace.find().model()).network.state_dict()
    assert not all(torch.equal(early[name], late[name]) for name in early)
    scores: dict[int | None, dict[str, float]] = {}
    images: dict[int | None, bytes] = {}
    for step in (2, None):
        change(project, {"sample": {"step": step}})
        for name, body in (("sample", make_samples), ("evaluate", evaluate)):
            with stage(name) as s:
                body(s)
        scores[step] = json.loads((project.result("evaluate") / "metrics.json").read_text())
        images[step] = (project.result("sample") / "images" / "000003.png").read_bytes()
    assert images[2] != images[None]
    answer = CliRunner().invoke(cli.app, ["evaluate-steps"])
    assert answer.exit_code == 0, answer.output
    folder = project.result("evaluate_steps")
    found = {step: json.loads((folder / "metrics" / f"step-000000{step}.json").read_text()) for step in (2, 4)}
    assert found == {2: scores[2], 4: scores[None]}
    rows = (folder / "curve.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("step,") and rows[1].startswith("2,") and rows[2].startswith("4,")
    assert (folder / "curve.png").is_file() and len(answer.output.splitlines()) == 5
    assert "weights after 2, 4 steps" in CliRunner().invoke(cli.app, ["show"]).output


def test_several_averages_are_kept_at_every_step_scored_and_the_best_one_is_sampled_by_option(project: Project) -> None:
    one = train(project, num_steps=4, keep_every=2)
    shutil.rmtree(".sfd/finished/diffusion")
    both = train(project, num_steps=4, keep_every=2, more_ema_decays=[0.0])
    assert {name: both[name] for name in one} == one, "a further average changes nothing else"
    place = "averages/ema-0.0"
    assert both[f"{place}/steps/step-0000004/model.safetensors"] == both[f"{place}/model/model.safetensors"]
    assert both[f"{place}/model/model.safetensors"] != both["model/model.safetensors"]
    change(project, {"training": {"num_steps": 6}})
    longer = train(project, num_steps=6, keep_every=2, more_ema_decays=[0.0])
    assert (
        longer[f"{place}/steps/step-0000002/model.safetensors"] == both[f"{place}/steps/step-0000002/model.safetensors"]
    )
    answer = CliRunner().invoke(cli.app, ["evaluate-steps", "--metric", "kid"])
    assert answer.exit_code == 0, answer.output
    rows = list(csv.DictReader((project.result("evaluate_steps") / "curve.csv").open(encoding="utf-8")))
    assert [(row["step"], row["ema_decay"]) for row in rows] == [
        (step, decay) for decay in ("0.998", "0.0") for step in ("2", "4", "6")
    ]
    best = min(rows, key=lambda row: float(row["kid"]))
    answer = CliRunner().invoke(cli.app, ["evaluate-steps", "--apply", "--metric", "kid"])
    assert answer.exit_code == 0, answer.output
    sample = Workspace.find().load_params().sample
    assert (sample.step, sample.ema_decay) == (int(best["step"]), {"0.998": None, "0.0": 0.0}[best["ema_decay"]])

    for decay in (0.0, 0.998):
        change(project, {"sample": {"step": 4, "ema_decay": decay}})
        for name, body in (("sample", make_samples), ("evaluate", evaluate)):
            with stage(name) as s:
                body(s)
        scores = json.loads((project.result("evaluate") / "metrics.json").read_text())
        found = next(row for row in rows if (row["step"], float(row["ema_decay"])) == ("4", decay))
        assert scores["fd_digits_judge"] == float(found["fd_digits_judge"])


def test_the_version_that_is_registered_holds_the_weights_that_were_scored(project: Project) -> None:
    train(project, num_steps=4, keep_every=2)
    change(project, {"sample": {"step": 2}})
    run_stages(project, "scan", "sample", "evaluate", "register")
    workspace = Workspace.find()
    registration = read_registration(workspace)
    assert registration is not None
    version = find_registered(workspace, registration)
    assert version is not None
    found = load_registered(workspace, version.name, version.version).images.model.network.state_dict()
    kept = DiffusionModel.load(workspace.model(2)).network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in kept.items())


def test_without_kept_weights_there_is_no_curve_and_the_line_names_the_option(project: Project) -> None:
    train(project, num_steps=4)
    with pytest.raises(UserError, match="keep_every"):
        evaluate_steps(Workspace.find())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample.step": 800}, "diffusion.training.keep_every is null"),
        ({"sample.step": 900, "diffusion.training.keep_every": 800}, "sample.step 900 is not kept"),
        ({"sample.step": 4000, "diffusion.training.keep_every": 800}, "up to 3200"),
        ({"diffusion.training.keep_every": 4000}, "nothing would be kept"),
        ({"sample.ema_decay": 0.9}, "keeps the averages of [0.998]"),
        ({"diffusion.training.more_ema_decays": [0.99, 0.998]}, "repeat ema_decay 0.998"),
        ({"diffusion.training.more_ema_decays": [0.99, 0.99]}, "one another"),
        ({"diffusion.training.more_ema_decays": [1.0]}, "less than 1"),
        (
            {"diffusion.source": "file", "diffusion.file": "w", "sample.ema_decay": 0.998},
            "set sample.ema_decay to null",
        ),
        ({"diffusion.init_from": "results/diffusion/steps/step-0000800"}, "copy the model to another folder"),
    ],
)
def test_a_step_that_will_not_be_there_is_refused_before_anything_runs(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(changes)


def test_a_study_of_trainings_draws_from_no_kept_step() -> None:
    tree = yaml.safe_load(Path(__file__).parents[2].joinpath("params.yaml").read_text())
    tree["diffusion"]["training"]["keep_every"] = 800
    tree["sample"]["step"] = 800
    check_study(parse_params(tree))
    tree["tune"] |= {"kind": "training", "space": {"diffusion.loss.time_mean": {"low": 0.0, "high": 1.0}}}
    with pytest.raises(UserError, match="kind `training` are scored after all of their steps"):
        check_study(parse_params(tree))
    tree["sample"]["step"] = None
    tree["diffusion"]["training"]["more_ema_decays"] = [0.99]
    tree["sample"]["ema_decay"] = 0.998
    check_study(parse_params(tree))
    tree["sample"]["ema_decay"] = 0.99
    with pytest.raises(UserError, match="kind `training` keep the average of diffusion.training.ema_decay alone"):
        check_study(parse_params(tree))
