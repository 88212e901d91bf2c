"""Confirmation: the best trial and the baselines are scored again, with fresh seeds and reference images that no trial has seen."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sfd.errors import UserError
from sfd.params import TIMES, Params, TauRange, even_times, with_values
from sfd.seeding import derive_seed
from sfd.tuning.cells import BEST
from sfd.tuning.evaluator import CONFIRMATION, CandidateEvaluator
from sfd.tuning.front import EVEN, front
from sfd.tuning.rounds import confirmed_names, is_halving
from sfd.tuning.space import settings

if TYPE_CHECKING:
    from optuna import Study

BASELINE_TAUS = (0.3, 0.0)
"""The paper's offset, and ordinary diffusion."""


def confirm(study: "Study", params: Params, evaluator: CandidateEvaluator, folder: Path) -> None:
    """Scores the best trial and the baselines ``tune.confirm_repeats`` times each. Stores this in the study's attribute ``confirmation``.

    A repeat has fresh sampling seeds, and in a study of kind `training` (or with ``tune.refine_steps``) also a fresh training.
    All candidates share the seeds. Scores of an interrupted confirmation are kept. ``folder`` holds temporary files.
    """
    known: dict[str, dict[str, Any]] = study.user_attrs.get("confirmation", {})
    confirmation: dict[str, dict[str, Any]] = {}
    measured: list[tuple[Params, dict[str, list[float]]]] = []
    for name, values in candidates(study, params).items():
        candidate = with_values(params, values)
        shared = [scores for other, scores in measured if other == candidate]
        kept = known.get(name, {})
        scores = shared[0] if shared else kept["values"] if kept.get("params") == values else {}
        measured.append((candidate, scores))
        confirmation[name] = {"params": values, "values": scores}
        for repeat in range(len(next(iter(scores.values()), [])), params.tune.confirm_repeats):
            for objective, value in _score(evaluator, candidate, repeat, folder).items():
                scores.setdefault(objective, []).append(value)
            study.set_user_attr("confirmation", confirmation)
    study.set_user_attr("confirmation", confirmation)


def candidates(study: "Study", params: Params) -> dict[str, dict[str, Any]]:
    """The values of each candidate, by its name. Of a halving study, those of its last round.

    If there is a Pareto front, the best trial is the one that is best in the first objective.
    """
    if is_halving(study):
        return {name: settings(trial) for name, trial in confirmed_names(study).items()}
    best = min(
        study.best_trials, key=lambda trial: trial.values[0] * (1 if study.directions[0].name == "MINIMIZE" else -1)
    )
    found: dict[str, dict[str, Any]] = {f"{BEST} (trial {best.number})": settings(best), "params.yaml": {}}
    if "evaluations" in params.tune.objectives:
        found |= _of_front(study, best.number)
    if params.tune.kind == "sampling" and not isinstance(params.schedule.tau, TauRange):
        return found  # the model was trained for one offset only
    section = "schedule" if params.tune.kind == "training" else "sample.schedule"
    for tau in BASELINE_TAUS:
        values: dict[str, Any] = {f"{section}.kind": "offset", f"{section}.tau": tau}
        if section == "schedule" and params.schedule.learnt is not None:
            values["schedule.learnt"] = None
        try:
            with_values(params, values)
        except UserError:
            continue  # the model does not cover this offset
        found[f"tau = {tau:g}"] = values
    return found


def _of_front(study: "Study", best: int) -> dict[str, dict[str, Any]]:
    """The other points of the front, and each point with even steps where it has others."""
    found: dict[str, dict[str, Any]] = {}
    for trial in front(study):
        name = f"{BEST} (trial {trial.number})" if trial.number == best else f"trial {trial.number}"
        values = settings(trial)
        found |= {name: values}
        if TIMES in values and values[TIMES] != even_times(len(values[TIMES])):
            found[f"{name}{EVEN}"] = values | {TIMES: even_times(len(values[TIMES]))}
    return found


def _score(evaluator: CandidateEvaluator, candidate: Params, repeat: int, folder: Path) -> dict[str, float]:
    seed = derive_seed(candidate.seed, "tune/confirmation/training", repeat)
    with TemporaryDirectory(dir=folder) as fresh:
        model = evaluator.model(candidate, seed, Path(fresh))
    metrics = evaluator.score(model, candidate, CONFIRMATION, repeat).metrics
    return {name: metrics[name] for name in candidate.tune.objectives}
