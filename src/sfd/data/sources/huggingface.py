"""Data sets of the library ``datasets``, from a folder or from the hub. Images are read by row, as the encoded files in the cells."""

import glob
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfd.data.files import ImageRefused
from sfd.data.sources.arrangement import NO_CLASS
from sfd.data.sources.caption_table import caption_columns, texts_in
from sfd.data.sources.common import (
    Outcome,
    check_folder,
    class_of,
    collect,
    describe,
    in_threads,
    list_folder,
    nfc,
)
from sfd.data.sources.source import DataSource, Found, Rejected, Scan, Told
from sfd.errors import UserError
from sfd.params import DataParams

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

_ROWS_AT_ONCE = 64
_SHOWN = 300


class HuggingfaceSource(DataSource):
    """Rows of a data set in folder ``data.root``, or of the one on the hub that has this name."""

    expected_root = "a folder that holds a data set of the library `datasets`"

    def listing(self) -> dict[str, object]:
        """The files of the folder, or the commit on the hub.

        Raises:
            UserError: the hub does not know the name, or it cannot be reached.
        """
        if self.root.is_dir():
            return list_folder(self)
        return {"source": "huggingface", "root": self.params.root, "revision": _commit_on_hub(self.params)}

    def check_root(self) -> None:
        """As :func:`sfd.data.sources.common.check_folder` says, if the root is a folder."""
        if self.root.is_dir():
            check_folder(self)

    def scan(self) -> Scan:
        """As :func:`scan_dataset` says."""
        return replace(scan_dataset(self.params), layout="rows of a data set")

    def read_captions(self, found: list[Found]) -> tuple[list[Told], str]:
        """The cells of the columns of captions, a text or a list of texts in each."""
        dataset = _open(self.params)
        columns = caption_columns(self.params.caption_column, dataset.column_names)
        if not columns:
            raise UserError(
                f"data.captions is `auto`, but {self.params.root} has no column `{self.params.caption_column}`, but "
                f"{', '.join(f'`{name}`' for name in dataset.column_names)}; name the column of captions in data.caption_column"
            )
        cells = [dataset[name] for name in columns]
        rows = [int(item.path.rpartition("/")[2]) for item in found]
        told = [Told(texts_in([column[row] for column in cells]), "its cell is empty") for row in rows]
        return told, f"column {' and '.join(f'`{name}`' for name in columns)}"

    def open_store(self, manifest: "pd.DataFrame") -> "HuggingfaceStore":
        """As :class:`DataSource` says."""
        return HuggingfaceStore(self.params, manifest["path"].tolist())


def _commit_on_hub(params: DataParams) -> str:
    """The commit that ``data.root`` at ``data.revision`` is now. Asks the hub, unless the revision is a commit.

    Raises:
        UserError: the name is unknown or the hub cannot be reached.
    """
    revision = params.revision or ""
    if len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        commit = HfApi().dataset_info(params.root, revision=params.revision).sha
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"data.root {params.root} is no folder, and its revision on the hub is not known: {' '.join(str(error).split())[:300]}; "
            "correct the name, check the connection, set data.revision to a commit that was loaded before, or point data.root at a folder"
        ) from error
    return str(commit)


def scan_dataset(params: DataParams) -> Scan:
    """Decodes the image of every row once; each row ends in ``found`` or, with its reason, in ``rejected``. Paths are ``SPLIT/ROW``.

    Numbers of a ``ClassLabel`` become its names. If these are not in alphabetical order, each gets its number in front, so that the
    classes keep their order; numbers without names get leading zeros for the same reason.

    Raises:
        UserError: as :func:`open_dataset`.
    """
    return collect(_outcomes(open_dataset(params), params))


def _outcomes(dataset: "Dataset", params: DataParams) -> Iterator[Outcome]:
    has_classes = params.label_column in dataset.column_names
    name_of = _class_names(dataset.features[params.label_column]) if has_classes else lambda _: NO_CLASS

    def examine(entry: tuple[int, Any, object]) -> Outcome:
        row, cell, value = entry
        path, label = f"{params.split}/{row:08d}", None
        try:
            label = name_of(value)
            return describe(path, str(label), _file_in(cell), params.max_pixels), label
        except ImageRefused as refusal:
            return Rejected(path, str(refusal)), label

    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        part = dataset[start : start + _ROWS_AT_ONCE]
        cells = part[params.image_column]
        values = part[params.label_column] if has_classes else [None] * len(cells)
        yield from in_threads(examine, zip(range(start, start + len(cells)), cells, values, strict=True))


def _class_names(feature: object) -> Callable[[object], int | str]:
    """From a cell of the label column to its class, which raises :class:`ImageRefused` where there is none."""
    from datasets import ClassLabel

    if not isinstance(feature, ClassLabel):
        return class_of
    names = [nfc(name) for name in feature.names]
    width = len(str(len(names) - 1))
    shown = names if names == sorted(set(names)) else [f"{row:0{width}d} {name}" for row, name in enumerate(names)]

    def name_of(value: object) -> str:
        number = class_of(value)
        if not isinstance(number, int) or number >= len(shown):
            raise ImageRefused(f"label: {value!r} is none of the {len(shown)} classes")
        return shown[number]

    return name_of


def _file_in(cell: Any) -> bytes:
    """The encoded image of a cell. Raises :class:`ImageRefused` if it is empty or only names a file."""
    data = None if cell is None else cell["bytes"]
    if data is None:
        raise ImageRefused("no image: the cell holds no bytes")
    return bytes(data)


def open_dataset(params: DataParams) -> "Dataset":
    """The rows of ``data.split`` with two columns, the image not decoded. Nothing is copied into memory. Captioned images need no class.

    Raises:
        UserError: the data set, a split or a column is missing, the image column holds no images, or the hub cannot be reached.
    """
    dataset = _open(params)
    return dataset.select_columns(
        [name for name in (params.image_column, params.label_column) if name in dataset.column_names]
    )


def _open(params: DataParams) -> "Dataset":
    """As :func:`open_dataset`, with all columns."""
    import pyarrow as pa
    from datasets import Image, concatenate_datasets
    from datasets.exceptions import DatasetsError

    try:
        dataset = concatenate_datasets([_load_split(params, split) for split in params.split.split("+")])
        _check_columns(dataset, params)
        return dataset.cast_column(params.image_column, Image(decode=False))
    except (OSError, ValueError, RuntimeError, TypeError, pa.ArrowException, DatasetsError) as error:
        raise UserError(
            f"data.root {params.root}: {' '.join(str(_cause(error)).split())[:_SHOWN]}; {_remedy(params, error)}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What went wrong first: the library says of a broken table only that an error occurred."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _load_split(params: DataParams, split: str) -> "Dataset":
    from datasets import Dataset, load_dataset, load_from_disk

    root = Path(params.root)
    if not root.is_dir():
        return load_dataset(params.root, split=split, revision=params.revision)
    if not any((root / name).is_file() for name in ("state.json", "dataset_dict.json")):
        real = str(root.resolve())
        if glob.has_magic(real) or "::" in real:
            raise UserError(
                f"data.root is {real}, but the library `datasets` takes the signs * ? [ and :: in a path for a pattern, and may read other "
                "folders; rename the folder"
            )
        return load_dataset(str(root), split=split)
    saved = load_from_disk(str(root))
    splits = {str(saved.split or split): saved} if isinstance(saved, Dataset) else saved
    if split not in splits:
        raise ValueError(f"it has no split `{split}`, but {', '.join(map(str, splits))}")
    return splits[split]


def _check_columns(dataset: "Dataset", params: DataParams) -> None:
    is_given = params.label_column != DataParams.model_fields["label_column"].default
    needed = ["image_column", *(["label_column"] if params.captions is None or is_given else [])]
    for key in needed:
        name = getattr(params, key)
        if name not in dataset.column_names:
            raise UserError(
                f"data.{key} is `{name}`, but {params.root} has the columns {', '.join(dataset.column_names)}; name one of them"
            )


def _remedy(params: DataParams, error: Exception) -> str:
    if Path(params.root).is_dir():
        return "correct data.split and data.image_column, or save the data set again with `save_to_disk`"
    if isinstance(error, ConnectionError):
        return (
            "check the connection, or fetch it elsewhere (`hf download --repo-type dataset NAME --local-dir FOLDER`) and point data.root "
            "at the folder"
        )
    return "point data.root at a folder that holds the data set, or correct its name on the hub, data.revision and data.split"


class HuggingfaceStore:
    """Images of a data set's rows, memory-mapped. Workers open the same files.

    Args:
        params: section `data`.
        paths: the manifest's, ``SPLIT/ROW``.

    Raises:
        UserError: as :func:`open_dataset`, or the manifest is of another source.
    """

    def __init__(self, params: DataParams, paths: list[str]) -> None:
        if not all(path.startswith(f"{params.split}/") and path.rpartition("/")[2].isdecimal() for path in paths):
            raise UserError(
                f"the manifest was made from another data.source or data.split than `{params.split}`; rerun `dvc repro prepare`"
            )
        self.paths = paths
        self._root, self._column = params.root, params.image_column
        self._images = open_dataset(params).select_columns([params.image_column])

    def read(self, row: int) -> bytes:
        """As :class:`sfd.data.files.ImageStore` says."""
        place = self._place(row)
        if place >= len(self._images):
            raise ImageRefused(f"the data set has only {len(self._images)} rows")
        return _file_in(self._images[place][self._column])

    def place(self, row: int) -> str:
        """As :class:`sfd.data.files.ImageStore` says."""
        return f"{self._root} row {self.paths[row]}"

    def _place(self, row: int) -> int:
        return int(self.paths[row].rpartition("/")[2])
