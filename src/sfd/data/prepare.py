"""Stage ``prepare``: images in, a checked manifest and a report out. And the same reading for plans, which writes nothing."""

import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from sfd.data.captions import CAPTIONS_NAME, UNCAPTIONED_NAME, Captioned, caption_images
from sfd.data.manifest import FILE_NAME, HELDOUT, SCHEMA, TRAIN, digest, split_by_content, write_manifest
from sfd.data.report import NEAR_NAME, REPORT_NAME, TABLE_NAME, DataReport, make_report
from sfd.data.report_picture import PICTURE_NAME, write_picture
from sfd.data.sources.source import DataSource, Found, Rejected, Scan, open_source
from sfd.errors import UserError
from sfd.params import DataParams

REJECTED_NAME = "rejected.csv"
SUMMARY_NAME = "summary.json"
_SHOWN = 5
_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Summary:
    """What ``prepare`` found; also written to ``summary.json``. ``digest``: see :func:`sfd.data.manifest.digest`."""

    num_images: int
    num_train: int
    num_heldout: int
    classes: list[str]
    num_rejected: int
    digest: str


def prepare(params: DataParams, seed: int, out: Path) -> Summary:
    """Reads all images; writes ``manifest.parquet``, ``rejected.csv`` (path, reason), ``summary.json`` and the report's files to ``out``.

    ``rejected.csv`` is there even if the stage then fails. It also lists copies that ``data.duplicates: drop`` drops; these do not
    count towards ``data.max_rejected_fraction``, because dropping them was asked for.

    Raises:
        UserError: the root is missing or holds no images, too many files are refused, a class has too few images in all or in a split
            folder, or the same content is in two classes or in two split folders.
    """
    source = open_source(params, out)
    source.check_root()
    out.mkdir(parents=True, exist_ok=True)
    for stale in (
        FILE_NAME,
        SUMMARY_NAME,
        REPORT_NAME,
        TABLE_NAME,
        NEAR_NAME,
        PICTURE_NAME,
        CAPTIONS_NAME,
        UNCAPTIONED_NAME,
    ):
        (out / stale).unlink(missing_ok=True)
    scan = source.scan()
    found, rejected = _used(scan, params)
    captioned = _captioned(source, found, out)
    if captioned is not None:
        found, rejected = captioned.found, rejected + (captioned.uncaptioned if params.uncaptioned == "drop" else [])
    pd.DataFrame(rejected, columns=["path", "reason"]).to_csv(out / REJECTED_NAME, index=False)
    rows = _checked_rows(source, scan, found, seed, f"listed in {out / REJECTED_NAME}")
    report, near = make_report(scan, rows, rejected, params.image_size, None if captioned is None else captioned.facts)
    report.write(out)
    near.to_csv(out / NEAR_NAME, index=False)
    write_picture(report, rows, source, out / PICTURE_NAME)
    write_manifest(rows, out)
    return _summarise(rows, len(rejected), out)


def look(params: DataParams, seed: int = 0) -> DataReport:
    """Reads all images as stage ``prepare`` does, and writes nothing: what is there, before a project is made.

    Args:
        params: section `data`; ``params.root`` and ``params.labels`` can be opened as they are.
        seed: of the split.

    Raises:
        UserError: as :func:`prepare`.
    """
    with tempfile.TemporaryDirectory() as folder:  # the digits are written there
        source = open_source(params, Path(folder))
        source.check_root()
        scan = source.scan()
    found, rejected = _used(scan, params)
    captioned = _captioned(source, found, None)
    found = found if captioned is None else captioned.found
    shown = ", ".join(f"{item.path} ({item.reason})" for item in rejected[:_SHOWN]) or "none"
    rows = _checked_rows(source, scan, found, seed, f"such as {shown}")
    return make_report(scan, rows, rejected, params.image_size, None if captioned is None else captioned.facts)[0]


def _captioned(source: DataSource, found: list[Found], out: Path | None) -> Captioned | None:
    """The images with their captions; None if `data.captions` is null or there are no images, which is refused later.

    ``out``: where images without a caption are listed, in ``uncaptioned.csv``; None: nothing is written.

    Raises:
        UserError: as :func:`sfd.data.captions.caption_images`.
    """
    if source.params.captions is None or not found:
        return None
    told, words = source.read_captions(found)
    return caption_images(found, told, words, source.params, out)


def _used(scan: Scan, params: DataParams) -> tuple[list[Found], list[Rejected]]:
    """The images that go into the manifest, and all that is refused, with dropped copies."""
    found, copies = _drop_copies(scan.found) if params.duplicates == "drop" else (scan.found, [])
    return found, sorted(scan.rejected + copies, key=lambda item: item.path)


def _drop_copies(found: list[Found]) -> tuple[list[Found], list[Rejected]]:
    """Keeps the first file of every content, in the order of class and path; a training image before a held-out one."""
    first: dict[str, Found] = {}
    copies: list[Rejected] = []
    for item in sorted(found, key=lambda item: item.split == HELDOUT):
        if first.setdefault(item.sha256, item) is not item:
            copies.append(Rejected(item.path, f"duplicate: same content as {first[item.sha256].path}"))
    kept = {item.path for item in first.values()}
    return [item for item in found if item.path in kept], copies


def _checked_rows(source: DataSource, scan: Scan, found: list[Found], seed: int, listed: str) -> pd.DataFrame:
    """The manifest's rows. ``listed``: where refused files are listed, for messages. Raises :class:`UserError` as :func:`prepare` does."""
    source.check_scan(scan, listed)
    _check_rejected(scan, source.params.max_rejected_fraction, source.root, listed)
    _check_classes(scan.classes, found, listed)
    _check_copies(found)
    _check_split_folders(found)
    return _manifest(found, source.params.holdout_fraction, seed)


def _check_rejected(scan: Scan, max_rejected_fraction: float, root: Path, listed: str) -> None:
    num_files = len(scan.found) + len(scan.rejected)
    if len(scan.rejected) > max_rejected_fraction * num_files:
        counts = Counter(item.reason.split(":")[0] for item in scan.rejected)
        reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(_SHOWN_REASONS))
        raise UserError(
            f"{len(scan.rejected)} of {num_files} files ({len(scan.rejected) / num_files:.1%}) in {root} are refused, "
            f"but data.max_rejected_fraction is {max_rejected_fraction:g}; most often: {reasons}; they are "
            f"{listed}: repair or remove those files, or raise data.max_rejected_fraction"
        )


def _check_classes(classes: list[str], found: list[Found], listed: str) -> None:
    empty = sorted(set(classes) - {item.label for item in found})
    if empty:
        names = ", ".join(repr(name) for name in empty[:_SHOWN])
        raise UserError(
            f"every class needs at least two usable images, but {len(empty)} have none: {names}; add images "
            f"(refused files are {listed}) or remove the classes"
        )


def _check_copies(found: list[Found]) -> None:
    """One content with two labels teaches a contradiction. One in both splits makes the held-out images easy."""
    first: dict[str, Found] = {}
    pairs = [(one, item) for item in found if (one := first.setdefault(item.sha256, item)) is not item]
    clashes = [(one, item) for one, item in pairs if one.label != item.label]
    across = [(one, item) for one, item in pairs if one.split != item.split]
    for wrong, what in ((clashes, "one of another class"), (across, "one of the other split folders")):
        if wrong:
            names = "; ".join(f"{one.path} = {item.path}" for one, item in wrong[:_SHOWN])
            raise UserError(
                f"{len(wrong)} images have the same content (sha256) as {what}: {names}; remove the wrong "
                "one of each, or set data.duplicates to drop, which keeps the first"
            )


def _check_split_folders(found: list[Found]) -> None:
    """Where split folders say which images are held out, each class has images to train on and images to compare with."""
    splits: dict[str, Counter[str]] = {}
    for item in found:
        if item.split is not None:
            splits.setdefault(item.label, Counter())[item.split] += 1
    lacking = [
        f"{label!r} has {counts[TRAIN]} and {counts[HELDOUT]}"
        for label, counts in sorted(splits.items())
        if len(counts) < 2
    ]
    if lacking:
        raise UserError(
            f"every class needs images in the split folders for training and in those held out, but {', '.join(lacking[:_SHOWN])}; add "
            "images, remove the class, or move the class folders of training out of their split folder and the others out of data.root "
            "(then data.holdout_fraction of each class is held out)"
        )


def _manifest(found: list[Found], holdout_fraction: float, seed: int) -> pd.DataFrame:
    rows = pd.DataFrame(found)
    index_of = {label: index for index, label in enumerate(sorted(set(rows["label"])))}
    rows = (
        rows.drop(columns="captions")
        if not any(item.captions for item in found)
        else rows.assign(captions=rows["captions"].map(list))
    )
    rows["class_index"] = rows["label"].map(index_of).astype("int64")
    if rows["split"].isna().any():
        rows["split"] = split_by_content(rows, holdout_fraction, seed)
    return rows[[name for name in SCHEMA.columns if name in rows]]


def _summarise(rows: pd.DataFrame, num_rejected: int, out: Path) -> Summary:
    splits = rows["split"].value_counts()
    summary = Summary(
        num_images=len(rows),
        num_train=int(splits[TRAIN]),
        num_heldout=int(splits[HELDOUT]),
        classes=sorted(set(rows["label"])),
        num_rejected=num_rejected,
        digest=digest(rows),
    )
    (out / SUMMARY_NAME).write_text(json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary
