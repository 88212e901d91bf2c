"""The command ``sfd tune``: the main process of a study, and the workers that join it."""

import hashlib
import json
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Literal

from sfd.errors import UserError, redact
from sfd.names import is_higher_better
from sfd.params import (
    TIMES,
    Params,
    TuneParams,
    candidates,
    check_study,
    current_value,
    select,
    start_values,
    to_tree,
)
from sfd.pipeline.inputs import STAGES, published
from sfd.pipeline.stage import Stage, stage
from sfd.tuning.queue import Queue, run
from sfd.tuning.space import check_upstream, settings, upstream
from sfd.tuning.storage import check_storage, resolve_storage
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna import Study

    from sfd.tuning.evaluator import CandidateEvaluator

PARENT_WAIT_S = 10.0
BUDGET = ("trials", "minutes", "storage", "heartbeat_seconds", "confirm_repeats")
"""Keys of `tune` that may change while a study goes on."""


def tune(workspace: Workspace) -> None:
    """Runs the study of params.yaml to its end, or continues it, and writes its report to ``results/tune``.

    Raises:
        UserError: before anything runs: a key or a range is wrong, an upstream result is missing or out of date, the storage
            cannot be used. Later: no trial was completed.
    """
    params = check(workspace)
    with stage("tune", upstream(params), workspace) as current:
        _run_study(current)


def run_worker(workspace: Workspace) -> None:
    """Works on the study of params.yaml until its trials are done.

    Raises:
        UserError: as :func:`tune` does before anything runs; or there is no such study.
    """
    params = check(workspace)
    queue = Queue.join(_opened(workspace, params.tune), params.seed, reports(params))
    _check_signature(workspace, queue, params)
    _take_trials(workspace, queue, params, queue.study.user_attrs.get("mlflow_run_id"))
    print(describe_counts(queue, params))


def report_study(workspace: Workspace, name: str) -> str:
    """Returns the table of a study in the storage of params.yaml, and writes its page to ``results/reports/NAME``.

    Raises:
        UserError: the storage has no such study.
    """
    from sfd.tuning.report import table, write_report

    study = _load_study(workspace, name)
    folder = workspace.result("reports") / name
    write_report(study, folder)
    return f"{table(study)}\n\npage: {folder / 'report.html'}"


def apply_study(workspace: Workspace, name: str, trial: int | None, within: str | None = None) -> str:
    """Writes the values of a trial into params.yaml; returns the diff and the verdicts of the confirmation.

    ``trial``: its number; None for the best one. ``within``: ``OBJECTIVE=LIMIT``, for the best point of a front within that limit.

    Raises:
        UserError: there is no such study or completed trial, or the values do not fit params.yaml. The file is then not changed.
    """
    from sfd.tuning.apply import apply_values
    from sfd.tuning.report import choose, verdicts

    study = _load_study(workspace, name)
    chosen = choose(study, trial, within)
    file = workspace.params_file
    difference = apply_values(file, settings(chosen)) or f"{file} has the values of trial {chosen.number} already\n"
    return "\n".join([difference, *verdicts(study)])


def _load_study(workspace: Workspace, name: str) -> "Study":
    params = workspace.load_params()
    tune = params.tune.model_copy(update={"study": name})
    return Queue.join(_opened(workspace, tune), params.seed, reports(params)).study


def _opened(workspace: Workspace, tune: TuneParams) -> TuneParams:
    """The section `tune`, with the storage's path as seen from the working folder."""
    return tune.model_copy(update={"storage": resolve_storage(workspace, tune.storage)})


def check(workspace: Workspace) -> Params:
    """All checks that need no heavy import; returns the parameters."""
    params = workspace.load_params()
    check_study(params)
    check_upstream(workspace, params)
    check_storage(resolve_storage(workspace, params.tune.storage))
    return params


def reports(params: Params) -> int:
    """The most values that a trial reports to the pruner."""
    if params.tune.kind == "sampling":
        return params.tune.repeats
    return max(1, (params.diffusion.training.num_steps - 1) // params.tune.report_every)


def signature(workspace: Workspace, params: Params) -> str:
    """sha256 of everything that all trials of one study share. Trials with another signature cannot join the study."""
    tree = to_tree(params)
    # The shared start of a halving study follows the schedule that params.yaml has.
    searched = [] if params.tune.halving is not None else list(params.tune.space)
    also = ["sample.num_steps"] if TIMES in params.tune.space else []
    for key in (*searched, *also, "sample.num_images", *(f"tune.{name}" for name in BUDGET)):
        way, _, last = key.rpartition(".")
        node = select(tree, way)
        if isinstance(node, list):
            node[int(last)] = None
        elif node is not None:
            node.pop(last, None)
    facts = {
        "params": {key: select(tree, key) for key in STAGES["tune"].params},
        "upstream": {name: published(workspace, name) for name in upstream(params)},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_signature(workspace: Workspace, queue: Queue, params: Params) -> None:
    if queue.study.user_attrs.get("signature") != signature(workspace, params):
        raise UserError(
            f"study `{params.tune.study}` was made with other parameters or upstream results than the present ones, so its trials and new "
            "ones cannot be compared: set tune.study to a new name, or restore what was changed"
        )


def _run_study(current: Stage) -> None:
    from sfd.tuning.confirmation import confirm
    from sfd.tuning.report import table, write_report
    from sfd.tuning.rounds import leaders
    from sfd.tuning.runs import settle_runs
    from sfd.tuning.trials import work_folder

    workspace, params = current.workspace, current.params
    queue = open_study(workspace, params)
    study_id = queue.study.user_attrs["id"]
    assert current.run is not None  # the main process of a study is a single one, and so it has the MLflow run
    names = {"sfd.study": study_id, "sfd.study_name": params.tune.study}
    current.run.log_tags(
        {"mlflow.runName": f"tune {params.tune.study}", **names, "sfd.storage": redact(params.tune.storage)}
    )
    parent = current.run.wait_for_run_id(PARENT_WAIT_S)
    queue.study.set_user_attr("mlflow_run_id", parent)
    if params.tune.halving is None:
        queue.fill(params.tune.trials, start_values(params))
    evaluator = _take_trials(workspace, queue, params, parent)
    if not any(trial.state.name == "COMPLETE" for trial in queue.trials()):
        if params.tune.halving is not None:
            _check_over(queue, params)
        raise UserError(f"no trial of study `{params.tune.study}` was completed: {'; '.join(_reasons(queue)[:3])}")
    _check_over(queue, params)
    confirm(queue.study, params, evaluator, work_folder(workspace, study_id))
    files = write_report(queue.study, current.out)
    settle_runs(workspace, queue, params.tracking, parent)
    best = leaders(queue.study)[0]
    current.log({f"best/{name}": value for name, value in zip(params.tune.objectives, best.values, strict=True)})
    current.log_artifacts(*files)
    shutil.rmtree(work_folder(workspace, study_id))  # also what killed workers left there
    print(table(queue.study))
    print(describe_counts(queue, params))


def _reasons(queue: Queue) -> list[str]:
    return [trial.user_attrs["reason"] for trial in queue.trials() if "reason" in trial.user_attrs]


def _check_over(queue: Queue, params: Params) -> None:
    """Raises :class:`UserError` if the last round of a halving study is not over: until then there is no best schedule."""
    from sfd.tuning.rounds import describe_rounds, rounds_of

    if params.tune.halving is None:
        return
    current = rounds_of(queue.study)[-1]
    if current.last and current.over and not current.found:
        raise UserError(
            f"no training of round {current.place + 1} of study `{params.tune.study}` was completed: {'; '.join(_reasons(queue)[-2:])}"
        )
    if not (current.last and current.over):
        raise UserError(
            f"study `{params.tune.study}` is not over: {describe_rounds(queue.study)}, and tune.minutes is {params.tune.minutes:g}; the same "
            f"command continues, and `sfd tune report {params.tune.study}` shows the rounds so far"
        )


def open_study(workspace: Workspace, params: Params) -> Queue:
    """Creates or continues the study. Raises :class:`UserError` if a study of this name was made with other parameters."""
    tune, names = params.tune, list(params.tune.objectives)
    directions: list[Literal["maximize", "minimize"]] = [
        "maximize" if is_higher_better(name) else "minimize" for name in names
    ]
    queue = Queue.create(_opened(workspace, tune), params.seed, directions, reports(params))
    study = queue.study
    if "signature" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
        study.set_user_attr("signature", signature(workspace, params))
    _check_signature(workspace, queue, params)
    study.set_user_attr("objectives", names)
    study.set_user_attr("directions", directions)
    study.set_user_attr("baseline", {key: current_value(params, key) for key in tune.space})
    study.set_user_attr("num_images", tune.num_images)
    study.set_user_attr("repeats", tune.repeats)
    if tune.halving is not None:
        study.set_user_attr("halving", tune.halving.model_dump() | {"candidates": candidates(params)})
    return queue


def _take_trials(workspace: Workspace, queue: Queue, params: Params, parent: str | None) -> "CandidateEvaluator":
    """Runs trials until the queue is empty or ``tune.minutes`` are over; returns the evaluator."""
    from sfd.tuning.evaluator import CandidateEvaluator
    from sfd.tuning.halving import HalvingTrials, run_rounds
    from sfd.tuning.trials import Trials

    deadline = time.monotonic() + 60.0 * params.tune.minutes
    evaluator = CandidateEvaluator(workspace, params)
    queue.study.set_user_attr("num_reference", evaluator.num_reference)
    try:
        if params.tune.halving is None:
            run(queue, Trials(workspace, params, evaluator, queue.study.user_attrs["id"], parent), deadline)
        else:
            run_rounds(queue, HalvingTrials(workspace, params, evaluator, queue, parent), deadline)
    except (KeyboardInterrupt, SystemExit):
        print(f"{describe_counts(queue, params)}; the same command continues")
        raise
    return evaluator


def describe_counts(queue: Queue, params: Params) -> str:
    """How many trials are in which state."""
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(queue.counts().items()))
    return f"study {params.tune.study}: {counts}"
