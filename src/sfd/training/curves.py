"""Loss curves on disk: a CSV for DVC and a picture."""

import csv
from pathlib import Path

from sfd.pictures import plot_curves


def write_curve(folder: Path, curve: list[dict[str, float]]) -> list[Path]:
    """Writes ``curves.csv`` (step, each term, total) and ``curves.png``; returns both."""
    table, picture = folder / "curves.csv", folder / "curves.png"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)
    terms = {name: [(int(row["step"]), row[name]) for row in curve] for name in curve[0] if name != "step"}
    plot_curves(terms, picture, xlabel="step", ylabel="loss (average of the interval)", log_y=True)
    return [table, picture]
