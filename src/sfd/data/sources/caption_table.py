"""Tables of captions: CSV, TSV, JSONL, JSON (also COCO's), or a text with a line per caption. Several lines may tell of one image."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sfd.data.sources.common import nfc
from sfd.data.sources.source import Told
from sfd.data.sources.table import FILE_COLUMNS, csv_rows, json_rows, plain_names, text_rows
from sfd.errors import UserError
from sfd.params import DataParams

CAPTION_COLUMNS = (
    ("caption", "captions", "text", "texts", "prompt", "prompts", "description", "descriptions")
    + ("sentence", "sentences", "comment", "alt_text", "alt")
)  # fmt: skip
"""Names under which captions are looked for, in this order, if `data.caption_column` is left as it is; with a number behind them, too."""
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".txt")
MAX_JSON_BYTES = 2**20
"""Of what is told of one image."""
_USUAL = ("captions", "caption", "metadata")
"""How tables of captions are named."""
_NUMBERED = re.compile(rf"({'|'.join(CAPTION_COLUMNS)})[ _]?\d+", re.IGNORECASE)
_HEADER = re.compile(rf"({'|'.join(FILE_COLUMNS)})\s*[,;\t|]\s*({'|'.join(CAPTION_COLUMNS)})\s*", re.IGNORECASE)
"""The first line of a `.txt` that is a CSV."""
_NUMBER = re.compile(r"#\d+$")
"""Behind a file's name, the number of its caption (Flickr8k)."""
_NO_ROW = "the table does not name it"


class NoColumns(UserError):
    """A table without a column of files or of captions."""


@dataclass(frozen=True)
class CaptionRow:
    """One line of a table. ``name``: of the file, as it is written; ``texts``: its captions, not cleaned."""

    line: int
    name: str
    texts: tuple[str, ...]


def texts_in(cell: object) -> tuple[str, ...]:
    """The captions in a cell: one, several, or none."""
    if isinstance(cell, str):
        return (cell,)
    if isinstance(cell, list | tuple):
        return tuple(text for each in cell for text in texts_in(each))
    if isinstance(cell, Mapping):  # as data sets of the hub have them
        return texts_in(next((cell[name] for name in ("raw", *CAPTION_COLUMNS) if name in cell), None))
    return ()


def caption_columns(wanted: str, columns: Sequence[str]) -> list[str]:
    """The columns of captions; empty if there are none.

    ``wanted``: `data.caption_column`: names joined by `+`. If it is the default and missing, the usual names are taken.
    """
    names = wanted.split("+")
    if all(name in columns for name in names):
        return names
    if wanted != DataParams.model_fields["caption_column"].default:
        return []
    usual = next((name for usual in CAPTION_COLUMNS for name in columns if name.lower() == usual), None)
    return [usual] if usual is not None else [name for name in columns if _NUMBERED.fullmatch(name)]


def told_by_json(data: bytes, name: str, wanted: str) -> Told:
    """The captions in the JSON object that tells of one image. ``name``: of the file; ``wanted``: `data.caption_column`."""
    if len(data) > MAX_JSON_BYTES:
        return Told((), f"{name} has more than {MAX_JSON_BYTES} bytes")
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return Told((), f"{name} is not JSON")
    keys = caption_columns(wanted, list(facts)) if isinstance(facts, dict) else []
    return Told(texts_in([facts[key] for key in keys]), f"{name} has no key such as `{CAPTION_COLUMNS[0]}`")


@dataclass(frozen=True)
class CaptionTable:
    """Captions by the names of files.

    Attributes:
        place: the table, for messages.
        folder: the one that the names may be relative to; None for a table in an archive.
        rows: in their order.
    """

    place: str
    folder: Path | None
    rows: tuple[CaptionRow, ...]

    @classmethod
    def read(cls, file: Path, params: DataParams) -> "CaptionTable":
        """Reads a table in UTF-8, with or without BOM.

        Raises:
            UserError: the file is missing, is no such table (:class:`NoColumns` if it lacks a column), or has a line that cannot be read.
        """
        place = f"data.captions {file}"
        if file.suffix.lower() not in TABLE_ENDINGS:
            raise UserError(f"{place} must be a table: .csv, .tsv, .jsonl, .json or .txt; convert it")
        if not file.is_file():
            raise UserError(f"{place} does not exist; correct the path, or set data.captions to null")
        return cls.parse(file.read_bytes(), place, file.suffix, file.parent, params)

    @classmethod
    def parse(cls, data: bytes, place: str, ending: str, folder: Path | None, params: DataParams) -> "CaptionTable":
        """As :meth:`read`, of a content. ``ending``: of its name."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{place} is not UTF-8; save it as UTF-8") from None
        rows = list(_rows(text, place, ending.lower()))
        if not rows:
            raise NoColumns(
                f"{place} has no rows; write one image per line, after a first line that names the columns (.csv, .tsv)"
            )
        columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
        image = _file_column(params.image_column, columns)
        names = caption_columns(params.caption_column, columns)
        if image is None or not names:
            option = "image_column" if image is None else "caption_column"
            raise NoColumns(
                f"{place} has no column `{getattr(params, option)}`, but {', '.join(f'`{name}`' for name in columns)}; name the right one in "
                f"data.{option}"
            )
        found = (
            CaptionRow(line, str(cells.get(image) or "").strip(), texts_in([cells.get(name) for name in names]))
            for line, cells in rows
        )
        return cls(place, folder, tuple(found))

    @property
    def words(self) -> str:
        """Where the captions come from."""
        return f"from {self.place.removeprefix('data.captions ')}"

    def captions_of(self, root: Path, files: Sequence[str]) -> list[Told]:
        """What the rows tell of each file.

        A row names a file by its path relative to the root or to the table's folder, else by the end of its path, with or without its ending;
        or all rows do so below another folder (:func:`sfd.data.sources.table.plain_names`).

        Args:
            root: the folder of images.
            files: relative to it.
        """
        rows_of: dict[str, list[CaptionRow]] = {}
        names_of = [tuple(self._names(root, Path(file))) for file in files]
        plain = plain_names([_NUMBER.sub("", row.name) for row in self.rows], root, set(chain(*names_of)))
        for row, name in zip(self.rows, plain, strict=True):
            rows_of.setdefault(name, []).append(row)
        names = [next((name for name in own if name in rows_of), "") for own in names_of]
        uses: dict[str, int] = {}
        for name in names:
            uses[name] = uses.get(name, 0) + 1
        return [_told(rows_of.get(name, []), uses[name]) if name else Told((), _NO_ROW) for name in names]

    def _names(self, root: Path, relative: Path) -> Iterator[str]:
        """What a row may call a file, the most exact first."""
        beside = () if self.folder is None else (Path(os.path.relpath(root / relative, self.folder)),)
        inner = (Path(*relative.parts[depth:]) for depth in range(1, len(relative.parts)))
        for path in (relative, *beside, *inner):
            yield nfc(path.as_posix())
            yield nfc(path.with_suffix("").as_posix())


def else_tables(
    own: list[Told],
    words: str,
    root: Path,
    files: Sequence[str],
    params: DataParams,
    tables: Sequence[CaptionTable] = (),
) -> tuple[list[Told], str]:
    """What the images' own files tell of them; if of none, what tables do. And where that comes from.

    Args:
        own: by image. ``words``: where that comes from.
        root: the folder of images or archives. ``files``: the names that a table has for the images.
        params: section `data`.
        tables: those that are known already; without any, they are looked for in the folder.
    """
    if any(told.texts for told in own):
        return own, words
    try:
        found = tables or find_tables(root, params)
    except NoColumns as problem:
        return own, f"{words}; {problem}"
    return (joined(found, root, files), ", ".join(table.words for table in found)) if found else (own, words)


def find_tables(root: Path, params: DataParams) -> list[CaptionTable]:
    """The tables of captions in a folder, in its subfolders and beside it; most likely by their names first.

    Tables that are named like captions are taken all; else the first one that has a column of files and one of captions.

    Raises:
        NoColumns: there are tables that are named like captions, but none has a column of files and one of captions, and no other has.
        UserError: a table that is named like captions cannot be read.
    """
    inside = [root, *sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))]
    files = [file for folder in inside for file in _tables_in(folder)]
    beside = [file for file in _tables_in(root.parent) if _is_usual(file) or file.stem == root.name]
    usual = [file for file in files if _is_usual(file)] or beside
    others = [file for file in files if file.parent == root and file not in usual and file.suffix.lower() != ".txt"]
    found: list[CaptionTable] = []
    problems: list[NoColumns] = []
    for file in usual:
        try:
            found.append(CaptionTable.read(file, params))
        except NoColumns as problem:
            problems.append(problem)
    for file in others:
        if found:
            break
        with suppress(UserError):  # a file that may be about anything
            found.append(CaptionTable.read(file, params))
    if problems and not found:
        raise problems[0]
    return found


def _tables_in(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLE_ENDINGS and file.is_file())
    except OSError:
        return []


def _is_usual(file: Path) -> bool:
    return file.stem.lower().startswith(_USUAL) or file.stem.lower().endswith(("captions", "metadata"))


def joined(tables: Sequence[CaptionTable], root: Path, files: Sequence[str]) -> list[Told]:
    """What several tables tell of each file, one after the other."""
    each = [table.captions_of(root, files) for table in tables]
    return [_join(told) for told in zip(*each, strict=True)]


def _join(told: Iterable[Told]) -> Told:
    parts = list(told)
    texts = tuple(text for part in parts for text in part.texts)
    return Told(texts, "" if texts else next((part.problem for part in parts if part.problem != _NO_ROW), _NO_ROW))


def _told(rows: list[CaptionRow], uses: int) -> Told:
    if uses > 1:
        return Told((), f"line {rows[0].line} of the table names {uses} files")
    return Told(tuple(text for row in rows for text in row.texts))


def _file_column(wanted: str, columns: Sequence[str]) -> str | None:
    if wanted in columns:
        return wanted
    found = next((name for usual in FILE_COLUMNS for name in columns if name.lower() == usual), None)
    return found if DataParams.model_fields["image_column"].default == wanted else None


def _rows(text: str, place: str, ending: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    stream = io.StringIO(text, newline="")
    if ending == ".jsonl":
        yield from json_rows(stream, place)
    elif ending == ".json":
        yield from _whole_json(text, place)
    elif ending == ".txt" and not _HEADER.fullmatch(text.partition("\n")[0].strip()):
        pairs = text_rows(stream, place, CAPTION_COLUMNS, "caption, such as `1.png a red apple`")
        yield from ((line, {"file": cells["file"], "caption": cells["label"]}) for line, cells in pairs)
    else:
        yield from csv_rows(stream, place, ",;\t|")


def _whole_json(text: str, place: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A list of objects, an object from files to captions, or COCO's `images` and `annotations`. Lines are counted by entry."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{place} is no JSON; correct it") from None
    if (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and isinstance(content.get("annotations"), list)
    ):
        entries = [{"file": name, "caption": caption} for name, caption in _coco(content, place)]
    elif isinstance(content, dict):
        entries = [cells if isinstance(cells, dict) else {"caption": cells} for cells in content.values()]
        entries = [{"file": name} | cells for name, cells in zip(content, entries, strict=True)]
    else:
        entries = content
    if not isinstance(entries, list) or not all(isinstance(cells, dict) for cells in entries):
        raise NoColumns(f"{place} must hold a list of objects, or an object from files to captions; correct it")
    yield from enumerate(entries, 1)


def _coco(content: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        if not any("caption" in entry for entry in content["annotations"]):
            raise NoColumns(f"{place} has annotations without `caption`; name the file of captions")
        for entry in content["annotations"]:
            yield names[entry["image_id"]], entry["caption"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{place} is not as COCO writes captions: {error} is missing; correct it") from None
