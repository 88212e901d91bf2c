"""`sfd sweep` as users run it, on a trained project."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import Project, finished_project
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.params import load_params
from sfd.tuning.scorer import Repeat, SampleScorer
from sfd.tuning.sweep import apply_sweep, sweep
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

SCALES = "sample.guidance.scale_texture+sample.guidance.scale_semantic=1.0,1.25"
ENDS = "sample.guidance.end_texture=0.5,1.0"


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    copied = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    with copied.entered():
        yield copied


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The scale and the end of texture of every setting that is drawn, as it is drawn."""
    found: list[tuple[float, float]] = []
    score = SampleScorer.score

    def noted(self: SampleScorer, *arguments: Any, **options: Any) -> Repeat:
        guidance = arguments[1].sample.guidance
        found.append((guidance.scale_texture, guidance.end_texture))
        return score(self, *arguments, **options)

    monkeypatch.setattr(SampleScorer, "score", noted)
    return found


def rows(project: Project) -> list[dict[str, str]]:
    with (project.result("sweep") / "sweep.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def change(project: Project, section: str, **values: Any) -> None:
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    tree[section] |= values
    project.write_params(tree)


def test_the_setting_of_params_yaml_gets_the_scores_of_stage_evaluate(
    project: Project, drawn: list[tuple[float, float]]
) -> None:
    answer = CliRunner().invoke(cli.app, ["sweep", SCALES])
    assert answer.exit_code == 0, answer.output
    assert "scale_texture + scale_semantic" in answer.output and "sfd sweep --apply" in answer.output
    found = {float(row["sample.guidance.scale_texture"]): row for row in rows(project)}
    evaluated = json.loads((project.result("evaluate") / "metrics.json").read_text())
    assert set(found) == {1.0, 1.25}
    for name in ("fd_digits_judge", "kid", "precision", "recall", "class_accuracy", "is_digits_judge", "num_images"):
        assert float(found[1.25][name]) == pytest.approx(evaluated[name], rel=1e-5), name
    # The averages of four steps hardly feel guidance, so their images may be equal.
    assert [scale for scale, _ in drawn] == [1.0, 1.25]
    assert (project.result("sweep") / "sweep.png").is_file()

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project.folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("sfd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'sweep'")
    history = client.get_metric_history(run.info.run_id, "fd_digits_judge")
    assert [(each.step, each.value) for each in history] == [
        (n, float(row["fd_digits_judge"])) for n, row in enumerate(rows(project))
    ]
    assert {"best.json", "sweep.csv", "sweep.png"} <= {each.path for each in client.list_artifacts(run.info.run_id)}
    assert run.data.params["sweep.sample.guidance.scale_semantic"] == "1.0, 1.25"


def test_a_killed_sweep_goes_on_and_no_setting_is_drawn_twice_for_one_model(
    project: Project, drawn: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        score = SampleScorer.score

        def killed(self: SampleScorer, *arguments: Any, **options: Any) -> Repeat:
            if len(drawn) == 3:
                raise KeyboardInterrupt
            return score(self, *arguments, **options)

        patch.setattr(SampleScorer, "score", killed)
        sweep(Workspace.find(), [SCALES, ENDS])
    assert drawn == [(1.0, 0.5), (1.0, 1.0), (1.25, 0.5)] and not project.result("sweep").exists()
    sweep(Workspace.find(), [SCALES, ENDS])
    assert drawn[3:] == [(1.25, 1.0)]
    first = {row["sample.guidance.end_texture"]: row["fd_digits_judge"] for row in rows(project)[2:]}
    sweep(Workspace.find(), ["sample.guidance.end_texture=1.0,0.5,0.25"])
    assert drawn[4:] == [(1.25, 0.25)], "the model, the judge and two of the settings are as before"
    again = {row["sample.guidance.end_texture"]: row["fd_digits_judge"] for row in rows(project)}
    assert {end: again[end] for end in first} == first and len(again) == 3
    sweep(Workspace.find(), ["sample.guidance.end_texture=1.0"], num_images=8)
    assert len(drawn) == 6, "another number of images is another setting"
    change(project, "evaluate", kid_subsets=3)
    project.run("python", "stages/evaluate.py")
    sweep(Workspace.find(), ["sample.guidance.end_texture=1.0"])
    assert len(drawn) == 7, "and so is another way to score"


def test_the_best_setting_by_any_metric_is_written_into_the_params_file(project: Project) -> None:
    with pytest.raises(UserError, match="no sweep has ended"):
        apply_sweep(Workspace.find())
    command = ["sweep", SCALES, "sample.num_steps=2,3", "sample.sampler=euler,ab2", "--metric", "kid", "--apply"]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 0, answer.output
    best = min(rows(project), key=lambda row: float(row["kid"]))
    sample = load_params(project.folder / "params.yaml").sample
    assert sample.sampler == best["sample.sampler"] and str(sample.num_steps) == best["sample.num_steps"]
    assert sample.guidance.scale_semantic == float(best["sample.guidance.scale_semantic"])
    assert not (project.result("sweep") / "sweep.png").exists(), "three axes have no picture"
    assert "already" in CliRunner().invoke(cli.app, ["sweep", "--apply"]).output
    highest = CliRunner().invoke(cli.app, ["sweep", "sample.num_steps=2,3", "--metric", "precision"])
    assert highest.exit_code == 0, highest.output
    found = json.loads((project.result("sweep") / "best.json").read_text())
    assert found["value"] == max(float(row["precision"]) for row in rows(project))


def test_what_cannot_be_swept_is_refused_before_anything_is_drawn(
    project: Project, drawn: list[tuple[float, float]]
) -> None:
    here = Workspace.find()
    with pytest.raises(UserError, match="nearest metric: `fd_digits_judge`"):
        sweep(here, [ENDS], metric="fd_digit_judge")
    with pytest.raises(UserError, match="gives a sweep no such metric"):
        sweep(here, [ENDS], metric="memorised_fraction")
    answer = CliRunner().invoke(cli.app, ["sweep"])
    assert isinstance(answer.exception, UserError) and "there is no grid" in str(answer.exception)
    change(project, "evaluate", min_images={"fd": 200})
    project.run("python", "stages/evaluate.py")
    with pytest.raises(SystemExit):
        sweep(here, [ENDS])
    change(project, "schedule", tau=0.4)
    with pytest.raises(UserError, match="made from another section `schedule`"):
        sweep(here, [ENDS])
    assert drawn == []
