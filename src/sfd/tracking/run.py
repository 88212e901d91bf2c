"""One stage's MLflow run, as the stage sees it: every call writes a line to the journal and returns."""

import getpass
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from sfd.errors import UserError, warn
from sfd.params import TrackingParams, parse_yaml
from sfd.tracking.address import check_place, tracking_uri
from sfd.tracking.client import set_mlflow_defaults
from sfd.tracking.delivery import Deliverer, check_reachable
from sfd.tracking.journal import JournalWriter, open_journal
from sfd.tracking.machine import watch_machine
from sfd.tracking.repro import Repro
from sfd.workspace import Workspace

# MLflow's limits, mlflow/utils/validation.py; what breaks them would be refused long after the call that logged it.
NAME_PATTERN = re.compile(r"[\w.\-: ]+(/[\w.\-: ]+)*")
MAX_NAME_CHARS = 250
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
MAX_DIGEST_CHARS = 36

EXPERIMENT = "sfd.experiment"
"""Tag of runs and of model versions that `dvc exp run` made: DVC's name of the experiment."""


class Run:
    """One stage's run. Its calls never wait for MLflow.

    Attributes:
        fingerprint: hash of the stage's parameters and inputs; names the run for its downstream stages.
        final_status: MLflow's status with which the run ends, however its block ends; None: FINISHED, FAILED after an error,
            and to be continued after an interruption.
    """

    def __init__(self, fingerprint: str, writer: JournalWriter, deliverer: Deliverer) -> None:
        self.fingerprint = fingerprint
        self.final_status: str | None = None
        self._writer = writer
        self._deliverer = deliverer

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters under their dotted keys. The first value of a key stays, since MLflow takes no other.

        Values above 6,000 characters are cut, and a warning says so. Raises :class:`ValueError` for a name that MLflow
        would refuse, as the other calls do.
        """
        known = self._writer.values["params"]
        new = {}
        for key, value in params.items():
            text = _cut(f"param {key}", str(value), MAX_PARAM_CHARS)
            if known.get(_check_name(key), text) == text:
                new[key] = text
            else:
                warn(f"param {key} stays {known[key][:80]!r} in MLflow, where a continued run cannot change it")
        self._writer.add_values("params", new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs one point of each metric. The first value of a (key, step) counts, later ones are dropped."""
        self._writer.add_metrics({_check_name(key): float(value) for key, value in metrics.items()}, int(step))

    def log_result(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics of the run, and of the `dvc repro` that it belongs to."""
        self.log_metrics(metrics)
        self._writer.add_result({key: float(value) for key, value in metrics.items()})

    def log_tags(self, tags: Mapping[str, object]) -> None:
        """Logs tags; the last value of a key counts. Values above 8,000 characters are cut, and a warning says so."""
        cut = {_check_name(key): _cut(f"tag {key}", str(value), MAX_TAG_CHARS) for key, value in tags.items()}
        self._writer.add_values("tags", cut)

    def log_input(
        self, name: str, digest: str, source: str, context: str, profile: Mapping[str, object] | None = None
    ) -> None:
        """Logs a data set that the stage reads, as an MLflow dataset.

        Args:
            digest: hash of its content; MLflow shows the first 36 characters.
            source: its path or address.
            context: what it is used for, e.g. ``training``.
            profile: numbers that describe it, e.g. images and classes.
        """
        self._writer.add_input(
            {
                "name": name,
                "digest": digest[:MAX_DIGEST_CHARS],
                "source": source,
                "context": context,
                "profile": None if profile is None else dict(profile),
            }
        )

    def log_artifact(self, path: Path, artifact_path: str = "") -> None:
        """Logs a file, or a folder under its own name, within the run's folder ``artifact_path``.

        What is delivered is the file's content at this moment, even if it changes before the delivery. Raises :class:`FileNotFoundError`.
        """
        self._writer.add_artifact(path, artifact_path)

    def wait_for_run_id(self, timeout_s: float = 60.0) -> str | None:
        """:meth:`run_id`, waiting until MLflow knows the run; None if it refuses, is away, or needs more than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while (found := self.run_id()) is None and self.trouble is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    @property
    def trouble(self) -> str | None:
        """Why MLflow did not take the newest records; None if it did, or was not asked yet."""
        return self._deliverer.trouble

    def run_id(self) -> str | None:
        """The id of the MLflow run; None as long as MLflow does not know the run."""
        return self._writer.journal.state(self._deliverer.store.name).run_id


@contextmanager
def start_run(
    workspace: Workspace,
    stage: str,
    fingerprint: str,
    params: TrackingParams,
    parents: Mapping[str, str],
    repro: Repro | None = None,
) -> Iterator[Run]:
    """Opens the run of one stage, and delivers it while the block runs.

    A stage that was killed (or interrupted) continues its run when the fingerprint is the same; one that ended begins a
    new run. An exception ends the run as FAILED.

    Args:
        parents: upstream stage to its fingerprint; becomes tags ``sfd.parent.STAGE`` with the MLflow run's id.
        repro: the `dvc repro` that the stage belongs to; its run becomes the parent of this one.

    Raises:
        UserError: the stage runs already; the store was copied or moved; or ``params.required`` is true and the store cannot be used at the start, or
            lacks records at the end of a stage that succeeded.
    """
    check_place(tracking_uri(workspace))
    if params.required:
        check_reachable(workspace)
    with open_journal(workspace, stage, fingerprint, workspace.experiment(params)) as writer:
        deliverer = Deliverer(workspace, writer.journal)
        run = Run(fingerprint, writer, deliverer)
        writer.add_values("parents", dict(parents))
        origin = describe_origin(workspace, stage) | _describe_machine()
        run.log_tags(origin)
        if repro is not None:
            _join(writer, repro, origin)
        set_mlflow_defaults()
        deliverer.start()
        try:
            with watch_machine(run.log_metrics, writer.journal.read_header()["time"]):
                yield run
        except Exception:
            writer.finish(run.final_status or "FAILED")
            _close(deliverer, stage)
            raise
        except BaseException:  # interrupted: the journal stays open, and the next start continues the run
            if run.final_status is not None:
                writer.finish(run.final_status)
            _close(deliverer, stage)
            raise
        writer.finish(run.final_status or "FINISHED")
        missing = _close(deliverer, stage)
    if missing and params.required:
        raise UserError(
            f"tracking.required is set, but MLflow at {deliverer.store.name} lacks {missing} records of stage {stage}: "
            "run `sfd sync` when it answers"
        )


def _join(writer: JournalWriter, repro: Repro, origin: Mapping[str, str]) -> None:
    writer.join_repro(repro.id)
    params = {key: _cut(f"param {key}", str(value), MAX_PARAM_CHARS) for key, value in repro.params.items()}
    writer.add_values("repro_params", params)
    name = {"mlflow.runName": origin[EXPERIMENT]} if EXPERIMENT in origin else {}
    writer.add_values("repro_tags", {key: value for key, value in origin.items() if key != "sfd.dvc_lock"} | name)


def _close(deliverer: Deliverer, stage: str) -> int:
    """Delivers the rest within bounds; returns, and says, how many records are missing."""
    missing = deliverer.close()
    if missing:
        warn(f"{missing} records of stage {stage} are not in MLflow yet; run `sfd sync` when it answers")
    return missing


def _check_name(name: str) -> str:
    plain = not name.startswith("..") and all(part.strip(".") for part in name.split("/"))
    if len(name) > MAX_NAME_CHARS or not NAME_PATTERN.fullmatch(name) or not plain:
        raise ValueError(f"MLflow takes names of at most 250 letters, digits and `_-.: /`, not {name!r}")
    return name


def _cut(what: str, text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    warn(f"{what} is cut to {limit} of its {len(text)} characters, MLflow's limit")
    return text[:limit]


def describe_origin(workspace: Workspace, stage: str) -> dict[str, str]:
    """Tags that say which code and which data made the run, where git and dvc.lock know, and for which experiment."""
    tags = {"sfd.project": workspace.name}
    if workspace.dvc_experiment is not None:
        tags[EXPERIMENT] = workspace.dvc_experiment.name
    branch = _git(workspace.root, "branch", "--show-current")
    if branch:
        tags["sfd.branch"] = branch
    commit = _git(workspace.root, "rev-parse", "HEAD")
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
        # The run keeps params.yaml and what DVC locked, so a change of these alone is nothing that could be lost.
        kept = [f":(exclude){file.name}" for file in (workspace.params_file, workspace.dvc_lock)]
        changed = _git(workspace.root, "status", "--porcelain", "--untracked-files=no", "--", ":/", *kept)
        if changed is not None:
            tags["sfd.git_dirty"] = str(bool(changed)).lower()
    lock = workspace.dvc_lock
    if lock.exists():
        content = parse_yaml(lock.read_text(encoding="utf-8"), str(lock), accept_ambiguous=True) or {}
        entry = content.get("stages", {}).get(stage)
        if entry is not None:
            tags["sfd.dvc_lock"] = json.dumps({dep["path"]: dep.get("md5") for dep in entry.get("deps", [])})
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None without git, outside a repository, or when it takes more than 2 s."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=2)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid-{os.getuid()}"


def _describe_machine() -> dict[str, str]:
    """Tags that say what the run ran on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "mlflow.user": user_name(),
        "sfd.host": platform.node(),
        "sfd.platform": platform.platform(),
        "sfd.python": platform.python_version(),
        "sfd.torch": version("torch"),
        "sfd.cpu_count": str(os.cpu_count()),
        "sfd.device": device,
    }
