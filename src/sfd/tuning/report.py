"""Reports of a study: a table for the terminal, and a folder with a page, pictures and files. Also chooses a trial."""

import base64
import csv
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sfd.errors import UserError
from sfd.params import dump_tree
from sfd.statistics import estimate
from sfd.tuning.cells import (
    BEST,
    Table,
    comparison,
    confirmation_repeats,
    number_text,
    objectives_of,
    score,
    state_of,
    text_of,
    verdict_text,
    with_error,
    with_interval,
)
from sfd.tuning.figures import BASELINE, Picture, draw_study, short_names, with_direction
from sfd.tuning.front import EVEN, draw_fronts, front_table, pick
from sfd.tuning.rounds import describe_rounds, draw_rounds, is_halving, leaders, rounds_table
from sfd.tuning.space import settings


def table(study: Study) -> str:
    """Trials, confirmation and verdicts as plain text. Trials have one row each, by number; ``*`` marks the best, or the Pareto front."""
    parts = [f"Study {study.study_name}: {_headline(study)}", text_of(_trial_table(study))]
    if is_halving(study):
        parts.append(f"Rounds:\n{text_of(rounds_table(study))}")
    points = front_table(study)
    if points is not None:
        parts.append(f"Pareto front:\n{text_of(points)}")
    confirmed = _confirmation_table(study)
    if confirmed is not None:
        parts.append(f"Confirmation with {confirmation_repeats(study)} fresh seeds:\n{text_of(confirmed)}")
    return "\n\n".join([*parts, "\n".join(_sentences(study))]) + "\n"


def choose(study: Study, number: int | None, within: str | None = None) -> FrozenTrial:
    """The trial with this number; or of a front what :func:`sfd.tuning.front.pick` says of ``within``; or the best one.

    Raises:
        UserError: no trial is complete; the trial does not exist or is not complete; or neither is given, and the study has several
            objectives.
    """
    complete = {trial.number: trial for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    if not complete:
        raise UserError(f"study {study.study_name} has no complete trial yet; run `sfd tune`")
    if within is not None:
        if number is not None:
            raise UserError("--trial and --within both choose a trial: give one of them")
        return pick(study, within)
    if number is None:
        if len(study.directions) > 1:
            points = ", ".join(str(trial.number) for trial in sorted(study.best_trials, key=lambda trial: trial.number))
            raise UserError(
                f"study {study.study_name} has several objectives, so no single best trial; choose one of its Pareto front with --trial: {points}, "
                f"or with --within, e.g. --within {objectives_of(study)[-1][0]}=LIMIT"
            )
        best = leaders(study)
        if not best:
            raise UserError(
                f"study {study.study_name} has no best trial until its last round is over: {describe_rounds(study)}; run `sfd tune`"
            )
        return best[0]
    if number not in complete:
        states = {trial.number: state_of(trial) for trial in study.get_trials(deepcopy=False)}
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
    if is_halving(study):
        pictures, not_drawn = draw_rounds(study, folder / "rounds.png"), list[str]()
    else:
        pictures, not_drawn = draw_study(study, folder)
        pictures = draw_fronts(study, folder) + pictures
    files = [folder / "report.html", folder / "trials.csv"]
    files[0].write_text(_page(study, pictures, not_drawn), encoding="utf-8")
    _write_csv(study, files[1])
    if len(study.directions) == 1 and leaders(study):
        files.append(folder / "best.yaml")
        files[-1].write_text(_best_yaml(study), encoding="utf-8")
    return [*files, *(picture.path for picture in pictures)]


def _best_numbers(study: Study) -> list[int]:
    """Numbers of the best trial or of the Pareto front; empty if there is none yet."""
    return sorted(trial.number for trial in leaders(study))


def _headline(study: Study) -> str:
    states = [state_of(trial) for trial in study.get_trials(deepcopy=False)]
    counts = [
        f"{states.count(name)} {name}"
        for name in ("complete", "pruned", "failed", "running", "waiting")
        if name in states
    ]
    what = ", ".join(with_direction(*pair) for pair in objectives_of(study))
    return f"{what}; trials: {', '.join(counts) or 'none'}"


def _trial_table(study: Study) -> Table:
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    names = short_names(dict.fromkeys(key for trial in trials for key in trial.params))
    objectives = [name for name, _ in objectives_of(study)]
    best = _best_numbers(study)
    rows, kinds = [], []
    for trial in trials:
        done = trial.user_attrs.get("values", {})
        scores = [score(done.get(name, []), study.user_attrs["repeats"]) for name in objectives]
        values = [number_text(trial.params[key]) if key in trial.params else "" for key in names]
        seconds, reason = trial.user_attrs.get("seconds"), str(trial.user_attrs.get("reason", ""))
        rows.append(
            [str(trial.number), state_of(trial), *scores, *values, "" if seconds is None else f"{seconds:.0f}", reason]
        )
        kinds.append(BEST if trial.number in best else state_of(trial))
    return Table(["trial", "state", *objectives, *names.values(), "seconds", "reason"], rows, kinds)


def _reference(study: Study) -> str:
    """The candidate that the others are compared with: the best trial, else params.yaml."""
    names = list(study.user_attrs["confirmation"])
    best = [name for name in names if name.startswith("best")]
    return best[0] if best else BASELINE if BASELINE in names else names[0]


def _confirmation_table(study: Study) -> Table | None:
    """One row per candidate: each objective, its difference from that of the reference with the 95 % interval, and the verdict.

    None if there is no confirmation yet."""
    confirmation: dict[str, Any] = study.user_attrs.get("confirmation", {})
    if not confirmation:
        return None
    reference = _reference(study)
    head = ["candidate"]
    rows = [[name] for name in confirmation]
    for objective, direction in objectives_of(study):
        head += [objective, f"{objective} minus {reference.split(' (')[0]}'s [95 %]", "verdict"]
        for row, (name, candidate) in zip(rows, confirmation.items(), strict=True):
            row.append(score(candidate["values"][objective], confirmation_repeats(study)))
            if name == reference:
                row += ["", ""]
                continue
            found = comparison(study, name, reference, objective, direction)
            row += [with_interval(found.difference), verdict_text(found)]
    return Table(head, rows, [BEST if name == reference else "" for name in confirmation])


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
    for objective, direction in objectives_of(study):
        grouped: dict[str, list[str]] = {}
        for name in confirmation:
            if name != reference and not _is_of_front(study, name):
                found = comparison(study, reference, name, objective, direction)
                grouped.setdefault(verdict_text(found), []).append(f"{name} ({with_interval(found.difference)})")
        said = [f"{WORDS[verdict]} {_joined(names)}" for verdict, names in grouped.items()]
        sentences.append(f"Verdict on {objective}: {reference} {'; it '.join(said) or 'stands alone'}.")
    best = _best_numbers(study)
    if len(study.directions) == 1 and best and reference.startswith("best") and f"trial {best[0]})" not in reference:
        sentences.append(f"Trial {best[0]} is the best now, but it is not confirmed.")
    return [*sentences, "In brackets: the mean difference over the same seeds, and its 95 % interval (Student's t)."]


def _is_of_front(study: Study, name: str) -> bool:
    """Whether a confirmed candidate is there for the table of the front."""
    return "evaluations" in study.user_attrs["objectives"] and (name.startswith("trial ") or name.endswith(EVEN))


WORDS = {
    "better": "is better beyond noise than",
    "worse": "is worse beyond noise than",
    "not told apart": "cannot be told apart from",
    "not told apart: one repeat": "cannot be told apart, with one repeat, from",
}


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _write_csv(study: Study, file: Path) -> None:
    """One row per trial with full keys, by number; metrics as ``metrics.NAME``."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    objectives = [name for name, _ in objectives_of(study)]
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
    (best,), objective = leaders(study), study.user_attrs["objectives"][0]
    nested: dict[str, Any] = {}
    for key, value in settings(best).items():
        place = nested
        for part in key.split(".")[:-1]:
            place = place.setdefault(part, {})
        place[key.split(".")[-1]] = value
    score = with_error(estimate(best.user_attrs["values"][objective]))
    head = f"# Study {study.study_name}, trial {best.number}: {objective} {score}. A number as key is an index into a list.\n"
    return head + dump_tree(nested)


def _page(study: Study, pictures: list[Picture], not_drawn: list[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    template = importlib.resources.files("sfd.tuning").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    best = next(iter(leaders(study)), None) if len(study.directions) == 1 else None
    images = [base64.b64encode(picture.path.read_bytes()).decode() for picture in pictures]
    return environment.from_string(template).render(
        name=study.study_name,
        headline=_headline(study),
        sentences=_sentences(study),
        trials=_trial_table(study),
        front=front_table(study),
        confirmation=_confirmation_table(study),
        confirmation_repeats=confirmation_repeats(study) if study.user_attrs.get("confirmation") else 0,
        baseline=study.user_attrs["baseline"],
        best_values={} if best is None else settings(best),
        rounds_of_halving=rounds_table(study) if is_halving(study) else None,
        best=best,
        pictures=list(zip(pictures, images, strict=True)),
        not_drawn=not_drawn,
    )
