"""Every stage is an MLflow run, and the run survives MLflow's absence.

What a stage logs goes to a journal on local disk first (:mod:`sfd.tracking.journal`), and from there to MLflow in
batches, by a background thread (:mod:`sfd.tracking.delivery`). A killed stage that is started again continues its run.
"""

from sfd.tracking.delivery import Store, StoreAway, client, import_mlflow, registry_uri, sync, tracking_uri
from sfd.tracking.journal import find_journals
from sfd.tracking.run import EXPERIMENT, Run, describe_origin, start_run

__all__ = [
    "EXPERIMENT",
    "Run",
    "Store",
    "StoreAway",
    "client",
    "describe_origin",
    "find_journals",
    "import_mlflow",
    "registry_uri",
    "start_run",
    "sync",
    "tracking_uri",
]
