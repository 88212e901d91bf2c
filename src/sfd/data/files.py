"""The files of images, wherever they lie: how they are opened, and read by row of a manifest. No torch, no Pillow."""

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_MAX_METADATA_BYTES = 2**20


class ImageRefused(Exception):
    """A file that is not used. The message is a short reason, `kind: detail` or just `kind`, without the path."""


class Picture(NamedTuple):
    """An image file without its metadata.

    Attributes:
        data: a file of the same format that holds the pixels and what is needed to show them.
        metadata: what may tell the orientation, by Pillow's names, and not checked: "exif", "Raw profile type exif", "xmp".
    """

    data: bytes
    metadata: dict[str, Any]


def max_file_bytes(max_pixels: int) -> int:
    """Longer files are not read. No format has more than 8 bytes per pixel; metadata come on top."""
    return 8 * max_pixels + _MAX_METADATA_BYTES


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises :class:`ImageRefused` if an image that has not been decoded yet has too many pixels."""
    if width * height > max_pixels:
        raise ImageRefused(f"too many pixels: {width} x {height}, at most {max_pixels}")


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading.

    Raises:
        ImageRefused: it is anything else (a pipe, a broken or looping link), is missing or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageRefused("not a regular file")
        return path.open("rb")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ImageRefused("symbolic link loop") from None
        if error.errno == errno.ENOENT and path.is_symlink():
            raise ImageRefused("broken symbolic link") from None
        raise ImageRefused(f"unreadable: {error.strerror}") from None


def read_whole(path: Path, max_pixels: int) -> bytes:
    """The content of an image file. Raises :class:`ImageRefused` as :func:`open_regular` does, or if it is longer than images get."""
    with open_regular(path) as file:
        size, limit = os.fstat(file.fileno()).st_size, max_file_bytes(max_pixels)
        if size > limit:
            raise ImageRefused(f"too large: {size} bytes, at most {limit}")
        return file.read()


class ImageStore(Protocol):
    """The files of a manifest's images, by row number. A data loader sends it to its processes, forked or spawned."""

    paths: list[str]
    """The manifest's."""

    def read(self, row: int) -> bytes:
        """The whole file. Raises :class:`ImageRefused` if it is not there any more."""

    def place(self, row: int) -> str:
        """Where a user finds it."""


class FolderStore:
    """Files in a folder that the paths are relative to."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def read(self, row: int) -> bytes:
        """As :class:`ImageStore` says."""
        with open_regular(self.root / self.paths[row]) as file:
            return file.read()

    def place(self, row: int) -> str:
        """As :class:`ImageStore` says."""
        return str(self.root / self.paths[row])
