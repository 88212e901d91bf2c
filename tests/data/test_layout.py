"""The marker that a producer of an image folder leaves in it."""

from pathlib import Path

import pytest
from PIL import Image

from sfd.data.layout import FolderLayout
from sfd.data.prepare import prepare
from sfd.errors import UserError
from sfd.params import DataParams

LAYOUT = FolderLayout(made_by="some tool", beside=("table.csv", "notes.txt"), complete_with="table.csv")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A marked folder of two classes, not complete yet."""
    for name, brightness in (("dark", 10), ("light", 200)):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), brightness + number).save(tmp_path / "root" / name / f"{number}.png")
    LAYOUT.write(tmp_path / "root")
    return tmp_path / "root"


def read(root: Path) -> DataParams:
    return DataParams(source="folder", root=str(root), max_rejected_fraction=0.0)


def test_a_marker_comes_back_as_it_was_written_and_other_folders_have_none(root: Path, tmp_path: Path) -> None:
    assert FolderLayout.read(root) == LAYOUT
    assert LAYOUT.own_names == {".sfd", "table.csv", "notes.txt"}
    assert FolderLayout.read(tmp_path) is None


def test_a_folder_that_is_still_being_made_is_refused_with_the_command_that_completes_it(
    root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is being made by `some tool`; give that command again until it is complete"):
        prepare(read(root), 0, tmp_path / "out")
    (root / "table.csv").touch()
    assert prepare(read(root), 0, tmp_path / "out").num_images == 8


def test_what_a_marker_names_is_passed_over_and_anything_else_beside_the_classes_is_refused(
    root: Path, tmp_path: Path
) -> None:
    (root / "table.csv").touch()
    (root / "notes.txt").touch()
    assert prepare(read(root), 0, tmp_path / "out").num_rejected == 0
    (root / "other").touch()
    with pytest.raises(UserError, match=r"1 of 9 files .*not in a class folder"):
        prepare(read(root), 0, tmp_path / "out")
