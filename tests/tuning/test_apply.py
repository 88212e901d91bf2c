"""Values written into params files: nothing but the values changes, and a file that would not be valid stays."""

import os
import re
import stat
from pathlib import Path

import pytest
import yaml

from sfd.errors import UserError
from sfd.params import load_params
from sfd.tuning.apply import apply_values

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "params.yaml", ROOT / "presets/digits.yaml", ROOT / "presets/imagenet256-sfd-xl.yaml"]
TEXTURE = "sample.guidance.scale_texture"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return copy(ROOT / "params.yaml", tmp_path)


def copy(source: Path, folder: Path) -> Path:
    target = folder / "params.yaml"
    target.write_bytes(source.read_bytes())
    return target


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def changed(diff: str) -> list[str]:
    return [line for line in diff.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.name)
def test_no_values_leave_every_byte(source: Path, tmp_path: Path) -> None:
    file = copy(source, tmp_path)
    assert apply_values(file, {}) == ""
    assert file.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.name)
def test_one_change_is_a_diff_of_one_line(source: Path, tmp_path: Path) -> None:
    file = copy(source, tmp_path)
    lines = changed(apply_values(file, {"evaluate.neighbours": 5}))
    assert lines == ["-  neighbours: 3", "+  neighbours: 5"]
    assert file.read_text() == source.read_text().replace("neighbours: 3", "neighbours: 5")


def test_several_values_are_what_the_file_says_afterwards(file: Path) -> None:
    apply_values(file, {TEXTURE: 1.4, "schedule.tau": 0.35, "sample.sampler": "euler", "data.mirror": True})
    params = load_params(file)
    assert (params.sample.guidance.scale_texture, params.schedule.tau) == (1.4, 0.35)
    assert (params.sample.sampler, params.data.mirror) == ("euler", True)


def test_a_value_that_stands_there_already_is_no_change(file: Path) -> None:
    edit(file, "learning_rate: 0.004", "learning_rate: 4e-3")
    before = file.read_bytes()
    assert apply_values(file, {"texture_vae.training.learning_rate": 0.004, "texture_vae.kl_weight": 5e-05}) == ""
    assert file.read_bytes() == before


def test_a_small_number_is_written_as_every_yaml_reader_reads_it(file: Path) -> None:
    apply_values(file, {"semantic.kl_weight": 3e-07})
    assert "  kl_weight: 3.0e-07\n" in file.read_text()


def test_an_index_picks_from_a_list_and_the_list_keeps_its_form(file: Path) -> None:
    assert changed(apply_values(file, {"schedule.knots.1": 0.5})) == ["-  - 0.75", "+  - 0.5"]


def test_an_index_beyond_the_list_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match=r"has no key `schedule\.knots\.5`"):
        apply_values(file, {"schedule.knots.5": 0.5})


def test_keys_below_a_null_section_make_a_mapping(file: Path) -> None:
    edit(file, "  schedule: null\n", "  schedule: null  # of sampling\n")
    lines = changed(
        apply_values(file, {"sample.schedule.kind": "offset", "sample.schedule.tau": 0.3, "schedule.gamma": 2.0})
    )
    assert lines == ["-  schedule: null  # of sampling", "+  schedule: {kind: offset, tau: 0.3} # of sampling"]


def test_a_null_written_as_nothing_is_filled(file: Path) -> None:
    edit(file, "  schedule: null\n", "  schedule:\n")
    apply_values(file, {"sample.schedule.tau": 0.3})
    assert "  schedule: {tau: 0.3}\n" in file.read_text()


@pytest.mark.parametrize(
    "written",
    ["  tau: {low: 0, high: 1}  # wide\n", "  tau:  # wide\n    low: 0\n    high: 1\n"],
    ids=["in a line", "as a block"],
)
def test_a_range_is_replaced_by_a_number(file: Path, written: str) -> None:
    before = file.read_text()
    edit(file, "  tau: 0.3\n", written)
    edit(file, "  schedule: null\n", "  schedule: {tau: 0.5}\n")
    with pytest.raises(UserError, match="the file is left as it was"):
        apply_values(file, {"schedule.tau": 0.4})
    apply_values(file, {"schedule.tau": 0.5})
    after = file.read_text().replace("{tau: 0.5}", "null")
    assert [line.split() for line in after.splitlines()] == [
        line.split() for line in before.replace("tau: 0.3", "tau: 0.5  # wide").splitlines()
    ]


def test_a_users_comments_quotes_blank_lines_and_list_style_stay(file: Path) -> None:
    edit(file, "  rule: exact", "\n  rule: 'exact'   # as 'published'?")
    before, judges, after = re.split(r"(?<=\njudges:)((?:\n[- ].*)+)", file.read_text().replace("\n  - ", "\n    - "))
    text = "# top\n" + before + judges.replace("\n", "\n  ") + after  # all lists are indented
    file.write_text(text)
    assert changed(apply_values(file, {TEXTURE: 1.5})) == ["-    scale_texture: 1.25", "+    scale_texture: 1.5"]
    assert file.read_text() == text.replace("scale_texture: 1.25", "scale_texture: 1.5")


def test_a_key_that_the_file_lacks_is_named(file: Path) -> None:
    before = file.read_bytes()
    for key in ("sample.guidance.scale", "sample.nothing.tau", "seed.tau"):
        with pytest.raises(UserError, match="has no key `" + key.rsplit(".tau")[0]) as caught:
            apply_values(file, {TEXTURE: 1.5, key: 1.0})
        assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


def test_a_value_that_breaks_its_rule_leaves_the_file_as_it_was(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"scale_texture` is 0\.5.*left as it was"):
        apply_values(file, {TEXTURE: 0.5})
    with pytest.raises(UserError, match=r"sample\.schedule differs"):
        apply_values(file, {"sample.schedule.tau": 0.7})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_value_that_keys_share_changes_for_one_of_them_alone(file: Path) -> None:
    edit(
        file,
        "    scale_texture: 1.25\n    scale_semantic: 1.25\n",
        "    scale_texture: &scale 1.25\n    scale_semantic: *scale\n",
    )
    apply_values(file, {"sample.guidance.scale_semantic": 2.0})
    guidance = load_params(file).sample.guidance
    assert (guidance.scale_texture, guidance.scale_semantic) == (1.25, 2.0)


def test_permissions_stay_and_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "linked.yaml"
    link.symlink_to(file)
    apply_values(link, {TEXTURE: 1.5})
    assert link.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert yaml.safe_load(file.read_text())["sample"]["guidance"]["scale_texture"] == 1.5


def test_a_file_that_is_not_there_or_not_valid_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        apply_values(tmp_path / "none.yaml", {TEXTURE: 1.5})
    file.write_text("seed: [")
    with pytest.raises(UserError, match="not valid YAML"):
        apply_values(file, {TEXTURE: 1.5})
