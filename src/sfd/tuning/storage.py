"""The storage of a study: SQLite, a journal file or PostgreSQL. It is checked before Optuna is imported, then opened."""

import json
import os
import re
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from sfd.errors import UserError, keep_secret, redact
from sfd.params import JOURNAL, POSTGRES, SQLITE, VARIABLE, check_storage_address
from sfd.processes import in_one_piece
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

CONNECT_S = 2.5  # for a PostgreSQL server to answer
OPENING_TRIES = 5  # several workers may create the tables at the same time


def expand(url: str) -> str:
    """An address with the values of the variables that it names. They are plain text: what an address cannot hold is encoded here.

    Raises:
        UserError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise UserError(
                f"tune.storage names the variable {match[1]}, which is not set; export it, e.g. {match[1]}=..."
            )
        if match.end() <= url.rfind("@"):  # name or password
            keep_secret(found)
            keep_secret(quote(found, safe=""))
            return quote(found, safe="")
        return found

    return VARIABLE.sub(value, url)


def check_storage(url: str) -> None:
    """Checks within 3 s that ``tune.storage`` can be used, before Optuna is imported.

    Relative folders are created. Absolute folders must exist, because a missing one is a mistake or a disk that is not mounted.

    Raises:
        UserError: the folder is missing or read-only; the file is not a study's; the server does not answer or refuses; its driver is
            missing; or a variable in the address is not set.
    """
    check_storage_address(url)
    if url.startswith(POSTGRES):
        _check_server(expand(url))
    else:
        path = _path(url)
        try:
            if not path.is_absolute():
                path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise UserError(
                f"tune.storage `{url}` cannot be used: folder {path.parent}: {error.strerror}; "
                "make it a folder that you may write to, or name another one"
            ) from None
        _check_sqlite(url, path) if url.startswith(SQLITE) else _check_journal(url, path)


def resolve_storage(workspace: Workspace, url: str) -> str:
    """``tune.storage`` as seen from the working folder: a file that it names is relative to the project's root."""
    for kind in (SQLITE, JOURNAL):
        if url.startswith(kind):
            path = str(workspace.resolve(_path(url)))
            return kind + (path.replace("%", "%25") if kind == SQLITE else path)
    return url


def _path(url: str) -> Path:
    """The file of an address. SQLAlchemy reads ``%41`` in an address as ``A``."""
    return Path(unquote(url.removeprefix(SQLITE))) if url.startswith(SQLITE) else Path(url.removeprefix(JOURNAL))


def _check_sqlite(url: str, path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=1)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        if error.sqlite_errorname == "SQLITE_BUSY":  # another worker is writing, so the database can be used
            return
        raise UserError(f"tune.storage `{url}` cannot be used: {error}; repair it or name another file") from None
    if tables and not tables & {"studies", "version_info"}:  # for example MLflow's: both have a table `alembic_version`
        raise UserError(f"tune.storage `{url}` cannot be used: it is another program's database; name another file")


def _check_journal(url: str, path: Path) -> None:
    try:
        with path.open("ab+") as file:
            file.seek(0)
            first = file.readline(65536)
    except OSError as error:
        raise UserError(
            f"tune.storage `{url}` cannot be used: {error.strerror}; repair it or name another file"
        ) from None
    try:
        known = not first or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        known = False
    if not known:
        raise UserError(f"tune.storage `{url}` cannot be used: the file is not an Optuna journal; name another file")


def _check_server(url: str) -> None:
    try:
        import psycopg2
    except ImportError:
        raise UserError(
            f"tune.storage `{redact(url)}` needs the PostgreSQL driver: pip install -e '.[postgres]'"
        ) from None

    problems: list[str] = []

    def connect() -> None:
        try:
            psycopg2.connect(url, connect_timeout=2).close()
        except psycopg2.Error as error:
            problems.append(one_line(error))

    # In a thread, because libpq's limit does not include name resolution, and applies to each address of a host.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_S)
    if thread.is_alive() or problems:
        problem = problems[0] if problems else f"no answer within {CONNECT_S} s"
        raise UserError(
            f"tune.storage `{redact(url)}` cannot be used: {problem}; start the server or correct the address"
        )


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 500 characters."""
    return " ".join(str(error).split())[:500]


def open_storage(url: str) -> "BaseStorage":
    """Opens ``tune.storage`` and creates its tables where missing. Raises :class:`UserError` if it cannot."""
    check_storage(url)
    url = expand(url)
    import optuna
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend

        # Absolute, because the lock is a symbolic link to the path. A relative link leads nowhere, and is never recognised as stale.
        return _whole(optuna.storages.JournalStorage(JournalFileBackend(str(_path(url).absolute()))))
    tries = OPENING_TRIES
    while True:
        try:
            return _whole(_open_database(url))
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
            # Another worker may be creating the tables at the same time; then the next try finds them.
            tries -= 1
            if not tries:
                problem = one_line(error)
                raise UserError(f"tune.storage `{redact(url)}` cannot be used: {problem}; name another one") from None
            time.sleep(0.5)
        except RuntimeError as error:
            raise UserError(
                f"tune.storage `{redact(url)}` holds tables of another Optuna version or program: {one_line(error)}; "
                "name another one"
            ) from None


def _whole(storage: "BaseStorage") -> "BaseStorage":
    """The storage, whose operations a signal does not cut: half a transaction would keep its lock, and the next operation would not get it."""
    from optuna.storages import BaseStorage

    for name in (name for name in dir(BaseStorage) if not name.startswith("_")):
        setattr(storage, name, in_one_piece()(getattr(storage, name)))
    return storage


def _open_database(url: str) -> "BaseStorage":
    import optuna
    import sqlalchemy

    if url.startswith(POSTGRES):
        # The driver is named, because SQLAlchemy 2.1 changed its default. Pings, because servers close idle connections during a trial.
        return optuna.storages.get_storage(
            optuna.storages.RDBStorage(url.replace("://", "+psycopg2://", 1), engine_kwargs={"pool_pre_ping": True})
        )
    database = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60, "isolation_level": None}})
    # Optuna reads a trial's state with FOR UPDATE, then writes it. SQLite has no such clause, and by default takes its lock
    # only at the write, so that two workers could take the same trial. So every transaction starts by taking the lock
    # (docs.sqlalchemy.org, "Enabling Non-Legacy SQLite Transactional Modes").
    sqlalchemy.event.listen(database.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return optuna.storages.get_storage(database)
