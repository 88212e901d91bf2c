"""`sfd doctor` says of each part of a project whether it is up to date, and what to type."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_commands import commands_of
from support import REPOSITORY, Project, finished_project
from typer.testing import CliRunner

from sfd.cli import app
from sfd.doctor.doctor import examine
from sfd.doctor.findings import Finding
from sfd.tracking import find_journals
from sfd.workspace import Workspace


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run to its end, and whose results DVC knows."""
    project = finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("doctor") / "project")
    project.commit_results()
    return project


@pytest.fixture
def project(recorded: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy in which the test works."""
    with recorded.copy_to(tmp_path / "copy").entered() as copied:
        yield copied


def states() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(Workspace.find())}


def change_params(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert text.count(old) == 1
    Path("params.yaml").write_text(text.replace(old, new))


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.stdout


@pytest.mark.usefixtures("project")
def test_a_stage_that_stopped_at_a_quality_check_says_at_which() -> None:
    shutil.rmtree("results/judge")
    work = Path(".sfd/work/judge")
    work.mkdir(parents=True)
    (work / "stopped.json").write_text('{"work": "x", "reason": "the held-out accuracy is 0.1"}')
    found = states()["judge"]
    assert (found.state, found.reason, found.is_stale) == ("stopped", "the held-out accuracy is 0.1", True)
    assert found.remedy.endswith("sfd accept judge")
    (work / "accepted.json").write_text('{"work": "x"}')
    assert states()["judge"].state == "missing"


@pytest.mark.usefixtures("project")
def test_a_finished_project_is_up_to_date_and_nothing_is_written() -> None:
    def files() -> dict[Path, int]:
        places = [path for path in Path().rglob("*") if path.is_file() and path.parts[:2] != (".dvc", "tmp")]
        return {path: path.stat().st_mtime_ns for path in places}

    before = files()
    status, output = doctor("--exit-code")
    assert (status, output.splitlines()[-1]) == (0, "everything is up to date"), output
    assert [line.split()[1] for line in output.splitlines() if line.startswith(("prepare", "diffusion"))] == [
        "current"
    ] * 2
    assert files() == before


def test_changed_options_and_lost_results_are_named_with_what_to_type(project: Project) -> None:
    change_params("  tau: 0.3", "  tau: 0.1")
    shutil.rmtree(project.result("judge"))
    (project.result("features") / "fingerprint.json").write_text("{}")
    found = states()
    assert found["schedule"] == Finding(
        "schedule", "outdated", "schedule.tau was 0.3, is 0.1", "dvc repro schedule", is_stale=True
    )
    assert (found["diffusion"].state, found["diffusion"].reason) == ("waits", "for schedule, semantic, latents")
    assert (found["judge"].state, found["judge"].remedy) == ("missing", "dvc pull judge (or dvc checkout)")
    assert (found["features"].state, found["semantic"].reason) == ("altered", "for features")
    assert (found["sample"].state, found["sample"].reason) == ("waits", "for diffusion")
    assert found["texture_vae"].state == "current"
    assert doctor("--exit-code")[0] == 1 and doctor()[0] == 0


@pytest.mark.long
def test_changed_images_make_prepare_outdated_and_absent_ones_are_not_checked(project: Project) -> None:
    next((project.folder / "images").rglob("*.png")).touch()
    assert states()["prepare"].reason == "images changed (names, sizes or times)"
    (project.folder / "images").rename(project.folder / "elsewhere")
    found = states()["prepare"]
    assert (found.state, found.is_stale) == ("not checked", False) and "data.root images" in found.reason


@pytest.mark.usefixtures("project")
def test_interrupted_work_a_server_that_is_away_and_missing_records_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Workspace.find().work("diffusion")
    (work / "out").mkdir(parents=True)
    (work / "owner").write_text("999999999 elsewhere")
    assert states()["work of diffusion"].state == "running", "on another machine"
    (work / "owner").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = states()
    assert (found["work of diffusion"].state, found["work of diffusion"].remedy) == (
        "unfinished",
        "dvc repro diffusion",
    )
    assert (found["MLflow"].state, found["MLflow"].is_stale) == ("away", True)
    assert "records" not in found
    journals = find_journals(Workspace.find())
    for journal in journals:
        journal.path.with_suffix(".state.json").unlink()
    found = states()
    assert found["records"].reason.endswith(f"records of {len(journals)} runs are not in MLflow")
    assert (found["records"].remedy, found["records"].is_stale) == ("sfd sync", True)


@pytest.mark.long
def test_a_copied_project_without_git_gets_the_command_that_dvc_needs_and_then_works(project: Project) -> None:
    shutil.rmtree(project.folder / ".git")
    found = states()["graph"]
    assert (found.state, found.is_stale) == ("unknown", True)
    (command,) = commands_of(REPOSITORY / "docs" / "teams.md", "Without git")
    assert " ".join(command) in found.remedy and project.run(*command)[0] == 0
    assert states()["diffusion"].state == "current"
    output = project.repro()
    assert [line for line in output.splitlines() if line.startswith("Running")] == ["Running stage 'scan':"]
    for command in ("params", "show", "doctor"):
        assert project.run("sfd", command)[0] == 0


def test_a_stage_that_never_ran_and_one_that_ran_without_dvc_are_told_apart(project: Project) -> None:
    (project.folder / "dvc.lock").unlink()
    shutil.rmtree(project.result("register"))
    found = states()
    assert (found["register"].state, found["register"].remedy) == ("missing", "dvc repro register")
    assert (found["sample"].state, found["sample"].remedy) == ("unrecorded", "dvc commit sample")


def test_a_lock_file_with_a_conflict_and_a_folder_without_a_graph_say_so(tmp_path: Path, project: Project) -> None:
    with (project.folder / "dvc.lock").open("a") as lock:
        lock.write("<<<<<<< HEAD\n")
    found = states()["graph"]
    assert "dvc.lock' is invalid" in found.reason and found.remedy == "git checkout --theirs dvc.lock, then dvc repro"
    (project.folder / "dvc.yaml").rename(tmp_path / "dvc.yaml")
    assert "no dvc.yaml" in states()["graph"].reason
    (project.folder / "dvc.yaml").write_text((tmp_path / "dvc.yaml").read_text().replace("results/schedule, ", ""))
    assert "`diffusion` does not name results/schedule" in states()["graph"].reason


@pytest.mark.long
def test_what_git_does_not_have_yet_is_named(project: Project) -> None:
    assert not {"git", "images"} & set(states())
    change_params("  tau: 0.3", "  tau: 0.1")
    (project.folder / ".gitignore").write_text("/results/\n/mlruns/\n/.sfd/\n")
    found = states()
    assert (found["git"].reason, found["git"].remedy) == ("params.yaml", "git add params.yaml && git commit")
    assert (found["images"].state, found["images"].remedy) == ("not ignored", "add images to .gitignore")
    assert not found["git"].is_stale and not found["images"].is_stale


def test_results_that_the_store_does_not_know_are_to_be_registered(project: Project) -> None:
    assert states()["model"].reason.startswith("version 1 of sfd-digits")
    shutil.rmtree(project.folder / "mlruns")
    found = states()["model"]
    assert (found.state, found.remedy, found.is_stale) == ("not registered", "sfd register", False)
    assert not (project.folder / "mlruns").exists()
