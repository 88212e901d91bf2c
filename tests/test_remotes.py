"""Results travel through a DVC remote to a colleague's clone, where nothing is computed anew."""

import subprocess
from pathlib import Path

import pytest
from support import Project, draw_images, small_params

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def git(folder: Path, *command: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=folder, check=True)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def project_in(folder: Path) -> Project:
    """A project that git has put there."""
    cloned = object.__new__(Project)
    cloned.folder = folder
    return cloned


def test_pushed_results_are_pulled_into_a_clone_and_no_stage_runs_again(tmp_path: Path) -> None:
    images, remote = tmp_path / "images", tmp_path / "remote"
    for label in ("quer", "hoch ü"):
        draw_images(images / label, 12, len(label), vertical=label != "quer")
    params = small_params()
    params["data"] |= {"source": "folder", "root": str(images)}
    (tmp_path / "mine").mkdir()
    mine = Project(tmp_path / "mine", params)
    mine.repro("judge")
    assert mine.run("dvc", "remote", "add", "-d", "store", str(remote))[0] == 0
    status, output = mine.run("dvc", "push")
    assert status == 0, output
    git(mine.folder, "add", ".dvc/config", "dvc.lock")
    git(mine.folder, "commit", "-qm", "results")

    git(tmp_path, "clone", "-q", str(mine.folder), "theirs")
    theirs = project_in(tmp_path / "theirs")
    assert not theirs.result("judge").exists()
    status, output = theirs.run("dvc", "pull", "prepare", "judge")
    assert status == 0, output
    for name in ("prepare", "judge"):
        assert files_in(theirs.result(name)) == files_in(mine.result(name)) != {}
    output = theirs.repro("judge")
    assert "Running stage 'scan'" in output  # it looks at the images each time
    assert "Stage 'prepare' didn't change, skipping" in output and "Stage 'judge' didn't change, skipping" in output
