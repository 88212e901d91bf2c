"""The result of stage ``prepare``, as later stages read it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sfd.data.images import FolderStore, ImageStore, ManifestImages
from sfd.data.manifest import read_manifest
from sfd.data.prepare import SUMMARY_NAME, Summary, image_root
from sfd.data.sources.huggingface import HuggingfaceStore
from sfd.data.sources.tar import TarStore
from sfd.params import DataParams


@dataclass(frozen=True)
class Prepared:
    """Manifest and summary of the images, and access to the images themselves."""

    params: DataParams
    folder: Path
    manifest: pd.DataFrame
    summary: Summary

    @classmethod
    def load(cls, params: DataParams, folder: Path) -> "Prepared":
        """Reads ``folder``. Raises :class:`UserError` if the manifest is missing or breaks its schema."""
        manifest = read_manifest(folder)
        summary = Summary(**json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8")))
        return cls(params, folder, manifest, summary)

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return len(self.summary.classes)

    def images(self, split: str) -> ManifestImages:
        """The images of ``train`` or ``heldout``, in the manifest's order."""
        rows = self.manifest[self.manifest["split"] == split]
        store = open_store(self.params, self.folder, rows)
        return ManifestImages(rows, store, self.params.image_size, self.params.max_pixels)


def open_store(params: DataParams, prepare_folder: Path, manifest: pd.DataFrame) -> ImageStore:
    """The files of these rows, from where ``data.source`` has them. Raises :class:`UserError` if the data set cannot be opened."""
    if params.source == "tar":
        return TarStore(Path(params.root), manifest)
    paths = manifest["path"].tolist()
    if params.source == "huggingface":
        return HuggingfaceStore(params, paths)
    return FolderStore(image_root(params, prepare_folder), paths)
