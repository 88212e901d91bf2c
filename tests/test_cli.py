"""The command line: its surface, its speed, its errors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.workspace import Workspace

REPOSITORY = Path(__file__).parents[1]
SFD = Path(sys.executable).with_name("sfd")
SURFACE = {
    "accept": ["stage"],
    "audit": ["samples"],
    "bench": ["--batch-size", "--device", "--file", "--json", "--preset", "--steps", "--without-decoder", "job"],
    "doctor": ["--exit-code"],
    "estimate": ["--check", "--device", "--devices", "--preset"],
    "evaluate-steps": ["--apply", "--metric"],
    "export": [],
    "export npz": ["out", "samples"],
    "init": ["--captions", "--git", "--hours", "--images", "--name", "--no-git", "--set", "folder"],
    "generate": [
        "--drop-memorised",
        "--min-confidence",
        "--per-class",
        "--prompts",
        "--report",
        "--seed",
        "--version",
        "out",
    ],
    "import": [
        "--classes",
        "--drop",
        "--encoder",
        "--heads",
        "--kind",
        "--knots",
        "--semantic-channels",
        "--semantic-vae",
        "--statistics",
        "--tau",
        "--texture-vae",
        "out",
        "source",
    ],
    "models": [],
    "models compare": ["first", "second"],
    "models list": [],
    "models promote": ["--force", "version"],
    "models rollback": ["--to"],
    "models show": ["version"],
    "params": ["--describe", "--file"],
    "plan": ["--apply", "--hours"],
    "preset": [],
    "preset check": ["name"],
    "preset list": [],
    "preset published": [],
    "preset show": ["name"],
    "preset use": ["--force", "name"],
    "serve": [
        "--alias",
        "--batch-size",
        "--host",
        "--max-images",
        "--max-queue",
        "--model",
        "--poll-seconds",
        "--port",
        "--timeout-seconds",
    ],
    "register": [],
    "show": [],
    "store": [],
    "store relocate": [],
    "sweep": ["--apply", "--images", "--metric", "axes"],
    "sync": [],
    "tune": ["--worker"],
    "tune apply": ["--trial", "--within", "name"],
    "tune report": ["name"],
    "verify": ["--json", "stems"],
}
"""Commands with their flags and arguments."""


def all_commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Commands by their words, those of groups too."""
    found = {}
    for name, command in group.commands.items():
        found[prefix + name] = command
        if hasattr(command, "commands"):
            found |= all_commands(command, f"{prefix}{name} ")
    return found


def test_commands_and_flags_are_exactly_these_so_that_growth_is_a_decision() -> None:
    surface = {
        name: sorted(flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts))
        for name, command in all_commands(typer.main.get_command(cli.app)).items()
    }
    assert surface == SURFACE


def test_help_lists_every_command_with_its_meaning() -> None:
    run = subprocess.run([SFD, "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    for line in (
        "Check params.yaml and print the resolved configuration.",
        "Recompute recorded numbers",
        "Deliver to MLflow what the stages recorded",
        "Say where the results",
        *(name for name in SURFACE if " " not in name),
    ):
        assert line in run.stdout


def test_without_a_command_the_help_is_shown_and_an_unknown_one_is_refused() -> None:
    bare = subprocess.run([SFD], capture_output=True, text=True)
    assert "verify" in bare.stdout + bare.stderr
    unknown = subprocess.run([SFD, "verfy"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "verfy" in unknown.stderr and "Traceback" not in unknown.stderr


@pytest.mark.parametrize("statement", ["import sfd.cli", "import sfd.params"])
def test_the_command_line_and_the_parameters_import_nothing_heavy(statement: str) -> None:
    code = f"{statement}, sys; print(*sorted({{'torch', 'mlflow', 'diffusers', 'timm', 'dvc', 'optuna'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_a_users_mistake_ends_in_one_line_and_exit_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["sfd", "params", "--file", str(tmp_path / "params.yaml")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder below it and one beside it; the current folder is the one below."""
    folder = tmp_path / "project"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    (folder / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    monkeypatch.chdir(folder / "deep" / "deeper")
    return folder


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output, and the error if it is the user's."""
    run = CliRunner().invoke(cli.app, arguments)
    assert run.exception is None or isinstance(run.exception, SystemExit | UserError), run.exception
    return run.exit_code, run.stdout, str(run.exception or "")


def test_a_command_finds_its_project_from_any_folder_below_it_and_by_name(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, at_depth, _ = invoke("params")
    assert status == 0
    monkeypatch.chdir(project)
    assert invoke("params") == (0, at_depth, "")
    monkeypatch.chdir(project.parent / "beside")
    for name in ("../project", str(project), "../project/deep"):
        assert invoke("--project", name, "params") == (0, at_depth, "")
    assert "../project/results/sample/grid.png is missing" in invoke("--project", "../project", "show")[2]


def test_paths_are_printed_as_they_can_be_used_where_the_user_stands(project: Path) -> None:
    assert "../../results/sample/grid.png is missing" in invoke("show")[2]
    (project / "deep" / "deeper" / "mine.yaml").write_text("seed: 1")
    assert "mine.yaml: key `data` is missing" in invoke("params", "--file", "mine.yaml")[2], "relative to the user"


def test_without_a_project_a_command_is_refused_in_one_line_and_those_that_need_none_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent / "beside")
    for command in (["params"], ["show"], ["sync"], ["models", "list"], ["tune"], ["audit", "x"], ["generate", "x"]):
        status, _, error = invoke(*command)
        assert status == 1 and "there is no params.yaml in" in error and "--project DIR" in error and "\n" not in error
    assert "nowhere is not a folder" in invoke("--project", "nowhere", "params")[2]
    assert invoke("params", "--describe")[0] == invoke("preset", "list")[0] == 0
    assert list(Path().iterdir()) == []


def test_a_preset_is_written_to_the_projects_root_or_makes_a_project_here(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke("preset", "use", "imagenet256-sfd-b")[1].startswith("../../params.yaml is now preset")
    assert not Path("params.yaml").exists()
    monkeypatch.chdir(project.parent / "beside")
    assert invoke("preset", "use", "digits")[1] == "params.yaml is now preset digits\n"
    assert invoke("params")[0] == 0


def test_the_folder_of_presets_belongs_to_the_project_and_that_of_published_weights_is_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY / "presets")
    assert Workspace.find() == Workspace(Path(".."))
    monkeypatch.chdir(REPOSITORY / "presets" / "released-xl")
    assert Workspace.find() == Workspace(Path())


def test_a_fault_of_ours_is_not_dressed_up_as_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main()
    assert not issubclass(ZeroDivisionError, UserError)
