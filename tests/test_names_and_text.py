"""Names that are not UTF-8, and machines whose locale is ASCII: one sentence, or it works; text files say their encoding."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfd import cli
from sfd.pipeline.stage import _told

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ROOT = Path(__file__).parents[1]


def text_files_without_encoding(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = {word.arg for word in node.keywords}
        if "force_zip64" in words:  # a member of an archive, which holds bytes
            continue
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opens_text = name == "open" and any(mode in ("r", "w", "a", "x", "rt", "wt") for mode in modes)
        if (name in ("read_text", "write_text") or opens_text) and "encoding" not in words:
            yield f"{file}:{node.lineno}"


def test_every_text_file_is_read_and_written_in_a_named_encoding() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    assert not [place for file in files for place in text_files_without_encoding(file)]


def run(code: str, *arguments: bytes, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=os.environ | variables)


def test_any_name_can_be_printed_whatever_the_locale() -> None:
    code = "from sfd.errors import print_any_name, warn; print_any_name(); print('\\xfc\\udcff'); warn('\\xfc\\udcff')"
    for variables, expected in (({"PYTHONUTF8": "1"}, "ü".encode()), (ASCII, b"\\xfc")):
        done = run(code, **variables)
        assert done.returncode == 0 and done.stdout.strip() == expected + b"\\udcff"
        assert done.stderr.startswith(b"warning: " + expected)


@pytest.mark.parametrize(
    ("name", "variables", "reason"),
    [
        (
            b"d\xff",
            {"PYTHONUTF8": "1"},
            b"error: a name is not valid UTF-8, as in '-c verify d\\udcff'; rename that file or folder\n",
        ),
        (
            "dü".encode(),
            ASCII,
            b"error: this Python reads and writes names as ascii, which does not hold '-c verify d\\udcc3\\udcbc'; set ",
        ),
    ],
)
def test_a_name_that_python_cannot_write_ends_the_command_in_one_line(
    name: bytes, variables: dict[str, str], reason: bytes
) -> None:
    done = run("from sfd.cli import main; main()", b"verify", name, **variables)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.startswith(reason) and done.stderr.count(b"\n") == 1


def test_a_name_in_the_parameters_that_python_cannot_write_ends_a_stage_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, _told("prepare", tmp_path):
        os.stat("/\ud800")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: prepare: a name is not valid UTF-8, as in '/\\ud800'; ")


def test_a_class_folder_is_not_renamed_by_an_ascii_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sfd.data.sources.folder import scan_folder; "
        "print(ascii(scan_folder(Path(sys.argv[1]), 1).classes))"
    )
    (tmp_path / "plain" / "a").mkdir(parents=True)
    (tmp_path / "other" / "ü").mkdir(parents=True)
    assert run(code, os.fsencode(tmp_path / "plain"), **ASCII).stdout == b"['a']\n"
    assert run(code, os.fsencode(tmp_path / "other"), PYTHONUTF8="1").stdout == b"['\\xfc']\n"
    refused = run(code, os.fsencode(tmp_path / "other"), **ASCII).stderr
    assert b"UserError: this Python reads names as ascii" in refused and b"set PYTHONUTF8=1" in refused


def test_the_command_itself_works_in_an_ascii_locale() -> None:
    assert run("from sfd.cli import main; main()", b"preset", b"list", **ASCII).returncode == 0
    assert cli.main
