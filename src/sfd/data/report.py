"""What a set of images is like: counts, sizes, copies, and what is not used. Stage ``prepare`` writes it; plans are made from it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sfd.data.captions import CaptionFacts
from sfd.data.near import Thumbnails, find_near
from sfd.data.sources.source import Found, Rejected, Scan
from sfd.names import HELDOUT, TRAIN

REPORT_NAME, TABLE_NAME, NEAR_NAME = "report.json", "report.csv", "near_duplicates.csv"
_UNEQUAL = 3
_SHOWN = 6


@dataclass(frozen=True)
class DataReport:
    """What a set of images is like.

    Attributes:
        layout: how the images lie, in words.
        split_by: ``folders`` if split folders say which images are held out, ``draw`` if `data.holdout_fraction` of each class is drawn.
        counts: number of images per class and split, as in ``{"cat": {"train": 80, "heldout": 20}}``; classes in the manifest's order.
        shorter_side: smallest, median and largest shorter side of the images, pixels.
        image_size: `data.image_size`.
        upscaled: share of the images whose shorter side is less than ``image_size``.
        transparent: share of the images with a pixel that is not opaque.
        near_across: number of held-out images that have a near duplicate among the training images.
        near_within: number of other images that have a near duplicate before them in their own split.
        copies: number of files whose content is that of another file before them; with `data.duplicates: drop` they are not used.
        passed_over: number of companions and system files by kind.
        refused: number of refused files by reason.
        notes: what a user may not expect, a sentence each.
        captions: what the captions are like; None if there are none.
    """

    layout: str
    split_by: str
    counts: dict[str, dict[str, int]]
    shorter_side: tuple[int, int, int]
    image_size: int
    upscaled: float
    transparent: float
    near_across: int
    near_within: int
    copies: int
    passed_over: dict[str, int]
    refused: dict[str, int]
    notes: list[str]
    captions: CaptionFacts | None = None

    @property
    def classes(self) -> list[str]:
        """The classes, in the manifest's order. A set without classes has one."""
        return list(self.counts)

    @property
    def num_images(self) -> int:
        """All images that are used."""
        return self.num_train + self.num_heldout

    @property
    def num_train(self) -> int:
        """Images to train on."""
        return sum(splits[TRAIN] for splits in self.counts.values())

    @property
    def num_heldout(self) -> int:
        """Images that are the reference of the evaluation."""
        return sum(splits[HELDOUT] for splits in self.counts.values())

    def lines(self) -> list[str]:
        """The report in a few lines, for a terminal."""
        low, median, high = self.shorter_side
        sizes = f"shorter side {low} to {high} pixels, median {median}"
        split = (
            "by folders; data.holdout_fraction is not read" if self.split_by == "folders" else "drawn from each class"
        )
        lines = [
            f"{self.num_images} images in {_count(len(self.counts), 'class', 'classes')}, "
            f"{_count(sum(self.refused.values()), 'file', 'files')} refused ({self.layout})",
            f"{self.num_train} to train on, {self.num_heldout} held out ({split}); {self._smallest_and_largest()}",
            f"{sizes}; {self.upscaled:.1%} are enlarged to data.image_size {self.image_size}; {self.transparent:.1%} have transparency",
            f"near duplicates: {self.near_across} of {self.num_heldout} held-out images look like a training image, "
            f"{self.near_within} like another of their split; {_count(self.copies, 'exact copy', 'exact copies')}",
            f"passed over: {_counted(self.passed_over)}; refused: {_counted(self.refused)}",
        ]
        lines += [] if self.captions is None else self.captions.lines()
        return lines + [f"note: {note}" for note in self.notes]

    def table(self) -> pd.DataFrame:
        """One row per class: ``class``, ``train``, ``heldout``."""
        return pd.DataFrame([{"class": name, **splits} for name, splits in self.counts.items()])

    def write(self, folder: Path) -> None:
        """Writes ``report.json`` and ``report.csv``; and ``captions.json`` if there are captions."""
        facts = asdict(self)
        del facts["captions"]
        (folder / REPORT_NAME).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.captions is not None:
            self.captions.write(folder)
        self.table().to_csv(folder / TABLE_NAME, index=False)

    @classmethod
    def read(cls, folder: Path) -> "DataReport":
        """The report that :meth:`write` wrote."""
        facts = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
        return cls(**facts | {"shorter_side": tuple(facts["shorter_side"]), "captions": CaptionFacts.read(folder)})

    def _smallest_and_largest(self) -> str:
        totals = {name: sum(splits.values()) for name, splits in self.counts.items()}
        if len(totals) == 1:
            return "no classes to tell apart"
        small, large = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
        if totals[small] == totals[large]:
            return f"every class has {totals[small]}"
        return f"smallest class {small!r} with {totals[small]}, largest {large!r} with {totals[large]}"


def make_report(
    scan: Scan, rows: pd.DataFrame, rejected: Sequence[Rejected], image_size: int, captions: CaptionFacts | None = None
) -> tuple[DataReport, pd.DataFrame]:
    """The report, and the near duplicates across the split.

    Args:
        scan: with all found images, also those that are dropped as copies.
        rows: the manifest.
        rejected: all that are refused, copies that are dropped among them.
        image_size: `data.image_size`.
        captions: what the captions are like.

    Returns:
        The report; and a table with columns ``heldout`` and ``train`` (paths) and ``difference`` (mean of thumbnails, in
        levels of 255).
    """
    of_path = {item.path: item for item in scan.found}
    used = [of_path[path] for path in rows["path"]]
    near, within = _near_duplicates(of_path, rows.drop_duplicates("sha256"))
    shorter = rows[["width", "height"]].min(axis=1)
    by_folders = any(item.split is not None for item in used)
    counts = {
        str(label): {split: int((part == split).sum()) for split in (TRAIN, HELDOUT)}
        for label, part in rows.groupby("label", sort=True)["split"]
    }
    refused = Counter(item.reason.split(":")[0] for item in rejected)
    report = DataReport(
        layout=scan.layout,
        split_by="folders" if by_folders else "draw",
        counts=counts,
        shorter_side=(int(shorter.min()), int(shorter.median()), int(shorter.max())),
        image_size=image_size,
        upscaled=float((shorter < image_size).mean()),
        transparent=sum(item.is_transparent for item in used) / len(used),
        near_across=len(near),
        near_within=within,
        copies=len(scan.found) - len({item.sha256 for item in scan.found}),
        passed_over=dict(scan.passed_over),
        refused=dict(refused.most_common()),
        notes=[*scan.notes, *_notes(counts, len(near), image_size, float(shorter.median()), captions is not None)],
        captions=captions,
    )
    return report, near


def _near_duplicates(of_path: dict[str, Found], rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The pairs across the split, and the number of images with a near duplicate before them in their split."""
    thumbnails = Thumbnails.of([of_path[path].thumbnail for path in rows["path"]])
    heldout, train = np.flatnonzero(rows["split"] == HELDOUT), np.flatnonzero(rows["split"] == TRAIN)
    found, levels = find_near(thumbnails.at(heldout), thumbnails.at(train))
    parts = [thumbnails.at(split) for split in (heldout, train)]
    within = sum(int((find_near(part, part, earlier=True)[0] >= 0).sum()) for part in parts)
    is_near = found >= 0
    pairs = {
        "heldout": rows["path"].to_numpy()[heldout[is_near]],
        "train": rows["path"].to_numpy()[train[found[is_near]]],
        "difference": levels[is_near].round(2),
    }
    return pd.DataFrame(pairs), within


def _notes(
    counts: dict[str, dict[str, int]], num_near: int, image_size: int, median: float, has_captions: bool
) -> list[str]:
    notes = []
    totals = {name: sum(splits.values()) for name, splits in counts.items()}
    small, large = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    if len(totals) == 1 and not has_captions:
        notes.append(
            "there is one class, so there is nothing to tell a model about an image: diffusion.model.condition is to be `none`"
        )
    elif len(totals) > 1 and totals[large] > _UNEQUAL * totals[small]:
        notes.append(f"the classes are unequal: {large!r} has {totals[large]} images and {small!r} {totals[small]}")
    if num_near:
        notes.append(
            f"{_count(num_near, 'held-out image looks', 'held-out images look')} like a training image (listed in {NEAR_NAME}), so scores "
            "against the held-out images flatter a model that repeats its training images"
        )
    if median < image_size:
        notes.append(
            f"most images are smaller than data.image_size {image_size} and are enlarged, which adds no detail: median {median:g} pixels"
        )
    return notes


def _counted(kinds: dict[str, int]) -> str:
    shown = [f"{count} {kind}" for kind, count in list(kinds.items())[:_SHOWN]]
    more = sum(list(kinds.values())[_SHOWN:])
    return ", ".join([*shown, *([f"{more} others"] if more else [])]) or "nothing"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
