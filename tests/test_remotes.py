"""Results travel through a DVC remote to a colleague's clone, where nothing is computed anew."""

import subprocess
from pathlib import Path

import pytest
from docs_commands import commands_of
from support import REPOSITORY, Project, draw_images, small_params

TEAMS = REPOSITORY / "docs" / "teams.md"
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def git(folder: Path, *command: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=folder, check=True)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def pushed_project(folder: Path, target: str) -> Project:
    """A project in ``folder/mine`` that has run up to ``target``, pushed to a DVC remote and committed."""
    images = folder / "images"
    for label in ("quer", "hoch ü"):
        draw_images(images / label, 12, len(label), vertical=label != "quer")
    params = small_params()
    params["data"] |= {"source": "folder", "root": str(images)}
    (folder / "mine").mkdir()
    mine = Project(folder / "mine", params)
    mine.repro(target)
    assert mine.run("dvc", "remote", "add", "-d", "store", str(folder / "remote"))[0] == 0
    status, output = mine.run("dvc", "push")
    assert status == 0, output
    git(mine.folder, "add", ".dvc/config", "dvc.lock")
    git(mine.folder, "commit", "-qm", "results")
    return mine


def clone(mine: Project) -> Project:
    """A colleague's clone, beside the project."""
    git(mine.folder.parent, "clone", "-q", str(mine.folder), "theirs")
    theirs = object.__new__(Project)
    theirs.folder = mine.folder.with_name("theirs")
    return theirs


def succeed(project: Project, *command: str) -> str:
    """What a command prints, which must end with status 0."""
    status, output = project.run(*command)
    assert status == 0, f"{command}: {output}"
    return output


def test_every_command_of_a_colleague_and_of_ci_ends_well_and_only_scan_runs(tmp_path: Path) -> None:
    mine = pushed_project(tmp_path, "register")
    succeed(mine, "dvc", "checkout")  # although the study of `tune/dvc.yaml` has never run
    theirs = clone(mine)
    said = {" ".join(command): succeed(theirs, *command) for command in commands_of(TEAMS, "A clone")}
    for command in ("checkout", "push"):
        succeed(theirs, "dvc", command)
    assert [line for line in said["dvc repro"].splitlines() if line.startswith("Running")] == ["Running stage 'scan':"]
    for name in ("prepare", "diffusion", "sample", "evaluate", "register"):
        assert files_in(theirs.result(name)) == files_in(mine.result(name)) != {}
    assert "metrics" in said["sfd show"] and "has no version at sqlite:///mlruns/mlflow.db" in said["sfd models list"]
    assert succeed(mine, "sfd", "models", "list").splitlines()[-1].split()[:2] == ["1", "candidate"]
    for words in commands_of(TEAMS, "CI"):
        succeed(theirs, *words)

    (theirs.folder / "params.yaml").write_text(
        (theirs.folder / "params.yaml").read_text().replace("tau: 0.3", "tau: 0.1")
    )
    status, output = theirs.run("sfd", "doctor", "--exit-code")
    assert status == 1 and "schedule.tau was 0.3, is 0.1" in output


def test_a_graph_that_has_not_been_run_to_its_end_is_pulled_in_part(tmp_path: Path) -> None:
    mine = pushed_project(tmp_path, "judge")
    theirs = clone(mine)
    succeed(theirs, "dvc", "pull", "--allow-missing")
    for name in ("prepare", "judge"):
        assert files_in(theirs.result(name)) == files_in(mine.result(name)) != {}
    output = theirs.repro("judge")
    assert "Running stage 'scan'" in output  # it looks at the images each time
    assert "Stage 'prepare' didn't change, skipping" in output and "Stage 'judge' didn't change, skipping" in output
