"""Where images come from: the built-in digits, the walk through a folder of class subfolders, and what all sources share."""

import hashlib
import io
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from sfd.data.images import ImageRefused, decode_rgb, open_regular
from sfd.data.synthetic import OWN_NAMES, is_generated

_FILES_IN_FLIGHT = 1024
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Found:
    """An accepted image. Its size is that of the upright image, in pixels."""

    path: str
    label: str
    width: int
    height: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Rejected:
    """A file or folder that is not used, and why. ``path`` is relative to the root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """All that a root holds. ``classes`` also names those without an accepted image."""

    found: list[Found]
    rejected: list[Rejected]
    classes: list[str]


def write_digits(out: Path) -> None:
    """Writes scikit-learn's 1,797 handwritten digits as 8x8 greyscale PNG files ``out/CLASS/NUMBER.png``.

    Names and bytes are the same on every run. Source: load_digits, values 0..16, here scaled to 0..255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (scan, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = out / str(target)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8)).save(folder / f"{index:04d}.png")


def scan_folder(root: Path, max_pixels: int) -> Scan:
    """Decodes every file below ``root`` once; each one ends in ``found`` or, with its reason, in ``rejected``.

    The class of a file is the subfolder of ``root`` that it lies in, however deep; names are compared in Unicode form
    NFC, while paths stay as they are on disk. Links to files are read, links to folders outside the root followed once.
    Hidden files and folders (with a leading dot) are refused, except ``.gitkeep``, which only keeps a folder in git.
    What `sfd generate` leaves beside its class folders is passed over.

    Args:
        root: an existing folder.
        max_pixels: as in :func:`sfd.data.images.decode_rgb`.
    """
    files, classes, rejected = _walk(root)
    found: list[Found] = []
    outcomes = in_threads(lambda path: _examine(root, path, max_pixels), files)
    for outcome in tqdm(outcomes, total=len(files), desc="images", disable=None):
        if isinstance(outcome, Found):
            found.append(outcome)
        else:
            rejected.append(outcome)
    return in_order(found, rejected, classes)


def in_order(found: Iterable[Found], rejected: Iterable[Rejected], classes: Iterable[str]) -> Scan:
    """A scan's lists in the manifest's order, which does not depend on the order of reading."""
    return Scan(
        sorted(found, key=lambda item: (item.label, item.path)),
        sorted(rejected, key=lambda item: item.path),
        sorted(classes),
    )


Outcome = tuple[Found | Rejected, int | str | None]
"""What became of one image, and its class as the source has it: a number, a name, or unknown."""


def collect(outcomes: Iterable[Outcome]) -> Scan:
    """Classes that are numbers get leading zeros, so that the order of their names is the order of the numbers.

    The classes are those that occur, in refused images too.
    """
    found: list[Found] = []
    rejected: list[Rejected] = []
    classes: set[str] = set()
    numbers: set[str] = set()
    for item, label in tqdm(outcomes, desc="images", disable=None):
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
    """An image whose file is ``data``. Raises :class:`ImageRefused` as :func:`sfd.data.images.decode_rgb` does."""
    image = decode_rgb(io.BytesIO(data), max_pixels)
    return Found(path, label, image.width, image.height, len(data), hashlib.sha256(data).hexdigest())


def _walk(root: Path) -> tuple[list[Path], set[str], list[Rejected]]:
    """The files below ``root``, relative to it; the names of the class folders; the folders that are not entered."""
    files: list[Path] = []
    classes: set[str] = set()
    rejected: list[Rejected] = []
    real_root = root.resolve()
    followed: set[Path] = set()
    own_names = OWN_NAMES if is_generated(root) else frozenset()
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            rejected.append(Rejected(_relative(folder, root), f"unreadable folder: {error.strerror}"))
            continue
        for entry in entries:
            if folder == root and entry.name in own_names:
                continue
            reason = _link_refusal(entry, real_root, followed)
            if reason is not None:
                rejected.append(Rejected(_relative(entry, root), reason))
            elif entry.is_dir() and entry.name.startswith("."):
                rejected.append(Rejected(_relative(entry, root), "hidden folder"))
            elif entry.is_dir():
                pending.append(entry)
                if folder == root:
                    classes.add(nfc(entry.name))
            elif entry.name != ".gitkeep":
                files.append(entry.relative_to(root))
    return sorted(files), classes, rejected


def _link_refusal(entry: Path, real_root: Path, followed: set[Path]) -> str | None:
    """Why a link to a folder is not followed. A followed target is remembered, so that no walk is endless."""
    if not (entry.is_symlink() and entry.is_dir()):
        return None
    target = entry.resolve()
    if entry.parent.resolve().is_relative_to(target) or real_root.is_relative_to(target):
        return "symbolic link loop"
    if target.is_relative_to(real_root):
        return "symbolic link to a folder of the same root, which is read there"
    if target in followed:
        return "symbolic link to a folder that another link has led to"
    followed.add(target)
    return None


def _examine(root: Path, relative: Path, max_pixels: int) -> Found | Rejected:
    path = printable(relative.as_posix())
    try:
        if path != relative.as_posix():
            raise ImageRefused("file name is not valid UTF-8")
        if len(relative.parts) == 1:
            raise ImageRefused("not in a class folder")
        if relative.name.startswith("."):
            raise ImageRefused("hidden file")
        with open_regular(root / relative) as file:
            image = decode_rgb(file, max_pixels)
            size_bytes = file.seek(0, 2)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except ImageRefused as refusal:
        return Rejected(path, str(refusal))
    return Found(path, nfc(relative.parts[0]), image.width, image.height, size_bytes, sha256)


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def printable(text: str) -> str:
    """File names that are not UTF-8 hold lone surrogates, which no UTF-8 file can store."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def nfc(name: str) -> str:
    """A class's name in the Unicode form in which names are compared."""
    return unicodedata.normalize("NFC", printable(name))
