"""The embedded MLflow store of copied and moved projects, and passwords, which appear nowhere."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support import Project, finished_project, give_store

from sfd.errors import UserError, redact
from sfd.params import TrackingParams
from sfd.registry.versions import read_registration
from sfd.tracking import client, relocate, start_run, tracking_uri
from sfd.tracking.address import PLACES, sqlite_file, sqlite_uri
from sfd.workspace import Workspace

PARAMS = TrackingParams(experiment="sfd")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project with an embedded store, in which one run kept a picture."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Workspace(tmp_path / "original 100% ü")
    home.root.mkdir()
    give_store(home.mlruns / "mlflow.db")
    keep_picture(home, "1" * 64)
    return home


def keep_picture(workspace: Workspace, fingerprint: str) -> None:
    (workspace.root / "grid.png").write_bytes(b"picture")
    with start_run(workspace, "sample", fingerprint, PARAMS, {}) as run:
        run.log_artifact(workspace.root / "grid.png")


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, by the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def places(workspace: Workspace) -> set[str]:
    with sqlite3.connect(workspace.mlruns / "mlflow.db") as store:
        found = {place for table, column in PLACES for (place,) in store.execute(f"SELECT {column} FROM {table}")}
    return {place for place in found if place and "artifacts" in place}


def test_a_copied_store_is_noticed_relocated_and_leaves_the_original_as_it_was(
    project: Workspace, tmp_path: Path
) -> None:
    copied = Workspace(tmp_path / "copy")
    shutil.copytree(project.root, copied.root)
    before = content(project.root)
    for use in (lambda: client(copied), lambda: keep_picture(copied, "2" * 64)):
        with pytest.raises(UserError, match="was made in .*original 100% ü/mlruns.*run `sfd store relocate`"):
            use()
    said = relocate(tracking_uri(copied))
    assert "places of artifacts in" in said and str(project.root) in said
    keep_picture(copied, "2" * 64)
    mlflow = client(copied)
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("sfd").experiment_id])
    assert len(runs) == 2
    for run in runs:
        assert Path(mlflow.download_artifacts(run.info.run_id, "grid.png")).read_bytes() == b"picture"
    assert content(project.root) == before
    assert all(str(copied.root) in place for place in places(copied)) and places(copied)
    assert "uses its own artifacts already" in relocate(tracking_uri(copied))


def test_a_moved_store_is_relocated_and_one_behind_a_link_needs_nothing(project: Workspace, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(project.root)
    client(Workspace(tmp_path / "link"))
    moved = Workspace(project.root.rename(tmp_path / "moved"))
    with pytest.raises(UserError, match="sfd store relocate"):
        client(moved)
    relocate(tracking_uri(moved))
    client(moved)
    assert not (tmp_path / "original 100% ü").exists()


def test_a_store_that_is_no_file_or_is_missing_cannot_be_relocated(tmp_path: Path) -> None:
    for uri in ("http://127.0.0.1:9", sqlite_uri(tmp_path / "mlruns" / "mlflow.db")):
        with pytest.raises(UserError, match="is not an embedded MLflow store"):
            relocate(uri)


def test_a_percent_sign_in_an_address_is_written_as_sqlalchemy_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a%41?b" / "mlflow.db"
    assert sqlite_file(sqlite_uri(file)) == file
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/a%41/mlflow.db")
    with pytest.raises(UserError, match="a folder that does not exist; .*`%` is written %25"):
        client(Workspace(tmp_path))


def test_a_folder_whose_name_mlflow_would_decode_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Workspace(tmp_path / "a%41")
    home.root.mkdir()
    with pytest.raises(UserError, match="could not load models from .*a%41/mlruns/artifacts; rename the folder"):
        keep_picture(home, "1" * 64)
    assert [file.name for file in home.root.iterdir()] == ["grid.png"]


def test_the_password_of_a_server_moves_to_mlflows_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pa%40ssword@host:5000/base")
    assert tracking_uri(Workspace(Path())) == os.environ["MLFLOW_TRACKING_URI"] == "https://host:5000/base"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "pa@ssword")
    assert redact("401 for pa@ssword") == "401 for ***"
    assert (
        str(UserError("at postgresql://me:other@host/db?password=third"))
        == "at postgresql://me:***@host/db?password=***"
    )


def test_an_unexpected_error_is_printed_without_passwords() -> None:
    script = "from sfd.errors import hide_in_tracebacks\nhide_in_tracebacks()\nraise KeyError('http://me:secret@host')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "KeyError: 'http://me:***@host'" in done.stderr


def test_params_and_tags_of_a_run_hold_no_password(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "pa ssword")
    with start_run(project, "prepare", "3" * 64, PARAMS, {}) as run:
        run.log_params({"tune.storage": "postgresql://me:hidden-word@host/db"})
        run.log_tags({"note": "pa ssword"})
        run.log_input("images", "d", "s3://me:hidden-word@bucket", "training")
    found = client(project).get_run(run.run_id())
    assert found.data.params == {"tune.storage": "postgresql://me:***@host/db"} and found.data.tags["note"] == "***"
    written = [file.read_bytes() for file in project.root.rglob("*") if file.is_file()]
    assert not any(word in text for text in written for word in (b"hidden-word", b"pa ssword"))


@pytest.mark.long
def test_a_copied_project_registers_and_shows_its_own_versions(tmp_path_factory: pytest.TempPathFactory) -> None:
    original = finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("original") / "project")
    copied = original.folder.with_name("copy")
    shutil.copytree(original.folder, copied, symlinks=True)
    project = object.__new__(Project)
    project.folder = copied
    before = content(original.folder / "mlruns")
    for command in (("sfd", "models", "list"), ("sfd", "register"), ("python", "stages/register.py")):
        status, output = project.run(*command)
        assert status == 2 and "run `sfd store relocate`" in output and "Traceback" not in output, output
    assert project.run("sfd", "store", "relocate")[0] == 0
    status, output = project.run("sfd", "show")
    assert status == 0 and "models:/sfd-digits@candidate (version 1)" in output, output
    status, output = project.run("sfd", "register")
    assert status == 0 and "models:/sfd-digits@candidate is version 1" in output, output
    for part in ("mlflow.db", "artifacts"):
        whole = project.folder / "mlruns" / part
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
    registration = read_registration(Workspace(copied))
    status, output = project.run("sfd", "show")
    assert status == 0 and "has no version of these results; `sfd register` makes it" in output, output
    status, output = project.run("sfd", "register")
    assert status == 0 and "is version 1" in output, output
    assert read_registration(Workspace(copied)) == registration
    assert project.run("sfd", "show")[1].count("models:/sfd-digits@candidate (version 1)") == 1
    (settings,) = (copied / "mlruns" / "artifacts" / "models").glob("m-*/artifacts/artifacts/sample.json")
    assert json.loads(settings.read_text())["num_steps"] == 3
    assert content(original.folder / "mlruns") == before


@pytest.mark.long
def test_a_store_whose_making_was_killed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.store.db.utils as tables

    def killed(_engine: object) -> None:
        raise KeyboardInterrupt

    for folder in (tmp_path / "other", tmp_path / "project"):
        folder.mkdir()
    workspace, other = Workspace(tmp_path / "project"), tmp_path / "other" / "store.db"
    for uri in (sqlite_uri(workspace.mlruns / "mlflow.db"), sqlite_uri(other)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tables, "_upgrade_db", killed)
            client(workspace)
        assert client(workspace).create_experiment("after")
    assert {path.name for path in other.parent.iterdir()} == {"store.db", "store.lock"}
    assert {path.name for path in workspace.mlruns.iterdir()} == {"mlflow.db", "store.lock"}


def test_an_empty_file_is_no_store_yet(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.mlruns.mkdir()
    (workspace.mlruns / "mlflow.db").touch()
    assert client(workspace).create_experiment("first")


def test_a_store_is_used_again_after_a_process_was_killed_while_it_wrote(project: Workspace) -> None:
    database = project.mlruns / "mlflow.db"
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(database)])
    assert killed.returncode < 0 and database.with_name("mlflow.db-journal").stat().st_size > 0
    assert client(project).search_experiments()


KILLED_WHILE_WRITING = """
import os, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("PRAGMA cache_size = 1")
store.execute("BEGIN")
store.execute("CREATE TABLE half AS SELECT randomblob(100000)")
os.kill(os.getpid(), 9)
"""
