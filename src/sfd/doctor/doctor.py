"""Looks at a project and says what is not as it should be. It reads only, needs no network, and takes seconds."""

import socket
import subprocess
from datetime import datetime
from pathlib import Path

from sfd.doctor.findings import Finding
from sfd.doctor.graph import check_graph
from sfd.errors import UserError
from sfd.processes import is_alive
from sfd.registry.versions import find_registered, read_registration
from sfd.tables import as_text
from sfd.tracking import Store, StoreAway, check_place, find_journals, tracking_uri
from sfd.workspace import Workspace

WITH_RESULTS = ("dvc.lock", "dvc.yaml", "params.yaml")
"""Files that say together which results belong to a commit."""


def examine(workspace: Workspace) -> list[Finding]:
    """Everything that is worth a line, the graph first.

    Raises:
        UserError: ``params.yaml`` breaks a rule, so that no stage could run.
    """
    params = workspace.load_params()
    return [
        *check_graph(workspace, params),
        *_check_work(workspace),
        *_check_store(workspace),
        *_check_git(workspace, params.data.root),
    ]


def report(findings: list[Finding]) -> str:
    """The findings as a table, and a last line that says whether all is well."""
    rows = [[each.subject, each.state, each.remedy, each.reason] for each in findings]
    stale = sum(each.is_stale for each in findings)
    verdict = "everything is up to date" if not stale else f"{stale} of {len(findings)} are not up to date"
    return as_text([["", "state", "type", "why"], *rows]) + f"\n\n{verdict}"


def _check_work(workspace: Workspace) -> list[Finding]:
    """Work that is going on, was interrupted, or was set aside."""
    found = []
    for work in sorted(workspace.work("any").parent.glob("*/")):
        owner = work / "owner"
        pid, _, host = owner.read_text(encoding="utf-8").strip().partition(" ") if owner.is_file() else ("", "", "")
        if pid and (host != socket.gethostname() or is_alive(int(pid))):
            found.append(Finding(f"work of {work.name}", "running", f"process {pid} on {host}"))
        elif (work / "out").is_dir():
            stage, _, experiment = work.name.partition("@")
            remedy = "queue the experiment again" if experiment else f"dvc repro {stage}"
            found.append(Finding(f"work of {work.name}", "unfinished", _describe(work), remedy))
    for old in sorted(workspace.old.glob("*/")):
        found.append(Finding(f"old {old.name}", "set aside", _describe(old), f"rm -r {old}, if you do not need it"))
    return found


def _describe(folder: Path) -> str:
    """Size and time of the newest file."""
    facts = [file.stat() for file in folder.rglob("*") if file.is_file()]
    newest = datetime.fromtimestamp(max((fact.st_mtime for fact in facts), default=folder.stat().st_mtime))
    return f"{sum(fact.st_size for fact in facts) / 2**20:.1f} MiB, {newest:%Y-%m-%d %H:%M}"


def _check_store(workspace: Workspace) -> list[Finding]:
    """Whether MLflow answers, and what it has not got yet."""
    store = Store(workspace)
    waiting = [count for journal in find_journals(workspace) if (count := journal.count_pending(store.name))]
    try:
        store.probe()
        check_place(tracking_uri(workspace))
        found = [Finding("MLflow", "reachable", store.name), *_check_model(workspace, store)]
    except UserError as error:
        found = [Finding("MLflow", "cannot be used", str(error), "sfd store relocate", is_stale=True)]
    except StoreAway as error:
        remedy = "start it, or correct MLFLOW_TRACKING_URI"
        found = [Finding("MLflow", "away", f"{store.name}: {error}", remedy, is_stale=True)]
    if waiting:
        reason = f"{sum(waiting)} records of {len(waiting)} runs are not in MLflow"
        found.append(Finding("records", "unsynced", reason, "sfd sync", is_stale=True))
    return found


def _check_model(workspace: Workspace, store: Store) -> list[Finding]:
    """Whether the store that answers has the registered results. A clone's own store has not, so nothing counts as stale."""
    registration = read_registration(workspace)
    if registration is None:
        return []
    exists = store.file is None or store.file.is_file()  # to ask an embedded store would make it
    try:
        version = find_registered(workspace, registration) if exists else None
    except UserError as error:
        return [Finding("model", "not checked", str(error))]
    if version is None:
        reason = f"no version of {registration.name} was made of these results"
        return [Finding("model", "not registered", reason, "sfd register")]
    return [Finding("model", "registered", f"version {version.version} of {version.name} {', '.join(version.aliases)}")]


def _check_git(workspace: Workspace, data_root: str) -> list[Finding]:
    """Whether git has what says which results belong to the commit, and leaves the images alone."""
    found = []
    changed = _ask_git(workspace, *(name for name in WITH_RESULTS if (workspace.root / name).exists()))
    if changed:
        names = " ".join(line[3:] for line in changed)
        found.append(Finding("git", "uncommitted", names, f"git add {names} && git commit"))
    if any(line.startswith("??") for line in _ask_git(workspace, data_root)):
        reason = "dvc exp apply would move the images into git and back, which changes their times"
        found.append(Finding("images", "not ignored", reason, f"add {data_root} to .gitignore"))
    return found


def _ask_git(workspace: Workspace, *names: str) -> list[str]:
    """What `git status` says of these files; nothing where there is no git."""
    # Without the option git would refresh its index, and hold a lock that another git command might meet.
    command = ["git", "--no-optional-locks", "-C", str(workspace.root), "status", "--porcelain", "--", *names]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []
