"""Which options of section `data` read a path that somebody has: a guess from names alone, without opening an image."""

import os
from pathlib import Path

from sfd.data.companions import IMAGE_ENDINGS, kind_of_file, kind_of_folder
from sfd.data.sources.arrangement import holds_drawings, split_of
from sfd.data.sources.table import TABLE_ENDINGS, LabelTable
from sfd.errors import UserError
from sfd.params import DataParams

_OF_A_DATASET = ("state.json", "dataset_info.json", "dataset_dict.json", "*.parquet", "*/*.parquet")
_NO_IMAGE = (".arrow", ".lock")
"""Endings of what lies in a folder of `save_to_disk`, beside companions."""


def detect(path: Path) -> dict[str, object]:
    """The options of section `data` that read this path: always `source` and `root`, `labels` where a table gives the classes, and `layout`.

    An archive or a folder of `*.tar` is `tar`; a folder of `save_to_disk` or of parquet files is `huggingface`; all else, and all that
    holds image files, is `folder`. A folder that holds nothing but one other folder is entered, as archives that were unpacked have one.
    A table beside the images counts if it is the only one that names files and classes, and if there are no class folders. The paths are
    absolute. Where most images lie beside the folders, as if a few had been sorted into them later, these are no classes: `layout` is `flat`.

    Raises:
        UserError: the path does not exist, is a file that is no tar archive, or cannot be read.
    """
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not root.exists():
        raise UserError(f"{root} does not exist; name a folder of images")
    if root.is_file():
        if root.suffix.lower() != ".tar":
            raise UserError(
                f"{root} is a file; name a folder of images, or a .tar archive of them (unpack any other archive)"
            )
        return {"source": "tar", "root": str(root)}
    try:
        return _detect_folder(root)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read by this user; change its permissions (chmod)") from None


def _detect_folder(root: Path) -> dict[str, object]:
    inner = _unwrapped(root)
    if not _holds_images(root):
        for folder in (root, inner):
            if any(any(folder.glob(pattern)) for pattern in _OF_A_DATASET):
                return {"source": "huggingface", "root": str(folder)}
            if any(folder.glob("*.tar")):
                return {"source": "tar", "root": str(folder)}
    tables = _label_tables(inner)
    found: dict[str, object] = {"source": "folder", "root": str(inner)}
    if len(tables) == 1:
        return found | {"labels": str(tables[0])}
    return found | ({"layout": "flat"} if _is_mostly_loose(inner) else {})


def _is_mostly_loose(root: Path) -> bool:
    """Whether more images lie directly in a folder than in its subfolders, and these are named neither like splits nor like masks."""
    folders, files = _inside(root)
    if not folders or any(split_of(folder.name) or holds_drawings(folder.name) for folder in folders):
        return False
    loose = sum(file.suffix.lower() in IMAGE_ENDINGS for file in files)
    inner = (file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    return loose > sum(1 for _ in inner)


def _holds_images(root: Path) -> bool:
    """Whether a file below the folder may be an image, by its name."""
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if kind_of_folder(name) is None]
        if any(kind_of_file(name) is None and not name.endswith(_NO_IMAGE) for name in files):
            return True
    return False


def _unwrapped(root: Path) -> Path:
    """Goes down while there is nothing but one folder, which itself holds only folders."""
    while True:
        folders, files = _inside(root)
        if len(folders) != 1 or files or _inside(folders[0])[1]:
            return root
        root = folders[0]


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, without those that are passed over."""
    entries = sorted(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir() and kind_of_folder(entry.name) is None]
    return folders, [entry for entry in entries if not entry.is_dir() and kind_of_file(entry.name) is None]


def _label_tables(root: Path) -> list[Path]:
    """The tables directly in a folder with a column for files and one for classes; none if there are class folders."""
    folders, _ = _inside(root)
    are_splits = all(split_of(folder.name) for folder in folders)
    if any(_inside(folder)[0] for folder in folders) if are_splits else len(folders) > 1:
        return []
    files = [
        Path(os.path.relpath(file, root))
        for file in root.rglob("*")
        if kind_of_file(file.name) is None and file.is_file()
    ]
    stems = {path.stem for path in files}
    return [
        file
        for file in sorted(root.iterdir())
        if file.suffix.lower() in TABLE_ENDINGS
        and file.is_file()
        and not file.name.startswith(".")
        and not (file.suffix.lower() == ".txt" and file.stem in stems)  # a caption
        and _names_most(file, root, files)
    ]


def _names_most(file: Path, root: Path, files: list[Path]) -> bool:
    """Whether it is a table that gives at least half of the files a class. A text has no columns whose names could tell."""
    columns = (str(DataParams.model_fields[key].default) for key in ("image_column", "label_column"))
    try:
        table = LabelTable.read(file, *columns)
        return file.suffix.lower() != ".txt" or table.labels_of(root, files).num_files >= len(files) / 2
    except UserError:  # a table of something else
        return False
