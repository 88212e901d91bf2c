"""A folder of images: class subfolders, split folders above them, or no subfolders at all; labels from folders or from a table."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sfd.data.companions import kind_by_content, kind_of_file, kind_of_folder
from sfd.data.files import FolderStore, ImageRefused, read_whole
from sfd.data.layout import FolderLayout
from sfd.data.sources.arrangement import LOOSE, Arrangement, arrange
from sfd.data.sources.caption_table import MAX_JSON_BYTES, CaptionTable, else_tables, told_by_json
from sfd.data.sources.common import (
    MAX_CAPTION_BYTES,
    Outcome,
    check_folder,
    check_name,
    collect,
    describe,
    in_threads,
    line_of,
    list_folder,
    nfc,
    printable,
    told_by,
)
from sfd.data.sources.source import DataSource, Found, Rejected, Scan, Told
from sfd.data.sources.table import Labels, LabelTable, check_table
from sfd.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class FolderSource(DataSource):
    """Files in and below ``data.root``. The manifest's paths are relative to the root."""

    expected_root = "a folder of images: one subfolder per class, or train/ and val/ above them, or no subfolders"

    def listing(self) -> dict[str, object]:
        """As :func:`sfd.data.sources.common.list_folder` says; a table of labels may lie elsewhere.

        Raises:
            UserError: the root is not a folder, or the table is not there.
        """
        found = list_folder(self)
        labels = self.params.labels
        if labels is None:
            return found
        check_table(labels)
        return found | {"labels": line_of(str(labels), labels.name)}

    def check_root(self) -> None:
        """As :func:`sfd.data.sources.common.check_folder` says. A table of labels must be there, too."""
        check_folder(self)
        self._table()

    def scan(self) -> Scan:
        """As :func:`scan_folder` says."""
        return scan_folder(self.root, self.params.max_pixels, self.params.layout, self._table())

    def check_scan(self, scan: Scan, listed: str) -> None:
        """Raises :class:`UserError` if there are no images or most lie beside the class folders. Empty classes are refused later, by name."""
        if not scan.found and not scan.rejected:
            raise UserError(
                f"{self.root} has no images (passed over: {scan.passed_over_words}); point data.root at {self.expected_root}"
            )
        num_loose = sum(item.reason == LOOSE for item in scan.rejected)
        if num_loose > len(scan.found):
            raise UserError(
                f"{num_loose} files in {self.root} lie in no class folder, and {len(scan.found)} lie in one; set data.layout to `flat` to "
                f"read all of them without classes, name a table of their classes in data.labels, or make one subfolder per class, as in "
                f"{self.root / 'cat' / '1.png'} (refused files are {listed})"
            )

    def read_captions(self, found: list[Found]) -> tuple[list[Told], str]:
        """As :class:`DataSource` says. `auto`: `NAME.txt` or `NAME.caption` beside the images, a caption per line, or `NAME.json`;
        else tables (:func:`sfd.data.sources.caption_table.find_tables`)."""
        files = [item.path for item in found]
        if isinstance(self.params.captions, Path):
            table = CaptionTable.read(self.params.captions, self.params)
            return table.captions_of(self.root, files), table.words
        beside = list(in_threads(lambda file: _told_beside(self.root / file, self.params.caption_column), files))
        return else_tables(beside, "in files beside the images", self.root, files, self.params)

    def open_store(self, manifest: "pd.DataFrame") -> FolderStore:
        """As :class:`DataSource` says."""
        return FolderStore(self.root, manifest["path"].tolist())

    def _table(self) -> LabelTable | None:
        labels = self.params.labels
        return None if labels is None else LabelTable.read(labels, self.params.image_column, self.params.label_column)


def scan_folder(root: Path, max_pixels: int, layout: str | None = None, table: LabelTable | None = None) -> Scan:
    """Decodes every image below ``root`` once; each file ends in ``found``, in ``rejected`` with its reason, or in ``passed_over``.

    How the subfolders are read says :func:`sfd.data.sources.arrangement.arrange`. Names are compared in Unicode form NFC, while paths
    stay as they are on disk. Links to files are read, links to folders outside the root followed once. Companions and system files
    (:mod:`sfd.data.companions`), and what the folder's producer left beside the class folders
    (:class:`sfd.data.layout.FolderLayout`), are passed over.

    Args:
        root: an existing folder.
        max_pixels: as in :func:`sfd.data.decoding.decode_rgb`.
        layout: `data.layout`; None: by the names of the subfolders.
        table: gives the classes in place of the folders.

    Raises:
        UserError: the subfolders cannot be read as ``layout`` says, or the table contradicts itself.
    """
    walk = _walk(root)
    arrangement = arrange(
        root, walk.files, {name for (name,) in walk.class_folders(1)}, layout, has_table=table is not None
    )
    labels = None if table is None else table.labels_of(root, walk.files)
    outcomes = in_threads(lambda path: _examine(root, path, arrangement, labels, max_pixels), walk.files)
    scan = collect(outcomes, len(walk.files))
    empty = walk.class_folders(arrangement.class_depth) if arrangement.class_depth else set()
    classes = {*scan.classes, *(nfc(path[-1]) for path in empty)}
    unused = [] if labels is None else labels.without_file
    rejected = sorted([*scan.rejected, *walk.rejected, *unused], key=lambda item: item.path)
    return replace(
        scan,
        rejected=rejected,
        classes=sorted(classes),
        passed_over=dict(walk.passed_over.most_common()),
        layout=arrangement.words if table is None else f"{arrangement.words}, {table.words}",
        notes=arrangement.notes,
    )


@dataclass
class _Walk:
    """What lies below a root.

    Attributes:
        files: what may be an image, relative to the root, sorted.
        folders: parts of the folders that were entered.
        rejected: links and folders that are not entered.
        passed_over: number of companions and system files by kind.
        folders_of_companions: parts of the folders with a file or folder that was passed over in or below them.
    """

    files: list[Path] = field(default_factory=list)
    folders: set[tuple[str, ...]] = field(default_factory=set)
    rejected: list[Rejected] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    folders_of_companions: set[tuple[str, ...]] = field(default_factory=set)

    def class_folders(self, depth: int) -> set[tuple[str, ...]]:
        """Parts of the folders at a depth, 1 for those directly in the root. Those that hold nothing but companions are left out."""
        used = {path.parts[:depth] for path in self.files if len(path.parts) > depth}
        used |= {tuple(item.path.split("/")[:depth]) for item in self.rejected}
        return {
            parts
            for parts in self.folders
            if len(parts) == depth and (parts in used or parts not in self.folders_of_companions)
        }

    def pass_over(self, relative: Path, kind: str) -> None:
        """Counts a companion."""
        self.passed_over[kind] += 1
        folder = relative.parent.parts
        self.folders_of_companions |= {folder[:depth] for depth in range(1, len(folder) + 1)}


def _walk(root: Path) -> _Walk:
    walk = _Walk()
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
            walk.rejected.append(Rejected(_relative(folder, root), f"unreadable folder: {error.strerror}"))
            continue
        for entry in entries:
            check_name(entry.name)
            relative = entry.relative_to(root)
            if (folder == root and entry.name in own_names) or entry.name == ".gitkeep":
                continue
            is_folder = entry.is_dir()
            kind = kind_of_folder(entry.name) if is_folder else kind_of_file(entry.name) or kind_by_content(entry)
            if kind is not None:
                walk.pass_over(relative, kind)
            elif (reason := _link_refusal(entry, real_root, followed)) is not None:
                walk.rejected.append(Rejected(_relative(entry, root), reason))
            elif is_folder:
                pending.append(entry)
                walk.folders.add(relative.parts)
            else:
                walk.files.append(relative)
    walk.files.sort()
    return walk


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


def _examine(root: Path, relative: Path, arrangement: Arrangement, labels: Labels | None, max_pixels: int) -> Outcome:
    path = printable(relative.as_posix())
    label: int | str | None = None
    try:
        if path != relative.as_posix():
            raise ImageRefused("file name is not valid UTF-8")
        split, label = arrangement.place_of(relative)
        if labels is not None:
            label = labels.label_of(relative)
        found = describe(path, str(label), read_whole(root / relative, max_pixels), max_pixels)
    except ImageRefused as refusal:
        return Rejected(path, str(refusal)), label
    return replace(found, split=split), label


def _told_beside(image: Path, wanted: str) -> Told:
    """What the text file or the JSON says that is named as the image. ``wanted``: `data.caption_column`."""
    for name in dict.fromkeys((image.with_suffix(".txt"), image.with_suffix(".caption"), Path(f"{image}.txt"))):
        if name.is_file():
            return told_by(_head(name, MAX_CAPTION_BYTES), name.name)
    for name in (image.with_suffix(".json"), Path(f"{image}.json")):
        if name.is_file():
            return told_by_json(_head(name, MAX_JSON_BYTES), name.name, wanted)
    return Told((), "no text file beside it")


def _head(file: Path, limit: int) -> bytes:
    """The bytes of a file up to one more than ``limit``."""
    with file.open("rb") as stream:
        return stream.read(limit + 1)


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())
