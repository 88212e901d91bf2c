"""One trial: gets values from Optuna, has them scored, reports to the pruner, and logs a child run in MLflow."""

import hashlib
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sfd.generation.model import DiffusionModel
from sfd.params import KNOTS, Params, as_yaml, with_values
from sfd.pictures import labelled_grid, save_png
from sfd.pipeline.schedule import with_schedule
from sfd.tracking import Run, start_run
from sfd.tuning.evaluator import STUDY, CandidateEvaluator
from sfd.tuning.scorer import Repeat
from sfd.tuning.space import SETTINGS, distributions, settle
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

GRID_PER_CLASS = 10


class Trials:
    """The objective of a study. Each trial is an MLflow run, a child of ``parent`` if that is known."""

    def __init__(
        self, workspace: Workspace, params: Params, evaluator: CandidateEvaluator, study_id: str, parent: str | None
    ) -> None:
        """``study_id`` names the study in MLflow's tags."""
        self.workspace, self.params, self.evaluator = workspace, params, evaluator
        self.study_id, self.parent = study_id, parent
        self.space = distributions(params)
        self.learnt: tuple[float, ...] | None = None
        if KNOTS in params.tune.space:
            self.learnt = with_schedule(params, workspace.result("schedule")).schedule.knots

    def __call__(self, trial: "Trial") -> list[float]:
        """The mean of every objective over ``tune.repeats``.

        Raises:
            optuna.TrialPruned: the study's pruner ended it.
            UserError: the values do not fit together, or the training diverged.
        """
        proposed = propose(trial, self.space)
        values = self.settled(proposed)
        if values != proposed:
            trial.set_user_attr(SETTINGS, values)
        prefix = f"trial-{trial.number:04d}-"
        with (
            self._tracked(trial, values) as run,
            TemporaryDirectory(prefix=prefix, dir=work_folder(self.workspace, self.study_id)) as own,
        ):
            folder = Path(own)
            candidate = with_values(self.params, values)
            model = self.model(trial, candidate, folder, run)
            found: list[Repeat] = []
            for repeat in range(self.params.tune.repeats):
                found.append(self.evaluator.score(model, candidate, STUDY, repeat))
                run.log_metrics(found[-1].metrics, repeat)
                self._note(trial, run, found)
                if repeat == 0:
                    log_grid(run, found[0], folder)
                if self.params.tune.kind == "sampling":
                    self._report(trial, found[-1], repeat + 1, f"repeat {repeat + 1} of {self.params.tune.repeats}")
            means = {name: statistics.fmean(values) for name, values in self._values(found).items()}
            run.log_metrics({f"objective/{name}": value for name, value in means.items()})
        return list(means.values())

    def settled(self, proposed: Mapping[str, Any]) -> dict[str, Any]:
        """The values of params.yaml that Optuna's stand for."""
        return settle(proposed, self.learnt)

    def model(self, trial: "Trial", candidate: Params, folder: Path, run: Run) -> DiffusionModel:
        """The candidate's model. ``folder``: for temporary files of this trial."""

        def look(model: DiffusionModel, step: int) -> None:
            scored = self.evaluator.score(model, candidate, STUDY, 0)
            run.log_metrics({f"intermediate/{name}": value for name, value in scored.metrics.items()}, step)
            self._report(trial, scored, step // self.params.tune.report_every, f"{step} steps")

        return self.evaluator.model(candidate, self.params.seed, folder, look)

    def _report(self, trial: "Trial", scored: Repeat, step: int, when: str) -> None:
        """Reports to the pruner, whose steps count from 1. Optuna has no pruners for several objectives."""
        from optuna import TrialPruned

        names = self.params.tune.objectives
        if len(names) == 1:
            trial.report(scored.metrics[names[0]], step)
            if trial.should_prune():
                raise TrialPruned(f"pruned after {when}")

    def _values(self, found: list[Repeat]) -> dict[str, list[float]]:
        return {name: [repeat.metrics[name] for repeat in found] for name in self.params.tune.objectives}

    def _note(self, trial: "Trial", run: Run, found: list[Repeat]) -> None:
        """Stores the results so far in the trial."""
        trial.set_user_attr("values", self._values(found))
        means = {name: statistics.fmean(repeat.metrics[name] for repeat in found) for name in found[0].metrics}
        trial.set_user_attr("metrics", means)
        link(trial, run)

    @contextmanager
    def _tracked(self, trial: "Trial", values: Mapping[str, object]) -> Iterator[Run]:
        """The trial's MLflow run. It ends with the status of the trial; runs of pruned and interrupted trials end as KILLED."""
        from optuna import TrialPruned

        name = f"trial-{trial.number:04d}"
        fingerprint = hashlib.sha256(f"{self.study_id}/{trial.number}".encode()).hexdigest()
        with ExitStack() as afterwards, start_run(self.workspace, name, fingerprint, self.params.tracking, {}) as run:
            afterwards.callback(link, trial, run)  # MLflow knows the run at the latest when it is closed
            below = {} if self.parent is None else {"mlflow.parentRunId": self.parent}
            run.log_tags({"sfd.study": self.study_id, "sfd.trial": trial.number, **below})
            run.log_params(values)
            state = "FAIL"
            try:
                yield run
                state = "COMPLETE"
            except TrialPruned:
                state, run.final_status = "PRUNED", "KILLED"
                raise
            except (KeyboardInterrupt, SystemExit):
                state, run.final_status = "INTERRUPTED", "KILLED"
                raise
            finally:
                run.log_tags({"sfd.trial_state": state})
                print(f"trial {trial.number}: {state.lower()}, {describe(trial, values)}", flush=True)


def work_folder(workspace: Workspace, study_id: str) -> Path:
    """The folder of a study's temporary files on this machine."""
    folder = workspace.trials(study_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def propose(trial: "Trial", space: "Mapping[str, BaseDistribution]") -> dict[str, Any]:
    """Asks Optuna for a value of every key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: dict[str, Any] = {}
    for key, allowed in space.items():
        if isinstance(allowed, CategoricalDistribution):
            values[key] = trial.suggest_categorical(key, allowed.choices)
        elif isinstance(allowed, IntDistribution):
            values[key] = trial.suggest_int(key, allowed.low, allowed.high, step=allowed.step, log=allowed.log)
        else:
            assert isinstance(allowed, FloatDistribution)
            values[key] = trial.suggest_float(key, allowed.low, allowed.high, step=allowed.step, log=allowed.log)
    return values


def describe(trial: "Trial", values: Mapping[str, Any]) -> str:
    """The trial's scores so far and its values, as one line for the terminal."""
    scores = [f"{name} {trial.user_attrs['metrics'][name]:.4g}" for name in trial.user_attrs.get("values", {})]
    tried = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {as_yaml(value)}" for key, value in values.items()
    ]
    return ", ".join([*scores, *tried])


def link(trial: "Trial", run: Run) -> None:
    """Notes the MLflow run in the trial, as soon as MLflow knows it."""
    run_id = run.run_id()
    if run_id is not None and trial.user_attrs.get("mlflow_run_id") != run_id:
        trial.set_user_attr("mlflow_run_id", run_id)


def log_grid(run: Run, scored: Repeat, folder: Path) -> None:
    """Logs a grid of the first samples, one class per row, as an artifact."""
    order = sorted(range(len(scored.labels)), key=lambda n: scored.labels[n])
    labels = [scored.labels[n] for n in order]
    per_row = max(1, min(GRID_PER_CLASS, min(labels.count(label) for label in labels)))
    save_png(labelled_grid(scored.images[order], labels, per_row), folder / "grid.png")
    run.log_artifact(folder / "grid.png")
