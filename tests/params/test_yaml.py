"""Params files as text: read as DVC reads them; what YAML 1.1 and 1.2 read differently is refused."""

from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from support import REPOSITORY

from sfd.errors import UserError
from sfd.params import load_params, parse_yaml
from sfd.params.yaml import dump_tree

SHIPPED = (REPOSITORY / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("written", "meant", "other"),
    [
        ("03200", "3200", "1664"),
        ("010", "10", "8"),
        ("08", "8", "'08'"),
        ("0o17", "15", "'0o17'"),
        ("yes", "'yes'", "true"),
        ("Off", "'Off'", "false"),
        ("n", "'n'", "false"),
        ("1:30", "'1:30'", "90"),
        ("-.5", "-0.5", "'-.5'"),
    ],
)
def test_what_means_two_things_is_refused_with_key_line_and_both_values(written: str, meant: str, other: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(f"data:\n  size: {written}\n", "params.yaml")
    message = str(error.value)
    assert "\n" not in message and f"params.yaml, line 2: `data.size` is written {written}" in message
    assert f"write {meant}, or {other} if that is meant" in message


LIKELY = """
0 00 007 08 010 0777 0o17 0O17 0b11 0B11 0x1f 0X1F -010 +010 +5 -0 1_000 1__0 _1 0x_f 1_000.5 1_0e3
yes no on off Yes NO On OFF y n Y N true True TRUE false null Null NULL ~ none None
1:30 1:30:00 -1:30 190:20:30.15 1:60 01:30 12:30:45.5
1e-4 1E-4 1e4 1e+4 +1e-4 1.e-4 .5 -.5 +.5 5. .5e-3 1.0e-4 1e400 .inf -.inf .Inf .nan inf nan 1.5e 1e -0.0 00.5 1,000
2026-11-26 2026-11-26T10:00:00 12-30 1.2.3 = << !!int|010 !!str|010 !!bool|yes !!float|1 [yes,|010] {a:|010}
""".split()
"""Numbers and words that people write in YAML, rightly or wrongly; | stands for a space."""


@pytest.mark.parametrize("written", [text.replace("|", " ") for text in LIKELY])
def test_every_likely_spelling_is_read_as_dvc_reads_it_or_refused(written: str) -> None:
    text = f"key: {written}\n"
    try:
        ours = parse_yaml(text, "params.yaml")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert repr(ours) == repr(loads_yaml(text))


def test_a_file_of_another_program_is_read_as_dvc_reads_it_even_where_yaml_1_1_differs() -> None:
    text = "size: 010\nanswer: yes\n"
    assert parse_yaml(text, "dvc.lock", accept_ambiguous=True) == loads_yaml(text) == {"size": 10, "answer": "yes"}
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("size: [", "dvc.lock", accept_ambiguous=True)


@pytest.mark.parametrize(
    "written", ["3200", "0", "1e-4", "5.0e-05", "1_000", "0b11", "0x1f", "~", "true", "'010'", '"yes"', "a:b"]
)
def test_what_means_one_thing_is_read_as_dvc_reads_it(written: str) -> None:
    text = f"key: {written}\n"
    assert parse_yaml(text, "params.yaml") == loads_yaml(text)


def test_anchors_and_merges_are_read_as_dvc_reads_them() -> None:
    text = "a: &a {p: 1, q: 2}\nb: *a\nc:\n  <<: *a\n  q: 3\n"
    assert parse_yaml(text, "params.yaml") == loads_yaml(text)


def test_a_key_that_stands_twice_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match="line 3: key `seed` stands twice"):
        parse_yaml("seed: 1\ndata: 2\nseed: 3\n", "params.yaml")


@pytest.mark.parametrize("value", ["010", "yes", "1:30", "null", "1e-4", "text", "", 1e-7, 3, None, True])
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert parse_yaml(dump_tree({"key": value}), "x") == {"key": value}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("num_steps: 3200", "num_steps: 03200", "`diffusion.training.num_steps` is written 03200"),
        ("seed: 0", "seed: 010", "`seed` is written 010"),
        ("name: sfd-digits", 'name: "it\'s"', "letters, digits, blanks"),
        ("alias: candidate", "alias: latest", "alias `latest` is reserved by MLflow"),
        ("alias: candidate", "alias: v3", "alias `v3` is reserved by MLflow"),
    ],
)
def test_a_file_that_would_fail_after_the_whole_graph_is_refused(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(SHIPPED.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_params(file)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E-3", 2e-3), ("1.5e-4", 1.5e-4), ("0.01", 0.01)])
def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path, text: str, value: float) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((REPOSITORY / "params.yaml").read_text().replace("learning_rate: 0.001", f"learning_rate: {text}"))
    assert load_params(file).diffusion.training.learning_rate == value


def wrong_file(folder: Path, content: bytes) -> Path:
    file = folder / "wrong.yaml"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"seed: [1", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"", "must be a mapping of sections"),
        (b"- seed", "must be a mapping of sections"),
        (SHIPPED.encode() + b"\nseed: 1\n", "key `seed` stands twice"),
        (SHIPPED.encode().replace(b"tau: 0.3", b"tau: 0.3\n  tau: 0.2"), "key `tau` stands twice"),
        (SHIPPED.encode() + b"\n1: 2\n", "`1` is"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(UserError) as error:
        load_params(wrong_file(tmp_path, content))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run in the project's folder"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_params(tmp_path)
