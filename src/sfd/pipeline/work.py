"""A stage's work folder: its lock, what is continued in it, and what is set aside."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sfd.errors import UserError
from sfd.processes import is_alive
from sfd.workspace import Workspace

ORPHANS_WAIT_S = 10.0
"""Data loader workers of a killed stage hold its lock for some seconds more."""


@contextmanager
def lock(work: Path, what: str = "this stage") -> Iterator[None]:
    """One process a work folder, which is made if need be. A second one stops with a :class:`UserError` that names the owner."""
    work.mkdir(parents=True, exist_ok=True)
    owner, here = work / "owner", socket.gethostname()
    held = FileLock(work.parent / f"{work.name}.lock")
    pid, host = _read_owner(owner)
    try:
        # Whether a process of another machine lives can only be seen from the lock itself.
        held.acquire(timeout=ORPHANS_WAIT_S if pid and host == here and not is_alive(int(pid)) else 0)
    except Timeout:
        pid, host = _read_owner(owner)
        where = "" if host == here else f" on {host}"
        raise UserError(
            f"another process works on {what} (pid {pid or 'unknown'}{where}, folder {work}); wait for it or end it, then run again"
        ) from None
    try:
        _sign(work)
        yield
    finally:
        held.release()


def _sign(work: Path) -> None:
    (work / "owner").write_text(f"{os.getpid()} {socket.gethostname()}\n")


def _read_owner(file: Path) -> tuple[str, str]:
    """Process id and machine of the last owner of the lock; empty and this machine if there was none."""
    pid, _, host = file.read_text().strip().partition(" ") if file.is_file() else ("", "", "")
    return pid, host or socket.gethostname()


def open_work(workspace: Workspace, name: str, mark: str) -> None:
    """Continues in a stage's work folder if it was made from what ``mark`` stands for, else begins an empty one. The caller has the lock.

    Work that is not continued is set aside, in ``.sfd/old``, where the newest of each stage is kept. It comes back when its mark does.
    """
    work = workspace.work(name)
    previous = read_mark(work)
    # A result that was published but not recorded by DVC left its work without `out`: nothing of it may be continued.
    if previous != mark or not (work / "out").is_dir():
        kept = [old for old in _set_aside_before(workspace, name) if read_mark(old) == mark]
        aside = _set_aside(workspace, name) if previous is not None and (work / "out").is_dir() else None
        shutil.rmtree(work)
        if kept:
            kept[-1].rename(work)
        work.mkdir(exist_ok=True)
        _sign(work)
        if previous is not None and previous != mark:
            _tell(work.name, aside, bool(kept))
    (work / "out").mkdir(exist_ok=True)
    (work / MARK).write_text(mark)


def read_mark(work: Path) -> str | None:
    """What a work folder was made from; None if it was not begun."""
    file = work / MARK
    return file.read_text() if file.is_file() else None


def _set_aside_before(workspace: Workspace, name: str) -> list[Path]:
    """The folders of a stage that were set aside, the oldest first."""
    return sorted(workspace.old.glob(f"{name}-*"))


def _set_aside(workspace: Workspace, name: str) -> Path | None:
    """Moves the work to ``.sfd/old`` in one rename, and removes what was there of the stage; None if nothing was done yet."""
    work, before = workspace.work(name), _set_aside_before(workspace, name)
    if not any(path.is_file() and path.name not in ("owner", MARK) for path in work.rglob("*")):
        return None
    aside = workspace.old / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    aside.parent.mkdir(parents=True, exist_ok=True)
    work.rename(aside)
    for old in before:
        shutil.rmtree(old)
    return aside
