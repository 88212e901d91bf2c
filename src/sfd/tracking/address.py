"""Where the MLflow store is, and whether its artifacts lie beside it.

MLflow keeps the places of artifacts absolute, also where a relative one is given. So a store in a copied or moved folder still names the
folder in which it was made: nothing may be read or written through it before :func:`relocate` has corrected that.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from sfd.errors import UserError
from sfd.workspace import Workspace

SQLITE = "sqlite:///"
DATABASE, ARTIFACTS = Path("mlruns", "mlflow.db"), "artifacts"
"""The embedded store, and the folder of its artifacts beside the file."""
ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Where MLflow 3 keeps absolute places."""


def tracking_uri(workspace: Workspace) -> str:
    """The MLflow store: ``MLFLOW_TRACKING_URI``, else the embedded one, ``mlruns/mlflow.db`` of the project.

    A name and a password in the address of a server move to MLflow's own variables, so that nothing that prints or keeps the address,
    here or in MLflow, holds them.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return sqlite_uri(workspace.mlruns / DATABASE.name)
    if given.startswith(SQLITE):
        return _lasting(workspace, given)
    parts = urlsplit(given)
    if parts.scheme in ("http", "https") and parts.username and parts.password is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        given = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        os.environ["MLFLOW_TRACKING_URI"] = given
    return given


def registry_uri(workspace: Workspace) -> str:
    """The MLflow model registry: ``MLFLOW_REGISTRY_URI``, else that of the tracking store."""
    given = os.environ.get("MLFLOW_REGISTRY_URI")
    return _lasting(workspace, given) if given else tracking_uri(workspace)


def _lasting(workspace: Workspace, uri: str) -> str:
    """The same store; of an experiment that works in a copy of the project, a file in that copy becomes the project's own."""
    file, copy = sqlite_file(uri), os.path.abspath(workspace.root)
    if file is None or workspace.dvc_experiment is None or not Path(os.path.abspath(file)).is_relative_to(copy):
        return uri
    return sqlite_uri(workspace.home / Path(os.path.abspath(file)).relative_to(copy))


def sqlite_uri(file: Path) -> str:
    """The address of a database file. SQLAlchemy reads ``%41`` in it as ``A``, and a question mark as its end."""
    return SQLITE + file.as_posix().replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The database file of an address; None for a server."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None


def artifacts_of(file: Path) -> Path:
    """Where new experiments of a database file keep their artifacts."""
    return file.parent.resolve() / ARTIFACTS


def check_place(uri: str) -> None:
    """Looks whether MLflow can use a store that is a file.

    Raises:
        UserError: it names another folder's artifacts as its own; its folder does not exist, or has a name that MLflow cannot read.
    """
    file = sqlite_file(uri)
    if file is None:
        return
    if ENCODED.search(str(artifacts_of(file))):
        raise UserError(
            f"MLflow reads `%` and two digits in the name of a folder as one character, so it could not load models from "
            f"{artifacts_of(file)}; rename the folder, or set MLFLOW_TRACKING_URI to a store elsewhere"
        )
    if not file.is_file():
        if file.parts[-2:] != DATABASE.parts and not file.parent.is_dir():
            raise UserError(
                f"MLflow's store {uri} lies in a folder that does not exist; make {file.parent}, or correct MLFLOW_TRACKING_URI "
                "(`%` is written %25)"
            )
        return
    for home in _foreign_homes(file):
        raise UserError(
            f"the MLflow store in {file.parent.resolve()} was made in {home}, where it would read and write artifacts; run "
            "`sfd store relocate` to make it use its own"
        )


def relocate(uri: str) -> str:
    """Makes a copied or moved store use the artifacts that lie beside it; returns one line that says what was done.

    Raises:
        UserError: the store is a server, does not exist, or some of the artifacts that it names are not beside it.
    """
    file = sqlite_file(uri)
    if file is None or not file.is_file():
        raise UserError(
            f"{uri} is not an embedded MLflow store; only a file that lies beside its artifacts can be relocated"
        )
    homes, here = list(_foreign_homes(file)), file.parent.resolve()
    if not homes:
        return f"the store in {here} uses its own artifacts already"
    with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as store:
        store.execute("BEGIN IMMEDIATE")
        changes = [
            (table, column, row, _moved(place, homes, here))
            for table, column in PLACES
            for row, place in store.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
            if _home_of(place, homes)
        ]
        for table, _, _, place in changes:
            if table == "logged_models" and not _local_path(place).is_dir():
                raise UserError(
                    f"artifacts of the store are missing: there is no {_local_path(place)}; copy all of {homes[0]}"
                )
        for table, column, row, place in changes:
            store.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (place, row))
        store.execute("COMMIT")
    return f"{len(changes)} places of artifacts in {here} moved from {', '.join(map(str, homes))}"


def _foreign_homes(file: Path) -> Iterator[Path]:
    """Folders of other stores that experiments of this one name. Only the embedded store is expected to lie beside its artifacts."""
    if file.parts[-2:] != DATABASE.parts:
        return
    here = file.parent.resolve()
    # Not `mode=ro`: what a killed process left half written must be taken back first.
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        places = [place for (place,) in store.execute("SELECT DISTINCT artifact_location FROM experiments")]
    for path in filter(None, map(_local_path_or_none, places)):
        home = path.parent
        if path.name == ARTIFACTS and home.name == DATABASE.parts[0] and home != here and not _is_same(home, here):
            yield home


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths name one folder, e.g. through a link or a mount."""
    return one.exists() and one.samefile(other)


def _home_of(place: object, homes: list[Path]) -> Path | None:
    path = _local_path_or_none(place)
    return None if path is None else next((home for home in homes if path.is_relative_to(home)), None)


def _moved(place: str, homes: list[Path], here: Path) -> str:
    """``place`` below ``here`` instead of below its home, written as it was: as a path or as a URI."""
    home, path = _home_of(place, homes), _local_path(place)
    moved = here / path.relative_to(home) if home is not None else path
    return moved.as_uri() if place.startswith("file:") else moved.as_posix()


def _local_path(place: str) -> Path:
    return Path(url2pathname(urlsplit(place).path) if place.startswith("file:") else place)


def _local_path_or_none(place: object) -> Path | None:
    """The path of a place on this machine's disk; None for one elsewhere, e.g. in a bucket."""
    if not isinstance(place, str) or not place.startswith(("/", "file:")):
        return None
    return _local_path(place)
