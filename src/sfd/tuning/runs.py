"""Closes the MLflow runs of a study at its end."""

from sfd.errors import warn
from sfd.params import TrackingParams
from sfd.tracking import Store, StoreAway, client, import_mlflow
from sfd.tuning.queue import Queue
from sfd.workspace import Workspace


def settle_runs(workspace: Workspace, queue: Queue, tracking: TrackingParams, parent: str | None) -> None:
    """Ends the runs of killed workers as FAILED, and makes all runs of the study children of its newest parent.

    If the server does not answer, a warning is printed: the study itself is complete without it.
    """
    import_mlflow()
    from mlflow import MlflowException

    store = Store(workspace)
    states = {str(trial.number): trial.state for trial in queue.trials()}
    try:
        store.probe()
        mlflow = client(workspace)
        experiment = mlflow.get_experiment_by_name(workspace.experiment(tracking))
        query = f"tags.`sfd.study` = '{queue.study.user_attrs['id']}'"
        for run in mlflow.search_runs([experiment.experiment_id], query, max_results=50_000):
            number = run.data.tags.get("sfd.trial")
            if number is None:
                continue  # a parent run
            if parent is not None and run.data.tags.get("mlflow.parentRunId") != parent:
                mlflow.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
            if run.info.status == "RUNNING" and states[number].is_finished():
                mlflow.set_tag(run.info.run_id, "sfd.trial_state", states[number].name)
                mlflow.set_terminated(run.info.run_id, "FAILED")
    except (StoreAway, MlflowException) as error:
        warn(
            f"the runs of killed workers stay open in MLflow at {store.name} ({store.describe(error)}); run `sfd tune` again"
        )
