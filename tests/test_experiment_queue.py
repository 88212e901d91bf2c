"""Queued experiments run in copies of the project, two at a time; nothing of them is lost when the copies are deleted."""

import json
import shutil
from pathlib import Path

import pytest
from docs_commands import commands_of
from mlflow import MlflowClient
from support import REPOSITORY, Project, finished_project, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
TEAMS = REPOSITORY / "docs" / "teams.md"
NAME = "sfd-digits"


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run to its end, is committed, and has no store yet; git ignores its images."""
    project = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    shutil.rmtree(project.folder / "mlruns")
    shutil.rmtree(project.folder / ".sfd")
    project.commit_results()
    return project


def succeed(project: Project, *command: str) -> str:
    status, output = project.run(*command)
    assert status == 0, output
    return output


def test_two_queued_experiments_keep_their_runs_and_versions_and_the_applied_one_gets_the_alias(
    project: Project,
) -> None:
    for command in commands_of(TEAMS, "Experiments"):
        succeed(project, *command)
    wait_until(lambda: succeed(project, "dvc", "queue", "status").count("Success") == 2, 600)

    assert not list((project.folder / ".dvc" / "tmp" / "exps").glob("tmp*")), "the copies are deleted"
    assert "0 records" in succeed(project, "sfd", "sync"), "everything was delivered"
    store = MlflowClient(f"sqlite:///{project.folder}/mlruns/mlflow.db")
    runs = store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])
    made = {(run.data.tags["sfd.experiment"], run.data.tags["sfd.stage"]) for run in runs}
    assert made == {
        (name, stage)
        for name in ("first", "second")
        for stage in ("schedule", "diffusion", "sample", "evaluate", "register", "repro")
    }
    assert {run.data.params["schedule.tau"] for run in runs if run.data.tags["sfd.stage"] == "schedule"} == {
        "0.1",
        "0.2",
    }
    assert all(
        Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(project.folder / "mlruns") for run in runs
    )
    versions = {
        version.tags["sfd.experiment"]: version.version for version in store.search_model_versions(f"name='{NAME}'")
    }
    assert set(versions) == {"first", "second"}
    assert store.get_registered_model(NAME).aliases == {}

    *_, output = [succeed(project, *command) for command in commands_of(TEAMS, "Apply")]
    assert [line for line in output.splitlines() if line.startswith("Running")] == [
        "Running stage 'scan':",
        "Running stage 'register':",
    ]
    assert store.get_registered_model(NAME).aliases == {"candidate": versions["second"]}
    assert f"version {versions['second']}" in succeed(project, "sfd", "show")
    assert json.loads((project.result("scan") / "experiment.json").read_text()) == {"experiment": False}
    assert "everything is up to date" in succeed(project, "sfd", "doctor", "--exit-code")

    succeed(project, "dvc", "exp", "run", "--name", "third", "-S", "sample.num_steps=2")  # in the project itself
    newest = max(store.search_model_versions(f"name='{NAME}'"), key=lambda version: int(version.version))
    assert newest.tags["sfd.experiment"] == "third"
    assert store.get_registered_model(NAME).aliases == {"candidate": versions["second"]}
