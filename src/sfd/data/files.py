"""The files of images, wherever they lie: how they are opened, and read by row of a manifest. No torch, no Pillow."""

import errno
import io
import stat
from pathlib import Path
from typing import Protocol


class ImageRefused(Exception):
    """A file that is not used. The message is a short reason, `kind: detail` or just `kind`, without the path."""


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
