"""`dvc exp run` works in copies of the project that are deleted: what must last is in the project itself."""

from pathlib import Path

import pytest

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
