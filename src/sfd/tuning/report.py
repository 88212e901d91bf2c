"""Reports of a study: a table for the terminal, and a folder with a page, pictures and files. Also chooses a trial."""

import base64
import csv
import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sfd.errors import UserError
from sfd.params import dump_tree
from sfd.statistics import Comparison, Direction, Estimate, compare, estimate
from sfd.tables import as_text
from sfd.tuning.figures import BASELINE, Picture, draw_study, short_names, with_direction

BEST, MARK = "best", "*"


@dataclass(frozen=True)
class Table:
    """Rows of cells as text. ``kinds``: for each row ``best``, or the trial's state, or an empty string."""

    head: list[str]
    rows: list[list[str]]
    kinds: list[str]


def table(study: Study) -> str:
    """Trials, confirmation and verdicts as plain text. Trials have one row each, by number; ``*`` marks the best, or the Pareto front."""
    parts = [f"Study {study.study_name}: {_headline(study)}", _as_text(_trial_table(study))]
    confirmed = _confirmation_table(study)
    if confirmed is not None:
        parts.append(f"Confirmation with {_confirmation_repeats(study)} fresh seeds:\n{_as_text(confirmed)}")
    return "\n\n".join([*parts, "\n".join(_sentences(study))]) + "\n"


def choose(study: Study, number: int | None) -> FrozenTrial:
    """The trial with this number, or the best one if ``number`` is None.

    Raises:
        UserError: no trial is complete; the trial does not exist or is not complete; or there is no number, and the study has several
            objectives.
    """
    complete = {trial.number: trial for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    if not complete:
        raise UserError(f"study {study.study_name} has no complete trial yet; run `sfd tune`")
    if number is None:
        if len(study.directions) > 1:
            front = ", ".join(str(trial.number) for trial in sorted(study.best_trials, key=lambda trial: trial.number))
            raise UserError(
                f"study {study.study_name} has several objectives, so no single best trial; choose one of its Pareto front with --trial: {front}"
            )
        return complete[study.best_trial.number]
    if number not in complete:
        states = {trial.number: _state(trial) for trial in study.get_trials(deepcopy=False)}
        what = f"is {states[number]}" if number in states else "does not exist"
        raise UserError(
            f"trial {number} of study {study.study_name} {what}; choose a complete one: {', '.join(map(str, complete))}"
        )
    return complete[number]


def write_report(study: Study, folder: Path) -> list[Path]:
    """Writes ``report.html``, ``trials.csv``, ``best.yaml`` (one objective and a complete trial) and the pictures into the folder.

    Creates the folder if needed, and replaces files of these names. Returns the written files, the page first. The page needs
    no other file and no network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, not_drawn = draw_study(study, folder)
    files = [folder / "report.html", folder / "trials.csv"]
    files[0].write_text(_page(study, pictures, not_drawn), encoding="utf-8")
    _write_csv(study, files[1])
    if len(study.directions) == 1 and pictures:
        files.append(folder / "best.yaml")
        files[-1].write_text(_best_yaml(study), encoding="utf-8")
    return [*files, *(picture.path for picture in pictures)]


def _objectives(study: Study) -> list[tuple[str, StudyDirection]]:
    return list(zip(study.user_attrs["objectives"], study.directions, strict=True))


def _best_numbers(study: Study) -> list[int]:
    """Numbers of the best trial or of the Pareto front; empty if no trial is complete."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return sorted(trial.number for trial in (study.best_trials if len(study.directions) > 1 else [study.best_trial]))


def _headline(study: Study) -> str:
    states = [_state(trial) for trial in study.get_trials(deepcopy=False)]
    counts = [
        f"{states.count(name)} {name}"
        for name in ("complete", "pruned", "failed", "running", "waiting")
        if name in states
    ]
    what = ", ".join(with_direction(*pair) for pair in _objectives(study))
    return f"{what}; trials: {', '.join(counts) or 'none'}"


def _state(trial: FrozenTrial) -> str:
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def _trial_table(study: Study) -> Table:
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    names = short_names(dict.fromkeys(key for trial in trials for key in trial.params))
    objectives = [name for name, _ in _objectives(study)]
    best = _best_numbers(study)
    rows, kinds = [], []
    for trial in trials:
        done = trial.user_attrs.get("values", {})
        scores = [_score(done.get(name, []), study.user_attrs["repeats"]) for name in objectives]
        values = [_number(trial.params[key]) if key in trial.params else "" for key in names]
        seconds, reason = trial.user_attrs.get("seconds"), str(trial.user_attrs.get("reason", ""))
        rows.append(
            [str(trial.number), _state(trial), *scores, *values, "" if seconds is None else f"{seconds:.0f}", reason]
        )
        kinds.append(BEST if trial.number in best else _state(trial))
    return Table(["trial", "state", *objectives, *names.values(), "seconds", "reason"], rows, kinds)


def _score(values: Sequence[float], repeats: int) -> str:
    """Mean and standard error; also the number of finished repeats if some are missing."""
    if not values:
        return ""
    return _with_error(estimate(values)) + (f" ({len(values)} of {repeats})" if len(values) < repeats else "")


def _with_error(found: Estimate) -> str:
    """Mean and standard error, both rounded to two digits of the error."""
    decimals = _decimals(found)
    if decimals is None:
        return f"{found.mean:.4g}"
    return f"{found.mean:.{decimals}f} ± {found.error:.{decimals}f}"


def _with_interval(found: Estimate) -> str:
    """Mean difference and its 95 % interval."""
    decimals = _decimals(found)
    if decimals is None or found.interval is None:
        return f"{found.mean:+.3g}"
    low, high = found.interval
    return f"{found.mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def _decimals(found: Estimate) -> int | None:
    """Decimal places that show two digits of the standard error; None if the error is only rounding."""
    if found.error is None or found.error <= 1e-9 * max(1.0, abs(found.mean)):
        return None
    return max(0, 1 - math.floor(math.log10(found.error)))


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _reference(study: Study) -> str:
    """The candidate that the others are compared with: the best trial, else params.yaml."""
    names = list(study.user_attrs["confirmation"])
    best = [name for name in names if name.startswith("best")]
    return best[0] if best else BASELINE if BASELINE in names else names[0]


def _confirmation_repeats(study: Study) -> int:
    """The largest number of repeats of any candidate. One whose scoring was interrupted, or still runs, has fewer."""
    confirmation: dict[str, Any] = study.user_attrs["confirmation"]
    return max(len(values) for candidate in confirmation.values() for values in candidate["values"].values())


def _comparison(study: Study, name: str, other: str, objective: str, direction: StudyDirection) -> Comparison:
    """Compares two candidates over the repeats that both have. Repeat k has the same seed in both."""
    confirmation: dict[str, Any] = study.user_attrs["confirmation"]
    sense: Direction = "minimize" if direction == StudyDirection.MINIMIZE else "maximize"
    mine, theirs = (confirmation[candidate]["values"][objective] for candidate in (name, other))
    count = min(len(mine), len(theirs))
    return compare(mine[:count], theirs[:count], sense)


def _confirmation_table(study: Study) -> Table | None:
    """One row per candidate: each objective, its difference from that of the reference with the 95 % interval, and the verdict.

    None if there is no confirmation yet."""
    confirmation: dict[str, Any] = study.user_attrs.get("confirmation", {})
    if not confirmation:
        return None
    reference = _reference(study)
    head = ["candidate"]
    rows = [[name] for name in confirmation]
    for objective, direction in _objectives(study):
        head += [objective, f"{objective} minus {reference.split(' (')[0]}'s [95 %]", "verdict"]
        for row, (name, candidate) in zip(rows, confirmation.items(), strict=True):
            row.append(_score(candidate["values"][objective], _confirmation_repeats(study)))
            if name == reference:
                row += ["", ""]
                continue
            found = _comparison(study, name, reference, objective, direction)
            row += [_with_interval(found.difference), _verdict(found)]
    return Table(head, rows, [BEST if name == reference else "" for name in confirmation])


def _verdict(found: Comparison) -> str:
    return f"{found.verdict}: {found.reason}" if found.reason else found.verdict


def _sentences(study: Study) -> list[str]:
    attrs = study.user_attrs
    return [
        *verdicts(study),
        f"A repeat compares {attrs['num_images']} images with {attrs['num_reference']} reference images. A Frechet distance falls "
        "with the number of images, so compare only values with equal counts.",
    ]


def verdicts(study: Study) -> list[str]:
    """One sentence per objective: how the reference compares with every other candidate in the confirmation."""
    confirmation: dict[str, Any] = study.user_attrs.get("confirmation", {})
    if not confirmation:
        return ["There is no confirmation with fresh seeds yet: the best of several trials looks better than it is."]
    reference = _reference(study)
    sentences = []
    for objective, direction in _objectives(study):
        grouped: dict[str, list[str]] = {}
        for name in confirmation:
            if name != reference:
                found = _comparison(study, reference, name, objective, direction)
                grouped.setdefault(_verdict(found), []).append(f"{name} ({_with_interval(found.difference)})")
        said = [f"{WORDS[verdict]} {_joined(names)}" for verdict, names in grouped.items()]
        sentences.append(f"Verdict on {objective}: {reference} {'; it '.join(said) or 'stands alone'}.")
    best = _best_numbers(study)
    if len(study.directions) == 1 and reference.startswith("best") and f"trial {best[0]})" not in reference:
        sentences.append(f"Trial {best[0]} is the best now, but it is not confirmed.")
    return [*sentences, "In brackets: the mean difference over the same seeds, and its 95 % interval (Student's t)."]


WORDS = {
    "better": "is better beyond noise than",
    "worse": "is worse beyond noise than",
    "not told apart": "cannot be told apart from",
    "not told apart: one repeat": "cannot be told apart, with one repeat, from",
}


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _as_text(content: Table) -> str:
    """The table as text, with a column of marks before it."""
    marks = [MARK if kind == BEST else "" for kind in content.kinds]
    return as_text([["", *content.head], *([mark, *row] for mark, row in zip(marks, content.rows, strict=True))])


def _write_csv(study: Study, file: Path) -> None:
    """One row per trial with full keys, by number; metrics as ``metrics.NAME``."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    objectives = [name for name, _ in _objectives(study)]
    rows = []
    for trial in trials:
        attrs = trial.user_attrs
        found = {name: estimate(values) for name, values in attrs.get("values", {}).items() if values}
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "slot": attrs.get("slot"),
                "attempt": attrs.get("attempt"),
            }
            | {name: found[name].mean for name in objectives if name in found}
            | {f"{name}.standard_error": found[name].error for name in objectives if name in found}
            | {"repeats": max((one.repeats for one in found.values()), default=0)}
            | trial.params
            | {f"metrics.{name}": value for name, value in attrs.get("metrics", {}).items()}
            | {key: attrs.get(key) for key in ("seconds", "reason", "worker", "mlflow_run_id")}
        )
    # Complete trials have every column, so the longest row gives the order.
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _best_yaml(study: Study) -> str:
    best, objective = study.best_trial, study.user_attrs["objectives"][0]
    nested: dict[str, Any] = {}
    for key, value in best.params.items():
        place = nested
        for part in key.split(".")[:-1]:
            place = place.setdefault(part, {})
        place[key.split(".")[-1]] = value
    score = _with_error(estimate(best.user_attrs["values"][objective]))
    head = f"# Study {study.study_name}, trial {best.number}: {objective} {score}. A number as key is an index into a list.\n"
    return head + dump_tree(nested)


def _page(study: Study, pictures: list[Picture], not_drawn: list[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    template = importlib.resources.files("sfd.tuning").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    images = [base64.b64encode(picture.path.read_bytes()).decode() for picture in pictures]
    return environment.from_string(template).render(
        name=study.study_name,
        headline=_headline(study),
        sentences=_sentences(study),
        trials=_trial_table(study),
        confirmation=_confirmation_table(study),
        confirmation_repeats=_confirmation_repeats(study) if study.user_attrs.get("confirmation") else 0,
        baseline=study.user_attrs["baseline"],
        best=study.best_trial if len(study.directions) == 1 and pictures else None,
        pictures=list(zip(pictures, images, strict=True)),
        not_drawn=not_drawn,
    )
