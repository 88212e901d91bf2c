"""The result of stage ``prepare``, as later stages read it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sfd.data.images import ManifestImages, center_crop, classifier_crop
from sfd.data.manifest import read_manifest
from sfd.data.prepare import SUMMARY_NAME, Summary
from sfd.data.sources.source import DataSource, open_source
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

    @property
    def source(self) -> DataSource:
        """Where the images come from."""
        return open_source(self.params, self.folder)

    def images(self, split: str, centre: int | None = None) -> ManifestImages:
        """The images of ``train`` or ``heldout``, in the manifest's order.

        ``centre``: cut of this side out of the files as classifiers see them (:func:`sfd.data.images.classifier_crop`), pixels; None: images of
        ``data.image_size``.
        """
        rows = self.manifest[self.manifest["split"] == split]
        size, crop = (self.params.image_size, center_crop) if centre is None else (centre, classifier_crop)
        return ManifestImages(rows, self.source.open_store(rows), size, self.params.max_pixels, crop)
