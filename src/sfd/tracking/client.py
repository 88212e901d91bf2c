"""MLflow's client, set up for this package, and the making of the embedded store."""

import glob
import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sfd.tracking.address import artifacts_of, check_place, registry_uri, sqlite_file, sqlite_uri, tracking_uri
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Without retries a lost answer is ours to handle: MLflow's own would send "create a run" twice, print a line each time, and take
    # 248 s to give up.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Settings of MLflow that hold unless the user's environment says otherwise. MLflow reads them when it is imported or asked."""

_IMPORT = threading.Lock()


def import_mlflow() -> None:
    """Imports mlflow with :data:`MLFLOW_DEFAULTS`; every use of mlflow comes after it.

    One thread at a time: mlflow's modules import each other, and a second thread would find them half initialised.
    """
    with _IMPORT:
        set_mlflow_defaults()
        import mlflow  # noqa: F401  # a stage's own thread and that of the delivery both need it


def set_mlflow_defaults() -> None:
    """Puts :data:`MLFLOW_DEFAULTS` into the environment. The main thread does it before another one uses mlflow.

    Where one thread changes the environment while another reads it, as torch does, the C library crashes now and then.
    """
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)


def client(workspace: Workspace) -> "MlflowClient":
    """A client of the tracking store and of its model registry; creates the embedded store when there is none.

    Raises:
        UserError: the store was copied or moved, so that its artifacts are elsewhere.
    """
    import_mlflow()
    from mlflow import MlflowClient

    uri, registry = tracking_uri(workspace), registry_uri(workspace)
    for place in {uri, registry}:
        check_place(place)
        file = sqlite_file(place)
        if file is not None and not _is_made(file):
            _make_database(file)
    return MlflowClient(tracking_uri=uri, registry_uri=registry)


def _make_database(file: Path) -> None:
    """Makes MLflow's tables under another name and renames the file: MLflow makes them one by one, and cannot go on after a kill.

    Two processes that made them at once would spoil them, too.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name("store.lock")):
        if _is_made(file):
            return
        for left_by_a_killed_process in file.parent.glob(f".{glob.escape(file.name)}.*"):
            left_by_a_killed_process.unlink()
        unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")  # MLflow keeps what it opened by name
        SqlAlchemyStore(sqlite_uri(unfinished), str(artifacts_of(file))).engine.dispose()
        unfinished.replace(file)


def _is_made(file: Path) -> bool:
    """SQLite itself makes an empty file when somebody only looks."""
    return file.is_file() and file.stat().st_size > 0
