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
        ("name: sfd-digits", 'name: "it\'s"', "no slash, colon or quote"),
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
