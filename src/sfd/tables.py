"""Plain text tables for the terminal."""

from collections.abc import Sequence


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first, as lines of text. Every column is as wide as its widest cell; all cells are left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
