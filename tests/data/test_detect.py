"""The options of section `data` that read a path, guessed from names."""

from pathlib import Path
from typing import Any

import pytest
from folders import CAT_DOG, FLAT, ROWS, SPLITS, TABLE, images, make

from sfd.data.detect import detect
from sfd.data.prepare import look
from sfd.errors import UserError
from sfd.params import DataParams

FOUND: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "class folders": (CAT_DOG, "", {"source": "folder"}),
    "split folders": (SPLITS, "", {"source": "folder"}),
    "images in one folder": (FLAT, "", {"source": "folder"}),
    "class folders in a folder that an archive left": (
        {f"pets/{name}": content for name, content in CAT_DOG.items()} | {"__MACOSX/pets/._a": "x", "README.md": "x"},
        "pets",
        {"source": "folder"},
    ),
    "images of which a few were sorted into a folder": (
        FLAT | images("female/"),
        "",
        {"source": "folder", "layout": "flat"},
    ),
    "a few images beside class folders": (CAT_DOG | images("", 2), "", {"source": "folder"}),
    "images beside their masks": (FLAT | images("masks/"), "", {"source": "folder"}),
    "images beside a split": (FLAT | images("val/"), "", {"source": "folder"}),
    "a table beside the images": (FLAT | TABLE, "", {"source": "folder", "labels": "labels.csv"}),
    "a table beside a folder of images": (
        images("images/", 4) | {"metadata.csv": f"file_name,label\n{ROWS}"},
        "",
        {"source": "folder", "labels": "metadata.csv"},
    ),
    "a table beside class folders": (CAT_DOG | TABLE, "", {"source": "folder"}),
    "a table of something else": (FLAT | {"prices.csv": "item,price\na,1\n"}, "", {"source": "folder"}),
    "two tables": (FLAT | TABLE | {"more.csv": TABLE["labels.csv"]}, "", {"source": "folder"}),
    "a text of classes": (
        FLAT | {"classes.txt": "0.png cat\n1.png cat\n2.png dog\n3.png dog\n", "README.txt": "some images\n"},
        "",
        {"source": "folder", "labels": "classes.txt"},
    ),
    "captions and a text of something else": (
        FLAT | {f"{number}.txt": "a cat" for number in range(4)} | {"notes.txt": "0.png is nice\nall others are not\n"},
        "",
        {"source": "folder"},
    ),
    "an archive beside class folders": (CAT_DOG | {"backup.tar": "x"}, "", {"source": "folder"}),
    "an archive beside images": (FLAT | {"backup.tar": "x"}, "", {"source": "folder"}),
    "parquet files beside class folders": (CAT_DOG | {"index.parquet": "x"}, "", {"source": "folder"}),
    "parquet files in a class folder": (CAT_DOG | {"cat/features.parquet": "x"}, "", {"source": "folder"}),
    "archives": ({"a.tar": "x", "b.tar": "x", "README.md": "x"}, "", {"source": "tar"}),
    "a saved data set": ({"state.json": "{}", "data.arrow": "x"}, "", {"source": "huggingface"}),
    "parquet files": ({"data/train-0.parquet": "x"}, "", {"source": "huggingface"}),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND.keys())
def test_a_path_gives_the_options_that_read_it(case: Any, tmp_path: Path) -> None:
    files, below, expected = case
    root = make(tmp_path / "root", files) / below
    if "labels" in expected:
        expected = expected | {"labels": str(root / expected["labels"])}
    assert detect(tmp_path / "root") == {"root": str(root), **expected}


def test_the_options_read_the_images(tmp_path: Path) -> None:
    root = make(tmp_path / "root", FLAT | TABLE)
    assert look(DataParams.model_validate(detect(root))).classes == ["cat", "dog"]


def test_one_archive_is_read_and_another_file_or_a_missing_path_is_refused(tmp_path: Path) -> None:
    make(tmp_path, {"a.tar": "x", "a.zip": "x"})
    assert detect(tmp_path / "a.tar") == {"source": "tar", "root": str(tmp_path / "a.tar")}
    with pytest.raises(UserError, match="a.zip is a file; name a folder of images, or a .tar archive .*unpack"):
        detect(tmp_path / "a.zip")
    with pytest.raises(UserError, match="nowhere does not exist; name a folder of images"):
        detect(tmp_path / "nowhere")


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="cannot be read by this user; change its permissions"):
        detect(tmp_path)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "pictures", CAT_DOG)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert detect(Path("~/pictures"))["root"] == str(tmp_path / "pictures")
