"""`dvc exp run` works in copies of the project that are deleted: what must last is in the project itself."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from support import REPOSITORY

from sfd.pipeline.stage import stage
from sfd.tracking import describe_origin, registry_uri, tracking_uri
from sfd.workspace import Experiment, Workspace


def make_project(folder: Path) -> Path:
    (folder / ".dvc").mkdir(parents=True)
    (folder / "params.yaml").touch()
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def copy(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy of an experiment, in which DVC runs the stages."""
    made = make_project(home / ".dvc" / "tmp" / "exps" / "tmp1")
    enter(made, home, monkeypatch)
    return made


def enter(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(home))
    monkeypatch.setenv("DVC_EXP_NAME", "lucky-name")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("copy")
def test_runs_of_an_experiment_are_recorded_in_the_project_with_its_name(home: Path) -> None:
    workspace = Workspace.find()
    assert workspace.root == Path() and workspace.home.resolve() == home
    assert workspace.journals.resolve() == home / ".sfd" / "journal"
    assert Path(tracking_uri(workspace).removeprefix("sqlite:///")).resolve() == home / "mlruns" / "mlflow.db"
    assert describe_origin(workspace, "sample")["sfd.experiment"] == "lucky-name"


def test_a_store_that_the_environment_names_by_a_relative_path_is_the_projects(
    home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, read in (("MLFLOW_TRACKING_URI", tracking_uri), ("MLFLOW_REGISTRY_URI", registry_uri)):
        for given in ("sqlite:///runs/my.db", f"sqlite:///{copy}/runs/my.db"):
            monkeypatch.setenv(name, given)
            assert Path(read(Workspace.find()).removeprefix("sqlite:///")).resolve() == home / "runs" / "my.db"


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize("uri", ["sqlite:////elsewhere/my.db", "http://host:5000", "postgresql://host/runs"])
def test_a_store_elsewhere_stays_what_it_is(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(Workspace.find()) == uri


def test_an_experiment_in_the_project_itself_keeps_its_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(home, home, monkeypatch)
    assert Workspace.find() == Workspace(Path(), Experiment("lucky-name", Path()))
    monkeypatch.delenv("DVC_EXP_NAME")
    assert Workspace.find() == Workspace(Path())


def test_a_project_below_the_root_of_dvc_is_found_below_it_in_the_copy(
    home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "one").mkdir()
    (copy / "one" / "params.yaml").touch()
    monkeypatch.chdir(copy / "one")
    assert Workspace.find().home.resolve() == home / "one"


@pytest.mark.usefixtures("copy")
def test_another_project_that_an_experiment_works_on_is_not_the_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_project(tmp_path / "other")
    monkeypatch.chdir(other)
    assert Workspace.find() == Workspace(Path())
    assert tracking_uri(Workspace.find()) == "sqlite:///mlruns/mlflow.db"


def test_files_that_git_does_not_know_are_read_in_the_project_and_others_in_the_copy(home: Path, copy: Path) -> None:
    for folder in (home / "images", home / "weights", copy / "weights"):
        folder.mkdir()
    workspace = Workspace.find()
    assert workspace.resolve("images").resolve() == home / "images"
    assert workspace.resolve("weights").resolve() == copy / "weights"


def interrupted_experiment(copy: Path) -> None:
    """A stage of an experiment is ended in the middle, and DVC deletes the copy that it ran in."""
    shutil.copy(REPOSITORY / "params.yaml", copy)
    with pytest.raises(KeyboardInterrupt), stage("prepare") as s:
        (s.work / "checkpoint.pt").write_text("half")
        raise KeyboardInterrupt
    os.chdir(copy.parent)
    shutil.rmtree(copy)


def test_the_work_of_an_experiment_that_was_ended_is_continued_by_the_next_one_with_the_same_parameters(
    home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_experiment(copy)
    other = make_project(copy.with_name("tmp2"))
    shutil.copy(REPOSITORY / "params.yaml", other)
    enter(other, home, monkeypatch)
    monkeypatch.setenv("DVC_EXP_NAME", "next-name")
    with stage("prepare") as s:
        assert (s.work / "checkpoint.pt").read_text() == "half"
    assert "continues the work of experiment lucky-name" in capsys.readouterr().err
    assert (other / "results" / "prepare" / "fingerprint.json").is_file()
    assert not list((home / ".sfd" / "work").glob("*/")), "nothing is left"


def test_work_of_an_experiment_with_other_parameters_or_that_still_runs_is_left_alone(
    home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_experiment(copy)
    left = home / ".sfd" / "work" / "prepare@lucky-name"
    text = (REPOSITORY / "params.yaml").read_text()
    enter(home, home, monkeypatch)
    monkeypatch.delenv("DVC_EXP_NAME")
    (home / "params.yaml").write_text(text.replace("seed: 0", "seed: 1", 1))
    with stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()
    (home / "params.yaml").write_text(text)
    with FileLock(left.with_name("prepare@lucky-name.lock")), stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()
    assert (left / "checkpoint.pt").exists()
    with stage("prepare") as s:
        assert (s.work / "checkpoint.pt").read_text() == "half"
