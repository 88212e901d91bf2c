"""Every stage is an MLflow run, and the run survives MLflow's absence.

What a stage logs goes to a journal on local disk first (:mod:`sfd.tracking.journal`), and from there to MLflow in
batches, by a background thread (:mod:`sfd.tracking.delivery`). A killed stage that is started again continues its run.
"""

from sfd.tracking.address import check_place, registry_uri, relocate, tracking_uri
from sfd.tracking.client import client, import_mlflow
from sfd.tracking.delivery import Store, StoreAway, sync
from sfd.tracking.journal import find_journals, now_ms
from sfd.tracking.repro import LAST_STAGES, begin_repro, current_repro, end_repro
from sfd.tracking.run import EXPERIMENT, Run, describe_origin, start_run

__all__ = [
    "EXPERIMENT",
    "LAST_STAGES",
    "Run",
    "Store",
    "StoreAway",
    "begin_repro",
    "check_place",
    "client",
    "current_repro",
    "describe_origin",
    "end_repro",
    "find_journals",
    "import_mlflow",
    "now_ms",
    "registry_uri",
    "relocate",
    "start_run",
    "sync",
    "tracking_uri",
]
