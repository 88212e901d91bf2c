"""Loss curves on disk: a CSV for DVC and a picture."""

import csv
from pathlib import Path

from sfd.pictures import plot_curves

HELDOUT_PREFIX = "heldout_"
"""Begins the names of the terms on held-out images, in curves and in MLflow."""


def write_curve(folder: Path, curve: list[dict[str, float]]) -> list[Path]:
    """Writes ``curves.csv`` (step, each term, total; the same on held-out images where there are any) and ``curves.png``; returns both.

    A cell is empty where its value was not measured at that step.
    """
    table, picture = folder / "curves.csv", folder / "curves.png"
    names = list(dict.fromkeys(name for row in curve for name in row))
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=names)
        writer.writeheader()
        writer.writerows(curve)
    terms = {name: [(int(row["step"]), row[name]) for row in curve if name in row] for name in names if name != "step"}
    like = {name: name.removeprefix(HELDOUT_PREFIX) for name in terms if name.startswith(HELDOUT_PREFIX)}
    plot_curves(terms, picture, xlabel="step", ylabel="loss (average of the interval)", log_y=True, like=like)
    return [table, picture]
