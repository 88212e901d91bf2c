"""Quality checks: what is too poor stops its stage, its work is kept, and it goes on as accepted or with another limit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from changed_params import changed
from support import REPOSITORY, Project, draw_images, small_params

from sfd.errors import UserError
from sfd.params import QualityParams, parse_params
from sfd.pipeline.inputs import STAGES, stage_fingerprint
from sfd.pipeline.quality import CHECKS, accept, check_quality, count_images, stopped
from sfd.pipeline.stage import stage
from sfd.workspace import Workspace

HERE = Workspace(Path())
GOOD: dict[str, dict[str, float]] = {
    "prepare": {"smallest_class": 10, "compared_images": 200, "needed_images": 200},
    "encoder": {"heldout_accuracy": 0.61, "classes": 2},
    "texture_vae": {"psnr": 24.5, "linear_psnr": 24.5, "ssim": 0.8, "linear_ssim": 0.8},
    "text": {"heldout_retrieval": 0.04, "chance": 0.01},
    "semantic": {"explained_variance": 0.2},
    "judge": {"heldout_accuracy": 0.38, "classes": 10},
}
POOR: dict[str, tuple[dict[str, float], str]] = {
    "images_per_class": ({"smallest_class": 9}, "smallest class has 9 training images"),
    "scored_images": ({"compared_images": 199}, "199 images can be compared, and evaluate.min_images asks for 200"),
    "encoder_accuracy": ({"heldout_accuracy": 0.59}, "held-out accuracy is 0.590 in 2 classes"),
    "psnr_gain": ({"psnr": 15.2}, "PSNR is 15.20 dB, and that of the linear yardstick 24.50 dB"),
    "ssim_gain": ({"ssim": 0.7}, "SSIM is 0.700, and that of the linear yardstick 0.800"),
    "text_retrieval": (
        {"heldout_retrieval": 0.02},
        "0.020 of the held-out images find their caption first, and 0.010 by chance",
    ),
    "explained_variance": ({"explained_variance": 0.1}, "keep 0.100 of the features' variance"),
    "judge_accuracy": ({"heldout_accuracy": 0.1}, "held-out accuracy is 0.100 in 10 classes"),
}
"""By option: values below its default limit (`ssim_gain`: below 0), and what is said of them."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder with the default parameters, as the current folder, and results that stages may read."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for name in ("prepare", "features"):
        HERE.result(name).mkdir(parents=True)
        (HERE.result(name) / "fingerprint.json").write_text('{"fingerprint": "x"}')
    images = tmp_path / "results/scan/listing.json"
    images.parent.mkdir()
    images.write_text("{}")
    yield tmp_path


def set_option(key: str, value: Any) -> None:
    *sections, name = key.split(".")
    tree = yaml.safe_load(Path("params.yaml").read_text())
    node = tree
    for section in sections:
        node = node[int(section)] if isinstance(node, list) else node[section]
    node[name] = value
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def run(name: str, values: dict[str, float]) -> bool:
    """A stage that does its work once, and ends with the check; returns whether it had the work already."""
    with stage(name) as current:
        had = (current.work / "checkpoint.pt").is_file()
        (current.work / "checkpoint.pt").write_text("trained")
        (current.out / "model.txt").write_text("trained")
        check_quality(current, values)
    return had


def stops(name: str, values: dict[str, float], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of a stage that stops at a check."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        run(name, values)
    assert ending.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def stage_of(option: str) -> str:
    return next(name for name, checks in CHECKS.items() if any(check.option == option for check in checks))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", list(CHECKS))
def test_a_result_at_its_limits_is_published(name: str) -> None:
    run(name, GOOD[name])
    assert (HERE.result(name) / "model.txt").is_file() and not HERE.work(name).exists()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("option", list(POOR))
def test_a_poor_result_stops_its_stage_with_a_line_that_says_how_to_go_on_and_null_is_no_check(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, (poor, said) = stage_of(option), POOR[option]
    if option == "ssim_gain":
        set_option("quality.ssim_gain", 0.0)
    line = stops(name, GOOD[name] | poor, capsys)
    assert line.startswith(f"error: {name}: ") and said in line and f"quality.{option}" in line
    assert f"`sfd accept {name}`" in line and "kept" in line
    assert not (HERE.result(name) / "model.txt").exists()
    set_option(f"quality.{option}", None)
    assert run(name, GOOD[name] | poor), "the work that was done is not done again"
    assert (HERE.result(name) / "model.txt").is_file()


def test_every_limit_has_a_check_and_is_tested() -> None:
    options = [check.option for checks in CHECKS.values() for check in checks]
    assert sorted(options) == sorted(QualityParams.model_fields) == sorted(POOR)


@pytest.mark.usefixtures("project")
def test_accepted_work_is_published_without_doing_it_again_and_other_work_is_checked_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    poor = {"heldout_accuracy": 0.1, "classes": 10}
    assert stopped(HERE, "judge") is None
    stops("judge", poor, capsys)
    assert "accuracy is 0.100" in (stopped(HERE, "judge") or "")
    assert "judge: accepted, although the held-out accuracy is 0.100" in accept(HERE, "judge")
    assert stopped(HERE, "judge") is None
    assert run("judge", poor)
    assert "judge: goes on as accepted, although" in capsys.readouterr().err
    set_option("judges.0.channels", [8, 8, 8, 8])
    stops("judge", poor, capsys)
    accept(HERE, "judge")
    set_option("judges.0.channels", [8, 8, 8, 16])
    stops("judge", poor, capsys)


@pytest.mark.usefixtures("project")
def test_a_longer_training_is_not_accepted_with_the_shorter_one(capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["judges"][0]["training"]["decay"] = "constant"
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    poor = {"heldout_accuracy": 0.1, "classes": 10}
    stops("judge", poor, capsys)
    accept(HERE, "judge")
    tree["judges"][0]["training"]["num_steps"] += 100
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    stops("judge", poor, capsys)


@pytest.mark.usefixtures("project")
def test_nothing_is_accepted_that_did_not_stop() -> None:
    with pytest.raises(UserError, match="stage `judge` did not stop at a quality check"):
        accept(HERE, "judge")
    with pytest.raises(UserError, match="stage `sample` has no quality check; these have one: prepare, encoder"):
        accept(HERE, "sample")


@pytest.mark.usefixtures("project")
def test_limits_are_seen_by_no_fingerprint_and_not_by_dvc() -> None:
    assert not any(key.startswith("quality") for inputs in STAGES.values() for key in inputs.params)
    assert "quality" not in (REPOSITORY / "dvc.yaml").read_text()
    before = stage_fingerprint(HERE, "judge", HERE.load_params())
    set_option("quality.judge_accuracy", 0.9)
    assert stage_fingerprint(HERE, "judge", HERE.load_params()) == before


def manifest(train: list[int], heldout: list[int]) -> pd.DataFrame:
    """A manifest with so many images of each class."""
    splits = {"train": train, "heldout": heldout}
    rows = [(label, split) for split, counts in splits.items() for label, n in enumerate(counts) for _ in range(n)]
    return pd.DataFrame(rows, columns=["class_index", "split"])


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({}, 61),
        ({"sample.class_mix": "natural"}, 300),
        ({"sample.class_mix": "natural", "sample.num_images": 100}, 100),
        (
            {
                "diffusion.model.condition": "none",
                "diffusion.model.class_dropout": 0.0,
                "sample.guidance": {"kind": "none"},
                "register.gates": {},
            },
            300,
        ),
    ],
)
def test_the_images_that_can_be_compared_are_known_before_anything_is_trained(
    changes: dict[str, Any], compared: int
) -> None:
    params = parse_params(changed({"sample.num_images": 400} | changes))
    found = count_images(params, manifest([810, 90], [270, 30]))
    assert found == {"smallest_class": 90, "compared_images": compared, "needed_images": 200}


@pytest.mark.long
def test_dvc_goes_on_from_the_finished_training_after_it_was_accepted_and_stops_one_that_is_not(tmp_path: Path) -> None:
    params = small_params()
    params["data"] |= {"source": "folder", "root": "images"}
    params["quality"]["judge_accuracy"] = 1.0
    (tmp_path / "project").mkdir()
    made = Project(tmp_path / "project", params)
    draw_images(made.folder / "images/quer", 12, 1, vertical=False)
    draw_images(made.folder / "images/hoch", 12, 2, vertical=True)
    status, output = made.run("dvc", "repro", "judge")
    assert status != 0 and "quality.judge_accuracy" in output and "`sfd accept judge`" in output
    checkpoint = made.folder / ".sfd/finished/judge/digits_judge/checkpoint.pt"
    trained = checkpoint.stat().st_ino
    status, output = made.run("sfd", "accept", "judge")
    assert status == 0 and "judge: accepted" in output
    output = made.repro("judge")
    assert "goes on as accepted" in output and checkpoint.stat().st_ino == trained
    measured = json.loads((made.result("judge") / "quality.json").read_text())["digits_judge"]
    assert measured["classes"] == 2 and 0.0 <= measured["heldout_accuracy"] < 1.0
    params["quality"]["judge_accuracy"] = 0.5
    made.write_params(params)
    assert "Running stage 'judge'" not in made.repro("judge")
