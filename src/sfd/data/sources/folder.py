"""A folder of class subfolders of image files."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from sfd.data.files import FolderStore, ImageRefused, open_regular
from sfd.data.layout import FolderLayout
from sfd.data.sources.common import check_folder, check_name, in_order, in_threads, list_folder, nfc, printable
from sfd.data.sources.source import DataSource, Found, Rejected, Scan
from sfd.errors import UserError
from sfd.progress import track

if TYPE_CHECKING:
    import pandas as pd


class FolderSource(DataSource):
    """Files in class subfolders of ``data.root``. The manifest's paths are relative to the root."""

    expected_root = "a folder that holds one subfolder of images per class"

    def listing(self) -> dict[str, object]:
        """As :func:`sfd.data.sources.common.list_folder` says."""
        return list_folder(self)

    def check_root(self) -> None:
        """As :func:`sfd.data.sources.common.check_folder` says."""
        check_folder(self)

    def scan(self) -> Scan:
        """As :func:`scan_folder` says."""
        return scan_folder(self.root, self.params.max_pixels)

    def check_scan(self, scan: Scan, rejected_file: Path) -> None:
        """Raises :class:`UserError` if there is no class folder. Classes without a usable image are refused later, by name."""
        num_files = len(scan.found) + len(scan.rejected)
        if not num_files or not scan.classes:
            raise UserError(
                f"{self.root} has no class folder with images ({num_files} files lie directly in it, see {rejected_file}); make one "
                f"subfolder per class, as in {self.root / 'cat' / '1.png'}, or set data.source to digits"
            )

    def open_store(self, manifest: "pd.DataFrame") -> FolderStore:
        """As :class:`DataSource` says."""
        return FolderStore(self.root, manifest["path"].tolist())


def scan_folder(root: Path, max_pixels: int) -> Scan:
    """Decodes every file below ``root`` once; each one ends in ``found`` or, with its reason, in ``rejected``.

    The class of a file is the subfolder of ``root`` that it lies in, however deep; names are compared in Unicode form
    NFC, while paths stay as they are on disk. Links to files are read, links to folders outside the root followed once.
    Hidden files and folders (with a leading dot) are refused, except ``.gitkeep``, which only keeps a folder in git.
    What the folder's producer left beside the class folders is passed over (:class:`sfd.data.layout.FolderLayout`).

    Args:
        root: an existing folder.
        max_pixels: as in :func:`sfd.data.decoding.decode_rgb`.
    """
    files, classes, rejected = _walk(root)
    found: list[Found] = []
    outcomes = in_threads(lambda path: _examine(root, path, max_pixels), files)
    for outcome in track(outcomes, "prepare", "image", len(files)):
        if isinstance(outcome, Found):
            found.append(outcome)
        else:
            rejected.append(outcome)
    return in_order(found, rejected, classes)


def _walk(root: Path) -> tuple[list[Path], set[str], list[Rejected]]:
    """The files below ``root``, relative to it; the names of the class folders; the folders that are not entered."""
    files: list[Path] = []
    classes: set[str] = set()
    rejected: list[Rejected] = []
    real_root = root.resolve()
    followed: set[Path] = set()
    layout = FolderLayout.read(root)
    own_names = frozenset() if layout is None else layout.own_names
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            rejected.append(Rejected(_relative(folder, root), f"unreadable folder: {error.strerror}"))
            continue
        for entry in entries:
            check_name(entry.name)
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
    from sfd.data.decoding import decode_rgb

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
