"""The end of ``sfd generate``: one table from those of all batches."""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sfd.errors import UserError
from sfd.generation.generated import TABLE


def batch_files(work: Path) -> list[Path]:
    """The tables of the batches that were drawn, in their order."""
    return sorted(work.glob("batch-*.parquet"))


def finish(out: Path, work: Path, classes: list[str], per_class: int) -> None:
    """Writes the table, batch by batch. Raises :class:`UserError` unless every class folder holds ``per_class`` files."""
    for name in classes:
        count = sum(1 for _ in os.scandir(out / name))
        if count != per_class:
            raise UserError(
                f"{out / name} holds {count} files instead of the {per_class} that were made; remove {out} and generate it again"
            )
    temporary = work / "unfinished"
    writer = None
    for file in batch_files(work):
        rows = pd.read_parquet(file)
        kept = pa.Table.from_pandas(rows[rows["kept"]].drop(columns="kept"), preserve_index=False)
        writer = writer or pq.ParquetWriter(temporary, kept.schema)
        writer.write_table(kept)
    assert writer is not None, "a complete folder has a batch"
    writer.close()
    temporary.replace(out / TABLE)
