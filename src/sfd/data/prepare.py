"""Stage ``prepare``: images in, a checked manifest out."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from sfd.data.manifest import FILE_NAME, HELDOUT, TRAIN, digest, split_by_content, write_manifest
from sfd.data.sources.source import Found, Rejected, Scan, open_source
from sfd.errors import UserError
from sfd.params import DataParams

REJECTED_NAME = "rejected.csv"
SUMMARY_NAME = "summary.json"
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
    """Reads all images; writes ``manifest.parquet``, ``rejected.csv`` (path, reason) and ``summary.json`` to ``out``.

    ``rejected.csv`` is there even if the stage then fails. It also lists copies that ``data.duplicates: drop`` drops; these do not
    count towards ``data.max_rejected_fraction``, because dropping them was asked for.

    Raises:
        UserError: the root is missing or holds no classes of images, too many files are refused, a class has too few
            images, or the same content is in two classes.
    """
    source = open_source(params, out)
    source.check_root()
    out.mkdir(parents=True, exist_ok=True)
    for stale in (FILE_NAME, SUMMARY_NAME):
        (out / stale).unlink(missing_ok=True)
    scan = source.scan()
    found, copies = _drop_copies(scan.found) if params.duplicates == "drop" else (scan.found, [])
    rejected = sorted(scan.rejected + copies, key=lambda item: item.path)
    pd.DataFrame(rejected, columns=["path", "reason"]).to_csv(out / REJECTED_NAME, index=False)
    source.check_scan(scan, out / REJECTED_NAME)
    _check_rejected(scan, params.max_rejected_fraction, source.root, out / REJECTED_NAME)
    _check_classes(scan.classes, found, out / REJECTED_NAME)
    _check_labels(found)
    rows = _manifest(found, params.holdout_fraction, seed)
    write_manifest(rows, out)
    return _summarise(rows, len(rejected), out)


def _drop_copies(found: list[Found]) -> tuple[list[Found], list[Rejected]]:
    """Keeps the first file of every content, in the order of class and path."""
    first: dict[str, Found] = {}
    copies: list[Rejected] = []
    for item in found:
        if first.setdefault(item.sha256, item) is not item:
            copies.append(Rejected(item.path, f"duplicate: same content as {first[item.sha256].path}"))
    return list(first.values()), copies


def _check_rejected(scan: Scan, max_rejected_fraction: float, root: Path, list_path: Path) -> None:
    num_files = len(scan.found) + len(scan.rejected)
    if len(scan.rejected) > max_rejected_fraction * num_files:
        counts = Counter(item.reason.split(":")[0] for item in scan.rejected)
        reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(_SHOWN_REASONS))
        raise UserError(
            f"{len(scan.rejected)} of {num_files} files ({len(scan.rejected) / num_files:.1%}) in {root} are refused, "
            f"but data.max_rejected_fraction is {max_rejected_fraction:g}; most often: {reasons}; all of them are "
            f"listed in {list_path}: repair or remove those files, or raise data.max_rejected_fraction"
        )


def _check_classes(classes: list[str], found: list[Found], list_path: Path) -> None:
    empty = sorted(set(classes) - {item.label for item in found})
    if empty:
        names = ", ".join(repr(name) for name in empty[:5])
        raise UserError(
            f"every class needs at least two usable images, but {len(empty)} have none: {names}; add images "
            f"(refused files are listed in {list_path}) or remove the classes"
        )


def _check_labels(found: list[Found]) -> None:
    """One content with two labels teaches a contradiction, and can fall into both splits."""
    first: dict[str, Found] = {}
    clashes = [(one, item) for item in found if (one := first.setdefault(item.sha256, item)).label != item.label]
    if clashes:
        names = "; ".join(f"{one.path} = {item.path}" for one, item in clashes[:5])
        raise UserError(
            f"{len(clashes)} images have the same content (sha256) as one of another class: {names}; remove the wrong "
            "one of each, or set data.duplicates to drop, which keeps the first"
        )


def _manifest(found: list[Found], holdout_fraction: float, seed: int) -> pd.DataFrame:
    rows = pd.DataFrame(found)
    index_of = {label: index for index, label in enumerate(sorted(set(rows["label"])))}
    rows.insert(2, "class_index", rows["label"].map(index_of).astype("int64"))
    rows.insert(3, "split", split_by_content(rows, holdout_fraction, seed))
    return rows


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
