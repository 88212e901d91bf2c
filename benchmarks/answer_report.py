"""The report of benchmarks/answer.py: one table, one picture, and how small an effect could have been seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answer_points import POINTS, SYNC

from sfd.pictures import FAINT, GAP_COLOUR, INK, PALETTE, PAPER, save_figure
from sfd.statistics import Estimate, compare, estimate, smallest_effect
from sfd.text_file import replace_text

NAMES = ("first judge", "second judge")
PAIRS = (
    ("redi-tau-0.3", "redi-sync"),
    ("va-vae-tau-0.3", "va-vae-sync"),
    ("va-vae-sync", "va-vae-alone"),
    ("va-vae-alone", "none"),
)
"""What is compared beside each point with `sync`: an offset with its own `sync`, and what the semantics and the alignment bring."""


@dataclass(frozen=True)
class Finished:
    """A finished training. ``combination``: its data set and encoder; ``content``: that of its file."""

    combination: str
    content: dict[str, Any]

    @property
    def point(self) -> str:
        """Its name."""
        return str(self.content["point"])

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.content["seed"])

    @property
    def looks(self) -> list[dict[str, float]]:
        """What was measured on the way; the last one is the end."""
        found: list[dict[str, float]] = self.content["looks"]
        return found

    def distances(self) -> list[float]:
        """At the end, by judge."""
        first, *others = self.content["judges"]
        return [self.looks[-1]["fd"], *(self.looks[-1][name] for name in others)]


def images_to_reach(looks: Sequence[dict[str, float]], distance: float) -> float | None:
    """Training images after which the distance is no larger for the first time, by straight lines between the logarithms of the distances.

    None if it never is. If it is at the first look already, that look's images: what was before is not known.
    """
    for before, after in zip([looks[0], *looks], looks, strict=False):
        if after["fd"] <= distance:
            if before is after or before["fd"] <= distance:
                return after["images"]
            share = math.log(before["fd"] / distance) / math.log(before["fd"] / after["fd"])
            return before["images"] + share * (after["images"] - before["images"])
    return None


@dataclass(frozen=True)
class Row:
    """A point of a combination, with the trainings of the seeds that are finished of it; ``base``: those of `sync`."""

    point: str
    trainings: dict[int, Finished]
    base: dict[int, Finished]

    def paired(self) -> tuple[list[Finished], list[Finished]]:
        """Of the seeds that both have."""
        seeds = sorted(self.trainings.keys() & self.base.keys())
        return [self.trainings[seed] for seed in seeds], [self.base[seed] for seed in seeds]

    def differences(self, judge: int) -> list[float]:
        """The distance minus that of `sync` with the same seed."""
        return [a.distances()[judge] - b.distances()[judge] for a, b in zip(*self.paired(), strict=True)]

    def verdict(self, judge: int) -> tuple[Estimate, str] | None:
        """The mean difference from `sync`; None for `sync` itself, and where no seed has both."""
        mine, theirs = self.paired()
        if self.point == SYNC or not mine:
            return None
        found = compare(
            [each.distances()[judge] for each in mine], [each.distances()[judge] for each in theirs], "minimize"
        )
        return found.difference, found.verdict

    def mean(self, judge: int) -> Estimate:
        """Of the distance at the end."""
        return estimate([each.distances()[judge] for each in self.trainings.values()])


def rows_of(finished: Sequence[Finished], points: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each combination."""
    found: dict[str, list[Row]] = {}
    for combination in dict.fromkeys(each.combination for each in finished):
        by_point = {
            point: {each.seed: each for each in finished if (each.combination, each.point) == (combination, point)}
            for point in POINTS
        }
        rows = [Row(point, by_point[point], by_point[SYNC]) for point in POINTS if point in points and by_point[point]]
        if rows:
            found[combination] = rows
    return found


def _shown(value: Estimate, digits: int = 3) -> str:
    """The mean, and half of its 95 % interval."""
    interval = value.interval
    return f"{value.mean:.{digits}f}" + ("" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.{digits}f}")


def _reached(row: Row, target: float) -> str:
    found = [images for each in row.trainings.values() if (images := images_to_reach(each.looks, target)) is not None]
    if not found:
        return "not reached"
    missing = len(row.trainings) - len(found)
    return _shown(estimate([images / 1000 for images in found]), 1) + (f" ({missing} not)" if missing else "")


def _table(combination: str, rows: Sequence[Row]) -> list[str]:
    lines = []
    base = next((row for row in rows if row.point == SYNC), None)
    for row in rows:
        cells = [combination, row.point, f"{len(row.trainings)}", *(_shown(row.mean(judge)) for judge in (0, 1))]
        cells.append(_shown(estimate([each.looks[-1]["class_accuracy"] for each in row.trainings.values()]), 3))
        for judge in (0, 1):
            found = row.verdict(judge)
            cells.append("-" if found is None else f"{_shown(found[0])}, {found[1]}")
        cells.append("-" if base is None else _reached(row, base.mean(0).mean))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pairs(found: dict[str, list[Row]]) -> list[str]:
    """The table of :data:`PAIRS`; empty if no pair is finished."""
    lines = []
    for combination, rows in found.items():
        by_point = {row.point: row.trainings for row in rows}
        for point, other in PAIRS:
            pair = Row(point, by_point.get(point, {}), by_point.get(other, {}))
            verdicts = [pair.verdict(judge) for judge in (0, 1)]
            cells = [f"{_shown(value[0])}, {value[1]}" for value in verdicts if value is not None]
            if cells:
                lines.append(f"| {' | '.join([combination, f'{point} minus {other}', *cells])} |")
    head = ["data, encoder", "pair", "FD, first judge", "FD, second judge"]
    return ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines] if lines else []


def _notes(combination: str, rows: Sequence[Row]) -> list[str]:
    """What the table leaves out: the floors, the texture VAEs, the target, and the smallest effect."""
    first = next(iter(rows[0].trainings.values())).content
    floors = ", ".join(f"{name} {value:.3f}" for name, value in first["floors"].items())
    psnr = {row.point: next(iter(row.trainings.values())).content["texture_vae"]["psnr"] for row in rows}
    vaes = ", ".join(
        f"{value:.1f} dB (`{'`, `'.join(name for name in psnr if psnr[name] == value)}`)"
        for value in dict.fromkeys(psnr.values())
    )
    lines = [
        f"**{combination}**: {first['steps']:,} steps per training, {first['num_images']} samples per measurement. Held-out images have the "
        f"distances {floors}. Texture VAEs reconstruct held-out images with a PSNR of {vaes}."
    ]
    base = next((row for row in rows if row.point == SYNC), None)
    if base is None:
        return [*lines, f"`{SYNC}` is not finished, so there is nothing to compare with."]
    lines.append(
        f"Images are counted until the distance by the first judge is {base.mean(0).mean:.3f}, that of `{SYNC}` at its end."
    )
    for judge, name in enumerate(NAMES):
        smallest = smallest_effect([row.differences(judge) for row in rows if row.point != SYNC])
        lines.append(
            f"Smallest effect by the {name}: one that 80 % of such experiments find has a difference of {smallest:.3f}, "
            f"{100 * smallest / base.mean(judge).mean:.0f} % of the distance of `{SYNC}`."
            if smallest is not None
            else f"Smallest effect by the {name}: not known, for it needs two seeds of `{SYNC}` and of another point."
        )
    return lines


def report(finished: Sequence[Finished], points: Sequence[str]) -> str:
    """The report as Markdown."""
    found = rows_of(finished, points)
    if not found:
        return "No training is finished yet.\n"
    head = ["data, encoder", "point", "seeds", "FD, first judge", "FD, second judge", "class accuracy"]
    head += ["minus sync, first", "minus sync, second", "images to reach sync's FD, thousands"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for combination, rows in found.items():
        lines += _table(combination, rows)
    lines += _pairs(found)
    lines += [
        "",
        "± is half of the 95 % interval of the mean over the seeds (Student's t). Differences are within a seed; `better` and",
        "`worse` are said where their interval excludes 0, without a correction for the number of points.",
    ]
    for combination, rows in found.items():
        lines += ["", "\n".join(_notes(combination, rows))]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, list[Row]], file: Path) -> None:
    """A row per combination: the distance by the first judge, and the difference from `sync`; bars are 95 % intervals over the seeds."""
    from matplotlib.figure import Figure

    height = sum(1.2 + 0.28 * len(rows) for rows in found.values())
    figure = Figure(figsize=(9.6, height), layout="constrained", facecolor=PAPER)
    ratios = [1.2 + 0.28 * len(rows) for rows in found.values()]
    panels = figure.subplots(len(found), 2, squeeze=False, sharey="row", height_ratios=ratios)
    for (combination, rows), (left, right) in zip(found.items(), panels, strict=True):
        places = range(len(rows))
        _bars(left, places, [row.mean(0) for row in rows])
        compared = [
            (place, verdict[0])
            for place, row in zip(places, rows, strict=True)
            if (verdict := row.verdict(0)) is not None
        ]
        _bars(right, [place for place, _ in compared], [value for _, value in compared])
        right.axvline(0.0, color=FAINT, linewidth=1.0)
        left.set_yticks(list(places), [row.point for row in rows])
        left.invert_yaxis()
        left.set_title(combination, fontsize=10, color=INK, loc="left")
        left.set_xlabel("Frechet distance by the first judge", color=INK)
        right.set_xlabel("minus that of sync with the same seed", color=INK)
    save_figure(figure, file)


def _bars(axes: Any, places: Sequence[int], values: Sequence[Estimate]) -> None:
    halves = [0.0 if value.interval is None else value.interval[1] - value.mean for value in values]
    means = [value.mean for value in values]
    axes.errorbar(means, list(places), xerr=halves, fmt="o", color=PALETTE[0], markersize=4, capsize=3, linewidth=1.6)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(axis="x", color=GAP_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)


def write_report(finished: Sequence[Finished], points: Sequence[str], out: Path) -> str:
    """Writes ``report.md`` and ``answer.png``, and returns the text."""
    text, found = report(finished, points), rows_of(finished, points)
    replace_text(out / "report.md", text)
    if found:
        draw(found, out / "answer.png")
    return text
