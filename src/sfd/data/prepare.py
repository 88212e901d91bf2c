"""Stage ``prepare``: images in, a checked manifest out."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from sfd.data.listing import EXPECTED_ROOT
from sfd.data.manifest import FILE_NAME, HELDOUT, TRAIN, digest, split_by_content, write_manifest
from sfd.data.sources.common import Found, Rejected, Scan, scan_folder, write_digits
from sfd.data.sources.huggingface import scan_dataset
from sfd.data.sources.tar import SEPARATOR, scan_archives
from sfd.data.synthetic import is_unfinished
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


def image_root(params: DataParams, prepare_folder: Path) -> Path:
    """Where the images are: what the manifest's paths are relative to, if it is a folder."""
    return prepare_folder / "images" if params.source == "digits" else Path(params.root)


def prepare(params: DataParams, seed: int, out: Path) -> Summary:
    """Reads all images; writes ``manifest.parquet``, ``rejected.csv`` (path, reason) and ``summary.json`` to ``out``.

    ``rejected.csv`` is there even when the stage then fails. Copies that ``data.duplicates: drop`` leaves out are
    listed in it too, but do not count towards ``data.max_rejected_fraction``, since dropping them was asked for.

    Raises:
        UserError: the root is missing or holds no classes of images, too many files are refused, a class has too few
            images, or the same content is in two classes.
    """
    root = image_root(params, out)
    if params.source in ("folder", "tar") or (params.source == "huggingface" and root.is_dir()):
        _check_root(root, out, params.source)
    out.mkdir(parents=True, exist_ok=True)
    for stale in (FILE_NAME, SUMMARY_NAME):
        (out / stale).unlink(missing_ok=True)
    if params.source == "digits":
        write_digits(root)
    scan = _scan(params, root)
    found, copies = _drop_copies(scan.found) if params.duplicates == "drop" else (scan.found, [])
    rejected = sorted(scan.rejected + copies, key=lambda item: item.path)
    pd.DataFrame(rejected, columns=["path", "reason"]).to_csv(out / REJECTED_NAME, index=False)
    if params.source == "tar":
        _check_archives(scan, out / REJECTED_NAME)
    _check_usable(scan, params, root, out / REJECTED_NAME)
    _check_classes(scan.classes, found, out / REJECTED_NAME)
    _check_labels(found)
    rows = _manifest(found, params.holdout_fraction, seed)
    write_manifest(rows, out)
    return _summarise(rows, len(rejected), out)


def _scan(params: DataParams, root: Path) -> Scan:
    if params.source == "tar":
        return scan_archives(root, params.max_pixels)
    if params.source == "huggingface":
        return scan_dataset(params)
    return scan_folder(root, params.max_pixels)


def _check_root(root: Path, out: Path, source: str) -> None:
    remedy = f"point data.root at {EXPECTED_ROOT[source]}"
    if not root.exists():
        raise UserError(f"data.root {root} does not exist; {remedy}")
    if source == "tar" and root.is_file():
        return
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder; {remedy}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"data.root {root} is not readable for this user; change its permissions (chmod), or {remedy}")
    if is_unfinished(root):
        raise UserError(
            f"data.root {root} is being made by `sfd generate`; give that command again until it is complete"
        )
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"data.root {root} holds the results folder {out}, which is no image; {remedy}")


def _drop_copies(found: list[Found]) -> tuple[list[Found], list[Rejected]]:
    """Keeps the first file of every content, in the order of class and path."""
    first: dict[str, Found] = {}
    copies: list[Rejected] = []
    for item in found:
        if first.setdefault(item.sha256, item) is not item:
            copies.append(Rejected(item.path, f"duplicate: same content as {first[item.sha256].path}"))
    return list(first.values()), copies


def _check_archives(scan: Scan, list_path: Path) -> None:
    """A refused archive counts as one file, but thousands of images are missing with it."""
    whole = [item for item in scan.rejected if SEPARATOR not in item.path]
    if whole:
        shown = "; ".join(f"{item.path} ({item.reason})" for item in whole[:_SHOWN_REASONS])
        raise UserError(
            f"{len(whole)} archives cannot be read: {shown}; all of them are listed in {list_path}: mend them or take them out of data.root"
        )


def _check_usable(scan: Scan, params: DataParams, root: Path, list_path: Path) -> None:
    num_files, max_rejected_fraction = len(scan.found) + len(scan.rejected), params.max_rejected_fraction
    if params.source in ("tar", "huggingface") and not scan.found:
        raise UserError(
            f"{root} has no usable image ({num_files} are refused, with their reasons in {list_path}); point data.root at "
            f"{EXPECTED_ROOT[params.source]}"
        )
    if not num_files or not scan.classes:
        raise UserError(
            f"{root} has no class folder with images ({num_files} files lie directly in it); make one subfolder per "
            f"class, as in {root / 'cat' / '1.png'}, or set data.source to digits"
        )
    if len(scan.rejected) > max_rejected_fraction * num_files:
        counts = Counter(item.reason.split(":")[0] for item in scan.rejected)
        reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(_SHOWN_REASONS))
        raise UserError(
            f"{len(scan.rejected)} of {num_files} files ({len(scan.rejected) / num_files:.1%}) in {root} are refused, "
            f"but data.max_rejected_fraction is {max_rejected_fraction:g}; most often: {reasons}; all of them are "
            f"listed in {list_path}: mend or remove those files, or raise data.max_rejected_fraction"
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
