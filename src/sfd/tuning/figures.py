"""Pictures of a study. Equal studies give equal bytes.

Optuna draws history, importance, slice and contour, and this module changes their style. It draws the curves itself,
because they show standard errors and the confirmation, which Optuna does not know.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sfd.params import KNOTS, TIME_PARTS
from sfd.pictures import FAINT, GAP_COLOUR, INK, PALETTE, PAPER, plain_axes, save_figure
from sfd.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SLICE_KEYS, CONTOUR_KEYS = 4, 3
"""The most keys that one picture shows; it shows the most important ones. More would not be readable."""

BASELINE = "params.yaml"
MARKERS = "sD^vP*X"
TRIALS = "trials ± standard error"


@dataclass(frozen=True)
class Picture:
    """A file with its caption. ``is_wide``: it has several axes side by side."""

    path: Path
    caption: str
    is_wide: bool = False


class _CannotDraw(Exception):
    """A picture cannot be drawn from this study; the message says why."""


def draw_study(study: Study, folder: Path) -> tuple[list[Picture], list[str]]:
    """Writes every picture for which the study has enough trials into the folder, as PNG. Creates the folder if needed.

    Returns:
        The pictures with captions, and for each picture that cannot be drawn one line that says why.
    """
    objectives: list[str] = study.user_attrs["objectives"]
    pictures: list[Picture] = []
    not_drawn: list[str] = []
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return [], ["There are no pictures yet: no trial is complete."]
    for index, objective in enumerate(objectives):
        if objective == "evaluations":
            continue  # they follow from the values, and the front shows them
        view = _View(study, index, objective)
        suffix = f"_{objective}" if len(objectives) > 1 else ""
        pictures += [_draw_curve(view, key, folder / f"curve_{key}{suffix}.png") for key in view.numeric_keys()]
        for name, draw in (
            ("history", _draw_history),
            ("importance", _draw_importance),
            ("slice", _draw_slice),
            ("contour", _draw_contour),
        ):
            try:
                pictures.append(draw(view, folder / f"{name}{suffix}.png"))
            except _CannotDraw as error:
                not_drawn.append(f"{name.capitalize()} is not drawn: {error}.")
    return pictures, list(dict.fromkeys(not_drawn))


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """For each dotted key its shortest unique ending. A list index keeps the name of its list."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-length:]) for length in range(1, len(parts) + 1) if not parts[-length].isdecimal()]
        unique = (end for end in endings if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
        # A whole key can be the ending of another one.
        names[key] = next(unique, key)
    return names


def with_direction(objective: str, direction: StudyDirection) -> str:
    """The objective's name, and which way it gets better."""
    return f"{objective} ({'lower' if direction == StudyDirection.MINIMIZE else 'higher'} is better)"


class _View:
    """One objective of a study with its complete trials and their keys."""

    def __init__(self, study: Study, index: int, objective: str) -> None:
        self.study, self.index, self.objective = study, index, objective
        self.trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self.distributions = {key: kind for trial in self.trials for key, kind in trial.distributions.items()}
        self.names = short_names(self.distributions)
        self.label = with_direction(objective, study.directions[index])

    def value(self, trial: FrozenTrial) -> float:
        return float(trial.values[self.index])

    @property
    def target(self) -> Callable[[FrozenTrial], float] | None:
        """The value that Optuna's pictures show. None for a single objective, whose direction Optuna then knows."""
        return self.value if len(self.study.directions) > 1 else None

    def cost(self, trial: FrozenTrial) -> float:
        """The value, with its sign changed if higher is better: Optuna's importance assumes that lower is better."""
        return self.value(trial) * (1 if self.study.directions[self.index] == StudyDirection.MINIMIZE else -1)

    def numeric_keys(self) -> list[str]:
        return [
            key
            for key, kind in self.distributions.items()
            if (not isinstance(kind, CategoricalDistribution) or _is_numeric(kind)) and not _is_part(key)
        ]

    def is_log(self, key: str) -> bool:
        kind = self.distributions[key]
        return isinstance(kind, FloatDistribution | IntDistribution) and kind.log

    def varying_keys(self) -> list[str]:
        """Keys with two or more different values; the most important first, if importance can be computed."""
        keys = [key for key in self.distributions if len({trial.params.get(key) for trial in self.trials}) > 1]
        if len(keys) < 2 or len({self.value(trial) for trial in self.trials}) < 2:
            return keys
        from optuna.importance import get_param_importances

        with _optuna_drawing():
            return list(get_param_importances(self.study, params=keys, target=self.cost))


def _is_numeric(kind: CategoricalDistribution) -> bool:
    return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in kind.choices)


def _is_part(key: str) -> bool:
    """Whether it is one of many numbers that together say what a list is."""
    return key.rpartition(".")[2] in TIME_PARTS or key.startswith(f"{KNOTS}.change_")


def _draw_curve(view: _View, key: str, path: Path) -> Picture:
    """The objective against one key: one point per complete trial, and the confirmation."""
    figure, axes = plain_axes(key, view.label)
    points = [
        (float(trial.params[key]), estimate(trial.user_attrs["values"][view.objective]))
        for trial in view.trials
        if key in trial.params
    ]
    axes.errorbar(
        [x for x, _ in points],
        [found.mean for _, found in points],
        yerr=[found.error or 0.0 for _, found in points],
        fmt="o",
        color=PALETTE[0],
        markersize=4.5,
        elinewidth=1,
        label=TRIALS,
    )
    confirmation: dict[str, Any] = view.study.user_attrs.get("confirmation", {})
    _mark_confirmation(
        axes, {name: (item["params"].get(key), item["values"][view.objective]) for name, item in confirmation.items()}
    )
    if view.is_log(key):
        axes.set_xscale("log")
    few_ticks(axes.xaxis, view.is_log(key))
    few_ticks(axes.yaxis)
    # matplotlib lists lines before points, whatever was drawn first.
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: [TRIALS, *confirmation].index(labels[place]))
    legend(figure, [handles[place] for place in order], [labels[place] for place in order])
    save_figure(figure, path)
    title = "The tau curve" if key.split(".")[-1] == "tau" else f"{view.objective} against {key}"
    more = (
        " Marked: the confirmation, with 95 % intervals, on other seeds and reference images." if confirmation else ""
    )
    return Picture(path, f"{title}: mean of each complete trial's repeats ± standard error.{more}")


def _mark_confirmation(axes: "Axes", candidates: dict[str, tuple[float | None, Sequence[float]]]) -> None:
    """Draws each candidate as a hollow mark, and params.yaml also as a line.

    ``candidates``: name to (value of the key or None, objective of each repeat).
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    assert isinstance(axes.figure, Figure)
    taken: list[float] = []
    for number, (name, (x, values)) in enumerate(candidates.items()):
        found, colour = estimate(values), INK if name == BASELINE else PALETTE[1:][number % (len(PALETTE) - 1)]
        if name == BASELINE:
            axes.axhline(found.mean, color=colour, linewidth=1.2, linestyle=(0, (5, 3)), label=name)
        if x is None:
            continue
        low, high = found.interval or (found.mean, found.mean)
        # Candidates with the same value are drawn side by side. matplotlib's limits ignore what is shifted, so they are set here.
        beside = ScaledTranslation(taken.count(x) * 8 / 72, 0, axes.figure.dpi_scale_trans)
        taken.append(x)
        axes.update_datalim([(x, low), (x, high)])
        axes.errorbar(
            x,
            found.mean,
            yerr=[[found.mean - low], [high - found.mean]],
            fmt=MARKERS[number % len(MARKERS)],
            color=colour,
            markersize=8,
            markerfacecolor="none",
            markeredgewidth=1.6,
            capsize=4,
            label=None if name == BASELINE else name,
            transform=axes.transData + beside,
            zorder=3,
        )
    axes.autoscale_view()


def _draw_history(view: _View, path: Path) -> Picture:
    from optuna.visualization.matplotlib import plot_optimization_history

    with _optuna_drawing():
        axes = plot_optimization_history(view.study, target=view.target, target_name=view.objective)
        figure = _figure_of(axes)
        figure.set_layout_engine("constrained")
        axes.legend_.remove()  # type: ignore[union-attr]
        _restyle(axes)
        axes.set(xlabel="trial", ylabel=view.label)
        axes.collections[0].set_color(PALETTE[0])
        # The best value is a step function: it changes only where a trial beats it. The axis ends at the last complete trial.
        for line in axes.lines:
            line.set(color=PALETTE[1], alpha=1.0, drawstyle="steps-post")
        axes.set_xlim(-0.5, view.trials[-1].number + 0.5)
        few_ticks(axes.xaxis, whole=True)
        few_ticks(axes.yaxis)
        handles, _ = axes.get_legend_handles_labels()
        legend(figure, handles, ["trial", "best so far"][: len(handles)])
        save_figure(figure, path)
    return Picture(path, f"{view.objective} of the complete trials, in their order.")


def _draw_importance(view: _View, path: Path) -> Picture:
    from optuna.visualization.matplotlib import plot_param_importances

    keys = view.varying_keys()
    if len(keys) < 2:
        raise _CannotDraw("importance compares two keys or more, each with two values or more")
    if len({view.value(trial) for trial in view.trials}) < 2:
        raise _CannotDraw(f"all complete trials have the same {view.objective}")
    with _optuna_drawing():
        axes = plot_param_importances(view.study, params=keys, target=view.cost, target_name=view.objective)
        axes.legend_.remove()  # type: ignore[union-attr]
        _restyle(axes, grid="x")
        axes.set(xlabel=f"share of the variation of {view.objective} among good trials", ylabel="")
        axes.set_yticks(axes.get_yticks(), [view.names[text.get_text()] for text in axes.get_yticklabels()])
        for text in axes.texts:
            text.set(text=f" {text.get_text()}", color=INK, fontsize=9)
        for bar in axes.patches:
            bar.set_facecolor(PALETTE[0])
        axes.set_xlim(0, 1.12 * max(axes.get_xlim()[1] / 1.12, max(bar.get_width() for bar in axes.patches)))  # type: ignore[attr-defined]
        few_ticks(axes.xaxis)
        save_figure(_figure_of(axes), path)
    return Picture(path, f"Importance of each key for {view.objective} (PED-ANOVA); with few trials a rough guess.")


def _draw_slice(view: _View, path: Path) -> Picture:
    from optuna.visualization.matplotlib import plot_slice

    keys = view.varying_keys()[:SLICE_KEYS]
    if not keys:
        raise _CannotDraw("no key has two values or more")
    with _optuna_drawing():
        drawn: Any = plot_slice(view.study, params=keys, target=view.target, target_name=view.label)
        all_axes = np.atleast_1d(drawn)
        for axes in all_axes:
            key = axes.get_xlabel()
            _restyle(axes)
            axes.set_xlabel(view.names[key])
            if isinstance(view.distributions[key], CategoricalDistribution):
                left, right = axes.get_xlim()
                axes.set_xlim(left - 0.3, right + 0.3)
            else:
                few_ticks(axes.xaxis, view.is_log(key), most=3)
            few_ticks(axes.yaxis)
        figure = _figure_of(all_axes[0])
        _restyle_colorbar(figure.axes[-1], "trial", whole=True)
        save_figure(figure, path)
    return Picture(
        path,
        f"{view.objective} of the complete trials against {_listed(view, keys)}; later trials are darker.",
        len(keys) > 2,
    )


def _draw_contour(view: _View, path: Path) -> Picture:
    from optuna.visualization.matplotlib import plot_contour

    keys = view.varying_keys()[:CONTOUR_KEYS]
    if len(keys) < 2:
        raise _CannotDraw("a contour needs two keys, each with two values or more")
    with _optuna_drawing(side=4.8 if len(keys) == 2 else 2.7 * len(keys)):
        drawn: Any = plot_contour(view.study, params=keys, target=view.target, target_name=view.objective)
        all_axes = np.atleast_2d(drawn)
        for axes in all_axes.ravel():
            _restyle(axes, grid=None)
            for axis in (axes.xaxis, axes.yaxis):
                key = axis.get_label_text()
                axis.set_label_text(view.names.get(key, ""))
                if key and not isinstance(view.distributions[key], CategoricalDistribution):
                    few_ticks(axis, view.is_log(key), most=4)
            axes.label_outer()
        figure = _figure_of(all_axes.flat[0])
        if len(figure.axes) > all_axes.size:
            _restyle_colorbar(figure.axes[-1], view.label)
        save_figure(figure, path)
    return Picture(
        path,
        f"{view.objective} over pairs of {_listed(view, keys)}: interpolated between the complete trials (dots).",
        len(keys) > 2,
    )


def _listed(view: _View, keys: list[str]) -> str:
    shown = ", ".join(view.names[key] for key in keys)
    more = len(view.distributions) - len(keys)
    return f"{shown} ({more} less important or constant are not shown)" if more else shown


@contextmanager
def _optuna_drawing(side: float | None = None) -> Iterator[None]:
    """Closes the pyplot figures that Optuna opens in the block, restores the style, and silences warnings of experimental functions."""
    import matplotlib
    from matplotlib import pyplot

    pyplot.switch_backend("agg")  # no window, even where there is a screen
    before = set(pyplot.get_fignums())
    size = (6.4, 4.0) if side is None else (side * 4 / 3, side)
    try:
        with (
            matplotlib.rc_context({"figure.constrained_layout.use": True, "figure.figsize": size}),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.filterwarnings(
                "ignore", "PedAnovaImportanceEvaluator computes the importances .* low `target`", UserWarning
            )
            yield
    finally:
        for number in set(pyplot.get_fignums()) - before:
            pyplot.close(number)


def _figure_of(axes: "Axes") -> "Figure":
    from matplotlib.figure import Figure

    assert isinstance(axes.figure, Figure)
    axes.figure.suptitle("")
    return axes.figure


def _restyle(axes: "Axes", grid: str | None = "y") -> None:
    axes.set_title("")
    axes.set_title("", loc="left")
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=10)
    axes.yaxis.label.set(color=INK, size=10)
    axes.grid(False, which="both")
    if grid is not None:
        axes.grid(axis=grid, color=GAP_COLOUR, linewidth=0.8)  # type: ignore[arg-type]


def _restyle_colorbar(axes: "Axes", label: str, whole: bool = False) -> None:
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.set_ylabel(label, color=INK, size=10)
    axes.grid(False)
    few_ticks(axes.yaxis, whole=whole)


def legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)


def few_ticks(axis: "Axis", log: bool = False, whole: bool = False, most: int = 5) -> None:
    """Allows at most ``most`` intervals between the numbers on an axis, and writes 0.05 rather than 5 x 10^-2."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

    if log:
        low, high = axis.get_view_interval()
        # Over less than two decades, powers of ten alone would be a single number or none.
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 1 else (1.0, 3.0) if decades < 2 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(most, integer=whole, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
