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

MARK = "fingerprint"
"""The file of a work folder that says what it was made from."""
COMPUTED_IN = "computed-in"
"""The file that says in which type networks compute, see :mod:`sfd.pipeline.inference`."""
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
    (work / "owner").write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")


def _read_owner(file: Path) -> tuple[str, str]:
    """Process id and machine of the last owner of the lock; empty and this machine if there was none."""
    pid, _, host = file.read_text(encoding="utf-8").strip().partition(" ") if file.is_file() else ("", "", "")
    return pid, host or socket.gethostname()


def open_work(workspace: Workspace, name: str, mark: str) -> None:
    """Continues in a stage's work folder if it was made from what ``mark`` stands for, else begins an empty one. The caller has the lock.

    Work that is not continued is set aside in ``.sfd/old``, where the newest of each stage is kept. It is continued when its mark is back.
    """
    work = workspace.work(name)
    # A result that was published but not recorded by DVC left its work without `out`: nothing of it may be continued.
    if read_mark(work) != mark or not (work / "out").is_dir():
        _begin(workspace, name, mark)
    (work / "out").mkdir(exist_ok=True)
    (work / MARK).write_text(mark, encoding="utf-8")


def read_mark(work: Path) -> str | None:
    """What a work folder was made from; None if it was not begun."""
    file = work / MARK
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _begin(workspace: Workspace, name: str, mark: str) -> None:
    """Makes the work folder empty, or the one that was set aside with this mark."""
    work = workspace.work(name)
    before = sorted(workspace.old.glob(f"{work.name}-*"))
    back = next((old for old in before if read_mark(old) == mark), None)
    changed = read_mark(work) not in (None, mark)
    aside = _set_aside(work, workspace.old) if changed and has_work(work) else None
    if aside is None:
        shutil.rmtree(work)
    if back is not None:
        back.rename(work)
    else:
        _inherit(workspace, name, mark)
    work.mkdir(exist_ok=True)
    _sign(work)
    if changed:
        end = (
            "it continues the work of before, which was set aside"
            if back is not None
            else "it starts from the beginning"
        )
        kept = "" if aside is None else f"; the other work is kept in {aside}, and goes on when they are changed back"
        what = "parameters, inputs or code changed since the interrupted run"
        print(f"{name}: {what}, so {end}{kept}", file=sys.stderr)
    if aside is not None:
        for old in before:
            if old != back:
                shutil.rmtree(old)


def _inherit(workspace: Workspace, name: str, mark: str) -> None:
    """Moves what an experiment of `dvc exp run` left of the same work, when it was ended, to the work folder, which must not exist."""
    work = workspace.work(name)
    for left in sorted(work.parent.glob(f"{name}@*/")):
        if left.name == work.name or read_mark(left) != mark or not (left / "out").is_dir():
            continue
        try:
            with FileLock(left.with_name(f"{left.name}.lock"), timeout=0):
                left.rename(work)
        except Timeout:  # that experiment is running
            continue
        print(
            f"{name}: it continues the work of experiment {left.name.partition('@')[2]}, which has ended",
            file=sys.stderr,
        )
        return


def has_work(work: Path) -> bool:
    """Whether anything was done in a work folder whose result is not published."""
    return (work / "out").is_dir() and any(
        path.is_file() and path.name not in ("owner", MARK, COMPUTED_IN) for path in work.rglob("*")
    )


def _set_aside(work: Path, old: Path) -> Path:
    """Moves the work in one rename; returns its new place."""
    aside = old / f"{work.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    old.mkdir(parents=True, exist_ok=True)
    return work.rename(aside)
