"""What a source of images is. A new source is one file beside this one, one line of ``names.DATA_SOURCES``, and its params.

Stage ``scan`` imports the sources at every `dvc repro`, so their modules import nothing heavy: torch, Pillow and `datasets` are
imported where they are used.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sfd import names
from sfd.data.files import ImageStore
from sfd.errors import UserError
from sfd.params import DataParams

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Found:
    """An accepted image.

    Attributes:
        path: as in the manifest.
        label: its class.
        width: of the upright image, pixels.
        height: of the upright image, pixels.
        size_bytes: length of the file.
        sha256: digest of the file, 64 hex digits.
        thumbnail: as :func:`sfd.data.near.thumbnail` says.
        is_transparent: whether a pixel was not fully opaque.
        split: ``train`` or ``heldout`` where the folder that holds the image says so; None: it is drawn.
        captions: what is told of it, where `data.captions` asks for that.
    """

    path: str
    label: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    thumbnail: bytes = field(kw_only=True)
    is_transparent: bool = field(kw_only=True)
    split: str | None = field(default=None, kw_only=True)
    captions: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Rejected:
    """A file or folder that is not used, and why. ``path`` is relative to the root."""

    path: str
    reason: str


class Told(NamedTuple):
    """What is told of an image: captions as they are written, or why there are none."""

    texts: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class Scan:
    """All that a root holds.

    Attributes:
        found: the accepted images.
        rejected: what is refused.
        classes: also those without an accepted image.
        passed_over: number of companions and system files by kind (:mod:`sfd.data.companions`); they are neither found nor refused.
        layout: how the images lie, in words.
        notes: what a user may not expect, a sentence each.
    """

    found: list[Found]
    rejected: list[Rejected]
    classes: list[str]
    passed_over: dict[str, int] = field(default_factory=dict)
    layout: str = ""
    notes: tuple[str, ...] = ()

    @property
    def passed_over_words(self) -> str:
        """As in: 2 .txt, 1 .DS_Store."""
        return ", ".join(f"{count} {kind}" for kind, count in self.passed_over.items()) or "nothing"


class DataSource(ABC):
    """Images of one ``data.source``.

    Args:
        params: section `data`; ``params.root`` can be opened as it is.
        prepared: the folder that stage ``prepare`` writes, or has written.
    """

    expected_root: ClassVar[str]
    """What ``data.root`` must name, as in: point data.root at ..."""

    def __init__(self, params: DataParams, prepared: Path) -> None:
        self.params, self.prepared = params, prepared

    @property
    def root(self) -> Path:
        """Where the images are: what the manifest's paths are relative to, if it is a folder."""
        return Path(os.path.expanduser(self.params.root))

    @abstractmethod
    def listing(self) -> dict[str, object]:
        """Facts that differ if the images differ, and that take seconds to find. Stage ``scan`` writes them.

        Raises:
            UserError: the images are not there.
        """

    @abstractmethod
    def check_root(self) -> None:
        """What can be refused before any image is read. Raises :class:`UserError`."""

    @abstractmethod
    def scan(self) -> Scan:
        """Decodes every image once. Each one ends in ``found`` or, with its reason, in ``rejected``.

        Raises:
            UserError: the images cannot be reached.
        """

    def check_scan(self, scan: Scan, listed: str) -> None:
        """What can be refused of a scan as a whole. ``listed``: where its refused images are listed, as in: listed in FILE.

        Raises:
            UserError: no image can be used, or too much is missing.
        """
        if not scan.found:
            raise UserError(
                f"{self.root} has no usable image ({len(scan.rejected)} are refused, {listed}; passed over: {scan.passed_over_words}); "
                f"point data.root at {self.expected_root}"
            )

    def read_captions(self, found: list[Found]) -> tuple[list[Told], str]:  # noqa: ARG002  # as every source
        """What is told of each of these images, by `data.captions`; and where that comes from, in words.

        Raises:
            UserError: the source has no captions, or what holds them cannot be read.
        """
        raise UserError(
            f"data.captions is `{self.params.captions}`, but data.source `{self.params.source}` has no captions; set it to null"
        )

    @abstractmethod
    def open_store(self, manifest: "pd.DataFrame") -> ImageStore:
        """The files of these rows of the manifest. Raises :class:`UserError` if they cannot be opened."""


def open_source(params: DataParams, prepared: Path) -> DataSource:
    """The source that ``data.source`` names. ``prepared``: as in :class:`DataSource`."""
    found: DataSource = names.load(names.DATA_SOURCES, params.source)(params, prepared)
    return found
