"""A folder of generated images, as `sfd generate` writes it: class folders of PNG files, and beside them the table of the images."""

from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from sfd.data.layout import FolderLayout
from sfd.data.manifest import SHA256, is_relative, validate_table
from sfd.errors import UserError

TABLE = "samples.parquet"
REPORT, REPORT_PAGE = "report.json", "report.md"
LAYOUT = FolderLayout(made_by="sfd generate", beside=(TABLE, REPORT, REPORT_PAGE), complete_with=TABLE)
"""Tells readers of the images which other files the folder holds."""


def _lies_in_its_class(rows: pd.DataFrame) -> pd.Series:
    return rows["file"].str.rsplit("/", n=1).str[0] == rows["class"]


SCHEMA = pa.DataFrameSchema(
    {
        "file": pa.Column(str, pa.Check(is_relative, error="relative to the folder"), unique=True),
        "class": pa.Column(str, pa.Check.str_length(min_value=1)),
        "class_index": pa.Column("int64", pa.Check.ge(0)),
        "prompt": pa.Column(str, required=False),
        "seed": pa.Column("int64", pa.Check.ge(0)),
        "model": pa.Column(str, pa.Check.str_length(min_value=1)),
        "model_version": pa.Column(str, pa.Check.str_matches(r"^[0-9]+\Z")),
        "confidence": pa.Column("float64", pa.Check.in_range(0.0, 1.0), nullable=True),
        "nearest_distance": pa.Column("float64", pa.Check.ge(0.0)),
        "nearest_file": pa.Column(str, pa.Check(is_relative, error="relative to the image root")),
        "sha256": pa.Column(str, pa.Check.str_matches(SHA256)),
    },
    checks=[
        pa.Check(lambda rows: len(rows) > 0, error="at least one image"),
        pa.Check(_lies_in_its_class, error="file lies in the folder of its class"),
    ],
    strict=True,
    coerce=False,
)
"""``confidence``: the judge's probability of the class, null if the judge knows no classes. ``nearest_distance``: distance in judge
features to the training image ``nearest_file``. ``sha256``: of the file. The model's version draws the image again from ``seed`` and
``class``, or ``prompt`` of a model that is told words."""


def is_generated(root: Path) -> bool:
    """Whether `sfd generate` made, or is making, this folder."""
    return FolderLayout.read(root) == LAYOUT


def validate_table_of(folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns ``rows`` unchanged. Raises :class:`UserError` if they break :data:`SCHEMA`."""
    return validate_table(rows, SCHEMA, f"the table {folder / TABLE}", "remove the folder and generate it again")


def read_table(folder: Path) -> pd.DataFrame:
    """Reads and checks ``folder/samples.parquet``. Raises :class:`UserError` if it is missing, not Parquet, or breaks the schema."""
    file = folder / TABLE
    try:
        rows = pd.read_parquet(file)
    except FileNotFoundError:
        raise UserError(
            f"{file} does not exist; repeat the `sfd generate` command until it completes the folder"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a Parquet file ({error}); remove the folder and generate it again") from None
    return validate_table_of(folder, rows)
