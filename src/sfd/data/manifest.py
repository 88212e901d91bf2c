"""The manifest: one row per image, its schema, its digest, and the split into training and held-out images."""

import hashlib
import json
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa

from sfd.errors import UserError
from sfd.names import HELDOUT as HELDOUT
from sfd.names import TRAIN as TRAIN

FILE_NAME = "manifest.parquet"
SHA256 = r"^[0-9a-f]{64}\Z"
_SHOWN_FAILURES = 5


def is_relative(paths: pd.Series) -> pd.Series:
    """Per path: whether it stays in the folder that it is relative to."""
    return paths.map(lambda path: bool(path) and not path.startswith("/") and ".." not in path.split("/"))


def _index_fits_label(rows: pd.DataFrame) -> pd.Series:
    index_of = {label: index for index, label in enumerate(sorted(set(rows["label"])))}
    return rows["class_index"] == rows["label"].map(index_of)


def _content_is_unambiguous(rows: pd.DataFrame) -> pd.Series:
    same_content = rows.groupby("sha256")
    return (same_content["split"].transform("nunique") == 1) & (same_content["label"].transform("nunique") == 1)


def _are_captions(captions: pd.Series) -> pd.Series:
    return captions.map(
        lambda texts: (
            isinstance(texts, list) and len(texts) > 0 and all(isinstance(text, str) and text for text in texts)
        )
    )


SCHEMA = pa.DataFrameSchema(
    {
        "path": pa.Column(str, pa.Check(is_relative, error="relative to the image root"), unique=True),
        "label": pa.Column(str, pa.Check.str_length(min_value=1)),
        "class_index": pa.Column("int64", pa.Check.ge(0)),
        "split": pa.Column(str, pa.Check.isin([TRAIN, HELDOUT])),
        "width": pa.Column("int64", pa.Check.ge(1)),
        "height": pa.Column("int64", pa.Check.ge(1)),
        "size_bytes": pa.Column("int64", pa.Check.ge(1)),
        "sha256": pa.Column(str, pa.Check.str_matches(SHA256)),
        # Of images in archives: where their bytes begin. It is no part of the digest, because packing again changes no image.
        "offset": pa.Column("int64", pa.Check.ge(0), required=False),
        # Where `data.captions` asks for them.
        "captions": pa.Column(
            object, pa.Check(_are_captions, error="one or more texts that are not empty"), required=False
        ),
    },
    checks=[
        pa.Check(lambda rows: len(rows) > 0, error="at least one image"),
        pa.Check(_index_fits_label, error="class_index is the label's place among the sorted labels"),
        pa.Check(_content_is_unambiguous, error="the same content (sha256) has one label and one split"),
    ],
    strict=True,
    coerce=False,
)


def validate_manifest(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns ``rows`` unchanged.

    Raises:
        UserError: columns, types or rows break the schema; the first few failures are named.
    """
    return validate_table(rows, SCHEMA, "the manifest", "rerun stage `prepare`")


def validate_table(rows: pd.DataFrame, schema: pa.DataFrameSchema, what: str, remedy: str) -> pd.DataFrame:
    """As :func:`validate_manifest`, for any table. ``what`` and ``remedy``: its name and its remedy in the message."""
    try:
        return schema.validate(rows, lazy=True)
    except pa.errors.SchemaErrors as error:
        failures = list(dict.fromkeys(_describe(case) for case in error.failure_cases.to_dict("records")))
        more = f"; and {len(failures) - _SHOWN_FAILURES} more" if len(failures) > _SHOWN_FAILURES else ""
        shown = "; ".join(failures[:_SHOWN_FAILURES])
        raise UserError(f"{what} breaks its schema: {shown}{more}; {remedy}") from None


def _describe(case: dict[Hashable, Any]) -> str:
    """One failure in words. A rule on whole rows is reported once per column, so the column is not named."""
    row = "" if pd.isna(case["index"]) else f"row {case['index']} "
    if case["schema_context"] == "Column":
        return f"{row}{case['column']} {str(case['failure_case'])[:80]!r} breaks {case['check']}"
    if row:
        return f"{row}breaks: {case['check']}"
    return f"{str(case['failure_case'])[:80]!r} breaks {case['check']}"


def read_manifest(folder: Path) -> pd.DataFrame:
    """Reads and checks ``folder/manifest.parquet``.

    Raises:
        UserError: the file is missing, is not Parquet, or breaks the schema.
    """
    path = folder / FILE_NAME
    try:
        rows = pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run stage `prepare` first (`dvc repro prepare`)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a Parquet file ({error}); rerun stage `prepare`") from None
    if "captions" in rows:
        rows["captions"] = pd.Series([list(texts) for texts in rows["captions"]], index=rows.index, dtype=object)
    return validate_manifest(rows)


def write_manifest(rows: pd.DataFrame, folder: Path) -> None:
    """Checks ``rows`` and writes ``folder/manifest.parquet`` in one rename, so that a kill leaves no half file."""
    partial = folder / f"{FILE_NAME}.partial"
    validate_manifest(rows).to_parquet(partial, index=False)
    os.replace(partial, folder / FILE_NAME)


def digest(rows: pd.DataFrame) -> str:
    """The data digest, 64 hex digits: sha256 over path, label, split, sha256 and captions of all rows, whatever their order."""
    result = hashlib.sha256()
    parts = ["path", "label", "split", "sha256", *(["captions"] if "captions" in rows else [])]
    for row in sorted(rows[parts].itertuples(index=False, name=None)):
        result.update(json.dumps(row).encode() + b"\n")
    return result.hexdigest()


def _check_sizes(rows: pd.DataFrame) -> None:
    """Raises :class:`UserError` if a class has a single content."""
    sizes = rows.groupby("label")["sha256"].nunique()
    small = [repr(str(label)) for label in sizes.index[sizes < 2]]
    if small and len(sizes) == 1:  # perhaps a flat folder, whose class nobody named
        raise UserError(
            "there is 1 distinct image, but at least two are needed, one to train on and one held out; add images"
        )
    if small:
        more = f" and {len(small) - _SHOWN_FAILURES} more" if len(small) > _SHOWN_FAILURES else ""
        which = (
            f"class {small[0]} has" if len(small) == 1 else f"classes {', '.join(small[:_SHOWN_FAILURES])}{more} have"
        )
        raise UserError(
            f"{which} 1 distinct image, but every class needs at least two, one to train on and one held out; add images or remove the class"
        )


def split_by_content(rows: pd.DataFrame, holdout_fraction: float, seed: int) -> pd.Series:
    """Assigns every image to ``train`` or ``heldout`` by its content.

    Within a class, the n distinct contents are ranked by sha256(seed, content). The ``round(holdout_fraction * n)`` lowest
    are held out, at least one and at most n - 1. So every class has its exact share, and copies within a class stay together.
    Names, order and other classes do not matter. Adding a content to a class, or removing one, moves at most one other
    content, the one at the border. (A plain threshold on the hash would move none, but would leave small classes far from
    their share: 8 +- 2.5 of 40 images.)

    Args:
        rows: columns ``label`` and ``sha256``.
        holdout_fraction: share of every class, in (0, 1).
        seed: another seed draws another split.

    Returns:
        ``train`` or ``heldout`` per row, with the index of ``rows``.

    Raises:
        UserError: a class has fewer than two distinct images.
    """
    heldout: set[tuple[str, str]] = set()
    _check_sizes(rows)
    for label, contents in rows.groupby("label")["sha256"]:
        ranked = sorted(set(contents), key=lambda content: hashlib.sha256(f"{seed}/split/{content}".encode()).digest())
        count = min(max(round(holdout_fraction * len(ranked)), 1), len(ranked) - 1)
        heldout.update((str(label), content) for content in ranked[:count])
    splits = [HELDOUT if pair in heldout else TRAIN for pair in zip(rows["label"], rows["sha256"], strict=True)]
    return pd.Series(splits, index=rows.index, name="split", dtype=str)
