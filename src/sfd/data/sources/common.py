"""What sources share: the order of a scan, classes, names, checks of a folder, and its listing."""

import hashlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sfd.data.files import ImageRefused
from sfd.data.layout import FolderLayout
from sfd.data.sources.source import DataSource, Found, Rejected, Scan, Told
from sfd.errors import UserError
from sfd.progress import track

_FILES_IN_FLIGHT = 1024
MAX_CAPTION_BYTES = 2**16
"""Of the captions of one image."""
T = TypeVar("T")
R = TypeVar("R")


def check_folder(source: DataSource) -> None:
    """Raises :class:`UserError` unless the root is a folder that can be read, is complete, and does not hold the results."""
    root, remedy = source.root, f"point data.root at {source.expected_root}"
    if not root.exists():
        raise UserError(f"data.root {root} does not exist; {remedy}")
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder; {remedy}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"data.root {root} is not readable for this user; change its permissions (chmod), or {remedy}")
    layout = FolderLayout.read(root)
    if layout is not None and not layout.is_complete(root):
        raise UserError(
            f"data.root {root} is being made by `{layout.made_by}`; give that command again until it is complete"
        )
    if source.prepared.resolve().is_relative_to(root.resolve()):
        raise UserError(f"data.root {root} holds the results folder {source.prepared}, which is no image; {remedy}")


def list_folder(source: DataSource) -> dict[str, object]:
    """The number of files below the root, and a digest of their paths, sizes and modification times.

    Raises:
        UserError: the root is not a folder.
    """
    if not source.root.is_dir():
        raise UserError(f"data.root {source.root} is not a folder; write the path of {source.expected_root}")
    return _summarise(source, sorted(_lines(source.root)))


def list_file(source: DataSource) -> dict[str, object]:
    """As :func:`list_folder`, if the root is a file."""
    return _summarise(source, [line_of(str(source.root), source.root.name)])


def _summarise(source: DataSource, lines: list[str]) -> dict[str, object]:
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return {"source": source.params.source, "num_files": len(lines), "sha256": digest}


def _lines(root: Path) -> Iterator[str]:
    """One line per file, named relative to the root; linked folders are entered once, links within them are only named."""
    links: list[str] = []
    for folder, folders, files in os.walk(root):
        links += [linked for name in folders if os.path.islink(linked := os.path.join(folder, name))]
        for path in (os.path.join(folder, name) for name in files):
            yield line_of(path, os.path.relpath(path, root))
    for link in links:
        target = os.path.realpath(link)
        for folder, _, files in os.walk(target):
            for path in (os.path.join(folder, name) for name in files):
                yield line_of(path, os.path.join(os.path.relpath(link, root), os.path.relpath(path, target)))


def line_of(path: str, name: str) -> str:
    """Name, size and modification time of a file that is there."""
    try:
        status = os.stat(path)
    except OSError:  # a broken link or a loop; stage `prepare` refuses it by name
        status = os.lstat(path)
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def in_order(found: Iterable[Found], rejected: Iterable[Rejected], classes: Iterable[str]) -> Scan:
    """A scan's lists in the manifest's order, which does not depend on the order of reading."""
    return Scan(
        sorted(found, key=lambda item: (item.label, item.path)),
        sorted(rejected, key=lambda item: item.path),
        sorted(classes),
    )


Outcome = tuple[Found | Rejected, int | str | None]
"""What became of one image, and its class as the source has it: a number, a name, or unknown."""


def collect(outcomes: Iterable[Outcome], total: int | None = None) -> Scan:
    """Classes that are numbers get leading zeros, so that the order of their names is the order of the numbers.

    The classes are those that occur, in refused images too. ``total``: the number of outcomes, if it is known, for the progress.
    """
    found: list[Found] = []
    rejected: list[Rejected] = []
    classes: set[str] = set()
    numbers: set[str] = set()
    for item, label in track(outcomes, "prepare", "image", total):
        if isinstance(item, Found):
            found.append(item)
        else:
            rejected.append(item)
        if label is not None:
            classes.add(str(label))
        if isinstance(label, int):
            numbers.add(str(label))
    width = max(map(len, numbers), default=0)
    names = {label: label.zfill(width) if label in numbers else label for label in classes}
    return in_order([replace(item, label=names[item.label]) for item in found], rejected, names.values())


def class_of(label: object) -> int | str:
    """A class as a file or a table states it. Raises :class:`ImageRefused` unless it is a number from 0 or a name."""
    if isinstance(label, str) and label.strip() and printable(label) == label:
        return nfc(label)
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return label
    raise ImageRefused(f"label: {str(label)[:40]!r} is neither a number from 0 nor a name")


def in_threads(examine: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in the order of ``items``. Threads suffice, as Pillow and hashlib release the interpreter lock."""
    remaining = iter(items)
    with ThreadPoolExecutor() as pool:
        while part := list(islice(remaining, _FILES_IN_FLIGHT)):
            yield from pool.map(examine, part)


def describe(path: str, label: str, data: bytes, max_pixels: int) -> Found:
    """An image whose file is ``data``. Raises :class:`ImageRefused` as :func:`sfd.data.decoding.decode_rgb` does."""
    from sfd.data.decoding import decode_whole
    from sfd.data.near import thumbnail

    image, is_transparent = decode_whole(data, max_pixels)
    sha256 = hashlib.sha256(data).hexdigest()
    size = image.width, image.height, len(data)
    return Found(path, label, *size, sha256, thumbnail=thumbnail(image), is_transparent=is_transparent)


def check_name(name: str) -> None:
    """Raises :class:`UserError` if Python does not read names as UTF-8, so that this one, perhaps a class, would be another one."""
    if not name.isascii() and sys.getfilesystemencoding() != "utf-8":
        raise UserError(
            f"this Python reads names as {sys.getfilesystemencoding()}, so {name!a} would become another name; set PYTHONUTF8=1"
        )


def told_by(data: bytes, name: str) -> Told:
    """The captions in a text file of UTF-8, one per line. ``name``: of the file, for the reason why there are none."""
    if len(data) > MAX_CAPTION_BYTES:
        return Told((), f"{name} has more than {MAX_CAPTION_BYTES} bytes")
    try:
        lines = tuple(line for line in data.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError:
        return Told((), f"{name} is not UTF-8")
    return Told(lines, "" if lines else f"{name} is empty")


def printable(text: str) -> str:
    """File names that are not UTF-8 hold lone surrogates, which no UTF-8 file can store."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def nfc(name: str) -> str:
    """A class's name in the Unicode form in which names are compared."""
    return unicodedata.normalize("NFC", printable(name))
