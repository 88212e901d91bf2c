"""Tar archives of images in WebDataset's layout: scanned once, then read at random places, never unpacked.

A sample is all members whose names are equal up to the first dot of the file name, in any order. The library ``webdataset`` streams
samples and drops damaged ones by a handler; its ``wids`` indexes every shard again in every process, and refuses neither links, nor
doubles, nor an archive that ends early. Here the manifest holds the place of each image, and sha256 guards it, as with folders.
"""

import io
import json
import os
import re
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sfd.data.companions import IMAGE_ENDINGS, kind_of_file, kind_of_folder
from sfd.data.files import ImageRefused, max_file_bytes, open_regular
from sfd.data.sources.arrangement import NO_CLASS
from sfd.data.sources.caption_table import CaptionTable, else_tables
from sfd.data.sources.common import (
    Outcome,
    check_folder,
    class_of,
    collect,
    describe,
    in_threads,
    list_file,
    list_folder,
    nfc,
    printable,
)
from sfd.data.sources.source import DataSource, Found, Rejected, Scan, Told
from sfd.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

IMAGE_EXTENSIONS = tuple(ending.removeprefix(".") for ending in IMAGE_ENDINGS)
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
SEPARATOR = "#"
"""Between archive and member in the manifest's paths."""

MAX_OPEN_ARCHIVES = 64
"""In each process that reads images."""

MAX_LABEL_BYTES = 2**20
_MAX_HEADER_BYTES = 2**20
_MAX_READ_BYTES = 2**31 - 4096
"""One call of pread gives no more on Linux."""

_COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstd begin."""


_SHOWN_ARCHIVES = 3


class TarSource(DataSource):
    """Archives directly in ``data.root``, or the one archive that it names. The manifest's paths are ``ARCHIVE#MEMBER``."""

    expected_root = "a folder that holds *.tar files, or of one such file"

    def listing(self) -> dict[str, object]:
        """As :func:`sfd.data.sources.common.list_folder` says, of the folder or of the one archive."""
        return list_file(self) if self.root.is_file() else list_folder(self)

    def check_root(self) -> None:
        """As :func:`sfd.data.sources.common.check_folder` says, if the root is no file."""
        if not self.root.is_file():
            check_folder(self)

    def scan(self) -> Scan:
        """As :func:`scan_archives` says."""
        return replace(scan_archives(self.root, self.params.max_pixels, self._no_class), layout="tar archives")

    def check_scan(self, scan: Scan, listed: str) -> None:
        """As :class:`DataSource` says. A refused archive counts as one file, but thousands of images are missing with it."""
        archives = [item for item in scan.rejected if SEPARATOR not in item.path]
        if archives:
            shown = "; ".join(f"{item.path} ({item.reason})" for item in archives[:_SHOWN_ARCHIVES])
            raise UserError(
                f"{len(archives)} archives cannot be read: {shown}; repair them or take them out of data.root (all refused "
                f"files are {listed})"
            )
        super().check_scan(scan, listed)

    @property
    def _no_class(self) -> str | None:
        """The class of an image without one: captioned images need none."""
        return None if self.params.captions is None else NO_CLASS

    def read_captions(self, found: list[Found]) -> tuple[list[Told], str]:
        """As :class:`DataSource` says. `auto`: the lines of `NAME.txt` or a key of `NAME.json` in the archives, else tables in them or beside
        them. A table's names are those of members."""
        members = [item.path.partition(SEPARATOR)[2] for item in found]
        if isinstance(self.params.captions, Path):
            table = CaptionTable.read(self.params.captions, self.params)
            return table.captions_of(self.root, members), table.words
        from sfd.data.sources.tar_captions import archived_captions

        folder = self.root if self.root.is_dir() else self.root.parent
        told, tables = archived_captions(folder, [item.path for item in found], self.params)
        return else_tables(told, "members of the archives", folder, members, self.params, tables)

    def open_store(self, manifest: "pd.DataFrame") -> "TarStore":
        """As :class:`DataSource` says."""
        return TarStore(self.root, manifest)


@dataclass(frozen=True)
class FoundMember(Found):
    """An accepted image in an archive, and where its bytes begin there."""

    offset: int


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int

    @property
    def kind(self) -> str | None:
        """Of companion, by its name; None if it may be a part of a sample."""
        return kind_of_file(PurePosixPath(self.name).name)


@dataclass
class _Sample:
    """Members by extension, and why the sample cannot be used, if so."""

    members: dict[str, Member] = field(default_factory=dict)
    problem: str | None = None

    @property
    def is_companion(self) -> bool:
        """Whether it has nothing but captions, tables and the like."""
        return self.problem is None and all(member.kind is not None for member in self.members.values())


def scan_archives(root: Path, max_pixels: int, no_class: str | None = None) -> Scan:
    """Decodes the image of every sample once; each sample ends in ``found`` or, with its reason, in ``rejected``.

    The class is the number in the sample's ``.cls`` member, else ``label`` in its ``.json``, else the folder in ``CLASS/NAME.jpg``.
    A folder that wraps all others is no class. Further members of a sample (captions, masks) are passed over. So are companions and
    system files on their own (:mod:`sfd.data.companions`), and these are counted. An archive that is compressed, damaged or ends early
    is refused as a whole: its row in ``rejected`` has a path without ``#``.

    Args:
        root: a folder with files ``*.tar`` directly in it, or one such file.
        max_pixels: as in :func:`sfd.data.decoding.decode_rgb`.
        no_class: the class of an image without one; None: such an image is refused.
    """
    passed_over: Counter[str] = Counter()
    scan = collect(
        outcome for archive in _archives(root) for outcome in _scan_archive(archive, max_pixels, passed_over, no_class)
    )
    return replace(scan, passed_over=dict(passed_over.most_common()))


def _archives(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    suffixes = (".tar", *COMPRESSED_SUFFIXES)
    return sorted(entry for entry in root.iterdir() if entry.name.lower().endswith(suffixes))


def _scan_archive(archive: Path, max_pixels: int, passed_over: Counter[str], no_class: str | None) -> Iterator[Outcome]:
    name = printable(archive.name)
    try:
        if name != archive.name or SEPARATOR in name:
            raise ImageRefused(f"the archive's name must be valid UTF-8 without {SEPARATOR}")
        samples = _index(archive, passed_over)
        file = open_regular(archive)
    except ImageRefused as refusal:
        yield Rejected(name, str(refusal)), None
        return
    wrapper = _wrapper(samples)
    with file:
        yield from in_threads(
            lambda entry: _examine(file.fileno(), name, entry[0], entry[1], wrapper, max_pixels, no_class),
            sorted(samples.items()),
        )


def _wrapper(samples: Iterable[str]) -> str:
    """The folder, with its slash, in which all folders of an archive lie, as in `pets/cat/1.jpg`; empty if there is none."""
    parts = [key.split("/") for key in samples]
    tops = {path[0] for path in parts}
    return f"{tops.pop()}/" if len(tops) == 1 and all(len(path) > 2 for path in parts) else ""


def _index(archive: Path, passed_over: Counter[str]) -> dict[str, _Sample]:
    """All samples of an archive by key. Companions without an image are counted. Raises :class:`ImageRefused` if it is not whole."""
    samples: dict[str, _Sample] = {}
    for member in members_of(archive):
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        system = system_kind(name)
        if system is not None:
            passed_over[system] += 1
            continue
        folder, slash, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        extension = extension.lower()
        sample = samples.setdefault(f"{folder}{slash}{stem or file}", _Sample())
        if extension in sample.members:
            sample.problem = f"two members with one name: {printable(name)}"
        sample.members[extension] = Member(name, member.offset_data, member.size)
        sample.problem = _refusal(member, name) or sample.problem
    for key in [key for key, sample in samples.items() if sample.is_companion]:
        passed_over.update(str(member.kind) for member in samples.pop(key).members.values())
    return samples


def system_kind(name: str) -> str | None:
    """The kind of a system file, or of the folder that it lies in."""
    *folders, file = name.split("/")
    kind = next(filter(None, map(kind_of_folder, (folder for folder in folders if folder.strip(".")))), None)
    return kind or (kind_of_file(file) if file.startswith(".") else None)


def _refusal(member: tarfile.TarInfo, name: str) -> str | None:
    """Why a member, and with it its sample, is not used."""
    if printable(name) != name:
        return "file name is not valid UTF-8"
    if name.startswith("/") or ".." in name.split("/"):
        return "path leads out of the archive"
    if member.issym() or member.islnk():
        return f"link: {name} points to {printable(member.linkname)}"
    if not member.isreg() or member.issparse():
        return f"not a regular file: {name}"
    return None


class _HeaderReader(io.BufferedReader):
    """For ``tarfile``, which reads extended headers of any announced size into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def members_of(archive: Path) -> Iterator[tarfile.TarInfo]:
    """All members in their order. Raises :class:`ImageRefused` if the archive is compressed, damaged or ends early."""
    with _HeaderReader(open_regular(archive).detach()) as file:
        if _COMPRESSED.match(file.read(10)):
            raise ImageRefused("compressed archive: no random access; unpack it to a plain .tar")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                end = 0
                while (member := tar.next()) is not None:
                    if tar.offset <= end:
                        raise tarfile.ReadError("a member of negative size")
                    end = tar.offset
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps all, gigabytes of a large archive
                    yield member
                _check_end(file, tar.offset)
        except (MemoryError, ImageRefused):
            raise
        except Exception as error:  # tarfile raises nearly every type on damaged headers
            raise ImageRefused(f"damaged archive: {' '.join(str(error).split())[:100]}") from error


def _check_end(file: io.BufferedReader, offset: int) -> None:
    """``tarfile`` ends without a word at a damaged header, and where a copy was cut off between two members."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ImageRefused("truncated archive: it has no end mark")
    if any(block):
        raise ImageRefused(f"damaged archive: no header at byte {offset}")
    while block := file.read(2**16):
        if any(block):
            raise ImageRefused(f"damaged archive: data behind its end mark at byte {offset}; were several joined?")


def _examine(
    descriptor: int, archive: str, key: str, sample: _Sample, wrapper: str, max_pixels: int, no_class: str | None
) -> Outcome:
    path, label = f"{archive}{SEPARATOR}{printable(key)}", None
    try:
        if sample.problem is not None:
            raise ImageRefused(sample.problem)
        image = _image(sample)
        path = f"{archive}{SEPARATOR}{image.name}"
        label = _label(descriptor, sample, image.name.removeprefix(wrapper), no_class)
        data = read_member(descriptor, image, min(max_file_bytes(max_pixels), _MAX_READ_BYTES))
        found = describe(path, str(label), data, max_pixels)
    except ImageRefused as refusal:
        return Rejected(path, str(refusal)), label
    return FoundMember(**vars(found), offset=image.offset), label


def _image(sample: _Sample) -> Member:
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if not images:
        raise ImageRefused(f"no image among its members: {', '.join(map(repr, sample.members))}")
    if len(images) > 1:
        raise ImageRefused(f"two images with one key: {', '.join(images)}")
    return sample.members[images[0]]


def _label(descriptor: int, sample: _Sample, image_name: str, no_class: str | None) -> int | str:
    """The class, by the rule of :func:`scan_archives`. Raises :class:`ImageRefused` if there is none or it cannot be read."""
    if "cls" in sample.members:
        text = read_member(descriptor, sample.members["cls"], MAX_LABEL_BYTES)
        return _number(text.decode("utf-8-sig", "backslashreplace").strip())
    if "json" in sample.members:
        try:
            facts = json.loads(read_member(descriptor, sample.members["json"], MAX_LABEL_BYTES))
        except (ValueError, RecursionError):
            raise ImageRefused("label: its .json is not JSON") from None
        if isinstance(facts, dict) and "label" in facts:
            return class_of(facts["label"])
    folders = image_name.split("/")[:-1]
    if no_class is not None and (len(folders) != 1 or not folders[0]):
        return no_class
    if len(folders) != 1 or not folders[0]:
        raise ImageRefused("no label: neither .cls, nor `label` in .json, nor exactly one folder as in CLASS/NAME.jpg")
    return nfc(folders[0])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ImageRefused(f"label: its .cls holds {text[:40]!r}, but must hold a number from 0")
    return int(text)


def read_member(descriptor: int, member: Member, max_bytes: int) -> bytes:
    """The content of a member of the archive that is open as ``descriptor``. Raises :class:`ImageRefused` if it is larger than ``max_bytes``."""
    if member.size > max_bytes:
        raise ImageRefused(f"too large: {PurePosixPath(member.name).name} has {member.size} bytes, at most {max_bytes}")
    return os.pread(descriptor, member.size, member.offset)


class TarStore:
    """Images in archives, read in place. Read files stay open. Forked processes may share them, for pread has no position.

    Args:
        root: as in :func:`scan_archives`.
        manifest: rows with columns ``path``, ``size_bytes`` and ``offset``.

    Raises:
        UserError: the manifest is of another source.
    """

    def __init__(self, root: Path, manifest: "pd.DataFrame") -> None:
        if "offset" not in manifest:
            raise UserError("the manifest was made from another data.source than `tar`; rerun `dvc repro prepare`")
        self._folder = root if root.is_dir() else root.parent
        self.paths: list[str] = manifest["path"].tolist()
        self._offsets = manifest["offset"].to_numpy()
        self._sizes = manifest["size_bytes"].to_numpy()
        self._open: OrderedDict[str, io.BufferedReader] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, row: int) -> bytes:
        """As :class:`sfd.data.files.ImageStore` says. One thread at a time."""
        archive = self.paths[row].partition(SEPARATOR)[0]
        return os.pread(self._descriptor(archive), int(self._sizes[row]), int(self._offsets[row]))

    def place(self, row: int) -> str:
        """As :class:`sfd.data.files.ImageStore` says."""
        return str(self._folder / self.paths[row])

    def _descriptor(self, archive: str) -> int:
        """Of the opened archive; the one that was read longest ago is closed for it if need be."""
        if archive not in self._open:
            if len(self._open) == MAX_OPEN_ARCHIVES:
                self._open.popitem(last=False)[1].close()
            self._open[archive] = open_regular(self._folder / archive)
        self._open.move_to_end(archive)
        return self._open[archive].fileno()
