"""A table that names the class of each image file: CSV, TSV, JSONL, or a text with a line per image."""

import csv
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from sfd.data.files import ImageRefused
from sfd.data.sources.common import class_of, nfc
from sfd.data.sources.source import Rejected
from sfd.errors import UserError
from sfd.params import DataParams

FILE_COLUMNS = ("file_name", "file", "filename", "image", "path", "image_path", "name", "id", "image_id")
CLASS_COLUMNS = ("label", "class", "category", "class_name", "labels", "target")
"""Names under which a column is looked for, in this order, if `data.image_column` or `data.label_column` is left as it is."""
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".txt")
_PAIR = re.compile(r"(?P<file>.+?\.\w{2,5}|[^\s,;]+)[\s,;]+(?P<label>.*\S)\s*")
"""A line of a text: a file's name, which may hold blanks if it has an ending; a separator; the class, which may hold blanks."""
_SHOWN = 5


def check_table(file: Path) -> None:
    """Raises :class:`UserError` unless the file is there and its name is that of a table."""
    if file.suffix.lower() not in TABLE_ENDINGS:
        raise UserError(f"data.labels {file} must be a table: .csv, .tsv, .jsonl or .txt; convert it")
    if not file.is_file():
        raise UserError(f"data.labels {file} does not exist; correct the path, or set data.labels to null")


@dataclass(frozen=True)
class Row:
    """One line of a table. ``name``: of the file, as it is written; ``label``: the cell, not checked."""

    line: int
    name: str
    label: object


class Labels:
    """The rows of a table for the files of a folder.

    Attributes:
        without_file: the rows that name no file.
    """

    def __init__(self, table: Path, row_of: Mapping[Path, Row], without_file: list[Rejected]) -> None:
        self.table, self.without_file = table, without_file
        self._row_of = row_of
        uses: dict[int, int] = {}
        for row in row_of.values():
            uses[row.line] = uses.get(row.line, 0) + 1
        self._uses = uses

    @property
    def num_files(self) -> int:
        """Files that a row names."""
        return len(self._row_of)

    def label_of(self, relative: Path) -> int | str:
        """The class of a file. Raises :class:`ImageRefused` if the table does not tell it."""
        row = self._row_of.get(relative)
        if row is None:
            raise ImageRefused(f"no label: {self.table.name} does not name it")
        if self._uses[row.line] > 1:
            raise ImageRefused(f"label: line {row.line} of {self.table.name} names {self._uses[row.line]} files")
        text = row.label.strip() if isinstance(row.label, str) else row.label
        is_number = isinstance(text, str) and text.isascii() and text.isdecimal() and str(int(text)) == text
        return class_of(int(str(text)) if is_number else text)


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table of labels, and the names of the two columns."""

    file: Path
    image_column: str
    label_column: str
    rows: tuple[Row, ...]

    @property
    def words(self) -> str:
        """Where the classes come from."""
        return f"classes from {self.file.name} (columns `{self.image_column}` and `{self.label_column}`)"

    @classmethod
    def read(cls, file: Path, image_column: str, label_column: str) -> "LabelTable":
        """Reads a table in UTF-8, with or without BOM; the separator of a CSV is the most frequent of comma, semicolon and tab in its
        first line. A `.txt` has no names of columns, but a line per image: its name, a blank, tab, comma or semicolon, its class.

        Args:
            file: `.csv`, `.tsv`, `.jsonl` or `.txt`.
            image_column: name of the column of files. If it is the option's default and missing, one of :data:`FILE_COLUMNS` is taken.
            label_column: the same for the classes, with :data:`CLASS_COLUMNS`.

        Raises:
            UserError: the file is missing, is no such table, or lacks a column.
        """
        check_table(file)
        ending = file.suffix.lower()
        read = json_rows if ending == ".jsonl" else text_rows if ending == ".txt" else csv_rows
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                rows = list(read(stream, f"data.labels {file}"))
        except UnicodeDecodeError:
            raise UserError(f"data.labels {file} is not UTF-8; save it as UTF-8") from None
        if not rows:
            raise UserError(
                f"data.labels {file} has no rows; write one image per line, after a first line that names the columns (.csv, .tsv)"
            )
        columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
        image = _column(file, "image_column", image_column, FILE_COLUMNS, columns)
        label = _column(file, "label_column", label_column, CLASS_COLUMNS, columns)
        found = tuple(Row(line, str(cells.get(image) or "").strip(), cells.get(label)) for line, cells in rows)
        return cls(file, image, label, found)

    def labels_of(self, root: Path, files: Sequence[Path]) -> Labels:
        """The row of each file.

        A row names a file by its path relative to the root or to the table's folder, else by its name alone, with or without its ending;
        or all rows do so below another folder (:func:`plain_names`).

        Args:
            root: the folder of images.
            files: relative to it.

        Raises:
            UserError: two rows give one file different classes, or no row names any file.
        """
        names_of = {path: tuple(self._names(root, path)) for path in files}
        by_name = self._by_name(root, set(chain(*names_of.values())))
        row_of = {
            path: row for path, names in names_of.items() if (row := next(filter(None, map(by_name.get, names)), None))
        }
        if files and not row_of:
            raise UserError(
                f"data.labels {self.file} names no image of {root}: column `{self.image_column}` begins with {self.rows[0].name!r}, but "
                f"images are such as {files[0].as_posix()!r}; name the column of paths relative to data.root in data.image_column, or "
                "correct the table"
            )
        used = {row.line for row in row_of.values()}
        missing = [row for row in by_name.values() if row.line not in used]
        where = f"of {self.file.name} names it"
        return Labels(
            self.file,
            row_of,
            [Rejected(row.name or f"(line {row.line})", f"no such file: line {row.line} {where}") for row in missing],
        )

    def _by_name(self, root: Path, known: Collection[str]) -> dict[str, Row]:
        found: dict[str, Row] = {}
        clashes = []
        for row, name in zip(self.rows, plain_names([row.name for row in self.rows], root, known), strict=True):
            first = found.setdefault(name if row.name else f"(line {row.line})", row)
            if first.label != row.label:
                clashes.append(f"{row.name} in lines {first.line} ({first.label}) and {row.line} ({row.label})")
        if clashes:
            raise UserError(
                f"data.labels {self.file} gives {len(clashes)} files two classes: {'; '.join(clashes[:_SHOWN])}; keep one row of each"
            )
        return found

    def _names(self, root: Path, relative: Path) -> Iterator[str]:
        """What a row may call a file, the most exact first."""
        beside = Path(os.path.relpath(root / relative, self.file.parent))
        for path in (relative, beside, Path(relative.name)):
            yield nfc(path.as_posix())
            yield nfc(path.with_suffix("").as_posix())


def plain_names(names: Sequence[str], root: Path, known: Collection[str]) -> list[str]:
    """Paths as rows have them, with slashes, relative to the root if they lie below it.

    If none of them is known, and all begin with the same folders, these are cut off until one is: so the images lay when the table was written.

    ``known``: what a row may call a file.
    """
    absolute = PurePosixPath(os.path.abspath(root))
    paths = [PurePosixPath(nfc(name.replace("\\", "/"))) for name in names]
    paths = [path.relative_to(absolute) if path.is_relative_to(absolute) else path for path in paths]
    folders = [path.parent.parts for path in paths if path.name]
    shared = len(os.path.commonprefix(folders)) if not any(str(path) in known for path in paths) else 0
    for depth in range(1, shared + 1):
        cut = [PurePosixPath(*path.parts[depth:]) for path in paths]
        if any(str(path) in known for path in cut):
            return [str(path) for path in cut]
    return [str(path) for path in paths]


Cells = Mapping[str, Any]


def csv_rows(stream: TextIO, place: str, separators: str = ",;\t") -> Iterator[tuple[int, Cells]]:
    """Number and cells of each line. The most frequent of the separators in the first line, which names the columns, is taken.

    ``place``: the option and the file, for messages. Raises :class:`UserError` naming a line that cannot be read.
    """
    header = stream.readline()
    stream.seek(0)
    reader = csv.DictReader(stream, delimiter=max(separators, key=header.count), skipinitialspace=True)
    try:
        for cells in reader:
            if None in cells:
                raise UserError(
                    f"line {reader.line_num} of {place} has more cells than the first line names columns; put cells that "
                    "hold the separator in double quotes, and name the columns in the first line"
                )
            yield reader.line_num, {name.strip(): cell for name, cell in cells.items()}
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {place} cannot be read: {error}; correct it") from None


def json_rows(stream: TextIO, place: str) -> Iterator[tuple[int, Cells]]:
    """As :func:`csv_rows`, of a file with one JSON object per line."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise UserError(
                f"line {number} of {place} is no JSON object; write one object per line, such as "
                '{"file_name": "1.png", "label": "cat"}'
            )
        yield number, cells


def text_rows(
    stream: TextIO, place: str, second: Sequence[str] = CLASS_COLUMNS, example: str = "class, such as `1.png cat`"
) -> Iterator[tuple[int, Cells]]:
    """As :func:`csv_rows`, of lines with a file's name and what is told of it, which become the columns `file` and `label`.

    ``second``: usual names of the second column; a line that names the columns is passed over. ``example``: ends the message about a bad line.
    """
    for number, line in enumerate(stream, 1):
        if not line.strip() or line.startswith("#"):
            continue
        pair = _PAIR.fullmatch(line.strip("\r\n"))
        if pair is None:
            raise UserError(f"line {number} of {place} is no pair; write a file's name, a blank and its {example}")
        name, label = pair["file"].strip("\"'"), pair["label"].strip("\"'")
        if name.lower() not in FILE_COLUMNS or label.lower() not in second:  # else it names the columns
            yield number, {"file": name, "label": label}


def _column(file: Path, option: str, wanted: str, usual: Sequence[str], columns: Sequence[str]) -> str:
    if wanted in columns:
        return wanted
    is_default = DataParams.model_fields[option].default == wanted
    found = next((name for usual_name in usual for name in columns if name.lower() == usual_name), None)
    if is_default and found is not None:
        return found
    raise UserError(
        f"data.labels {file} has no column `{wanted}`, but {', '.join(f'`{name}`' for name in columns)}; name the right one in "
        f"data.{option}"
    )
