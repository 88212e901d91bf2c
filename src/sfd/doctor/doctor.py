"""Looks at a project and says what is not as it should be. It reads only, needs no network, and takes seconds."""

import socket
import subprocess
from datetime import datetime
from pathlib import Path

from sfd.doctor.findings import Finding
from sfd.doctor.graph import check_graph
from sfd.processes import is_alive
from sfd.tables import as_text
from sfd.tracking import Store, StoreAway, find_journals
from sfd.workspace import Workspace


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
        *_check_git(workspace),
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
        pid, _, host = owner.read_text().strip().partition(" ") if owner.is_file() else ("", "", "")
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
        found = [Finding("MLflow", "reachable", store.name)]
    except StoreAway as error:
        remedy = "start it, or correct MLFLOW_TRACKING_URI"
        found = [Finding("MLflow", "away", f"{store.name}: {error}", remedy, is_stale=True)]
    if waiting:
        reason = f"{sum(waiting)} records of {len(waiting)} runs are not in MLflow"
        found.append(Finding("records", "unsynced", reason, "sfd sync", is_stale=True))
    return found


def _check_git(workspace: Workspace) -> list[Finding]:
    """Whether git has what says which results belong to the commit."""
    names = [name for name in ("dvc.lock", "dvc.yaml", "params.yaml") if (workspace.root / name).exists()]
    # Without the option git would refresh its index, and hold a lock that another git command might meet.
    command = ["git", "--no-optional-locks", "-C", str(workspace.root), "status", "--porcelain", "--", *names]
    try:
        asked = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return []
    changed = " ".join(line[3:] for line in asked.stdout.splitlines())
    if asked.returncode != 0 or not changed:
        return []
    return [Finding("git", "uncommitted", changed, f"git add {changed} && git commit")]
