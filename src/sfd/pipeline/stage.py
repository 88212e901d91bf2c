"""What every stage shares: its inputs' fingerprint, its lock, its resumable work folder, its MLflow run, and publishing its result.

A stage works in ``.sfd/work/STAGE``, which DVC does not know, and moves the finished folder to ``results/STAGE`` in one rename. So a
result is whole or absent, whenever the stage is killed; and the next run continues in the work folder, if its fingerprint is the same.
"""

import hashlib
import json
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sfd.errors import UserError, hide_in_tracebacks
from sfd.params import Params, registered_model, select, to_tree
from sfd.processes import (
    barrier,
    claim_message,
    form_group,
    is_alive,
    is_lost_peer,
    rank,
    terminable,
    undisturbed_end,
    world_size,
)
from sfd.tracking import Run, start_run
from sfd.workspace import Workspace

ORPHANS_WAIT_S = 10.0
"""Data loader workers of a killed stage hold its lock for some seconds more."""


@dataclass(frozen=True)
class Inputs:
    """What a stage's result depends on: dotted params keys, and the stages whose results it reads."""

    params: tuple[str, ...]
    upstream: tuple[str, ...] = ()


STAGES: dict[str, Inputs] = {
    "prepare": Inputs(("seed", "data")),
    "encoder": Inputs(("seed", "data.image_size", "data.mirror", "encoder"), ("prepare",)),
    "texture_vae": Inputs(("seed", "data.image_size", "texture_vae"), ("prepare",)),
    "judge": Inputs(("seed", "data.image_size", "data.mirror", "judge"), ("prepare",)),
    "features": Inputs(("seed", "data.image_size", "data.mirror", "features", "semantic.kind"), ("prepare", "encoder")),
    "semantic": Inputs(("seed", "data.image_size", "semantic"), ("prepare", "features")),
    "latents": Inputs(
        ("seed", "data.image_size", "data.mirror", "latents"), ("prepare", "encoder", "texture_vae", "semantic")
    ),
    "diffusion": Inputs(("seed", "schedule", "diffusion"), ("semantic", "latents", "texture_vae")),
    "sample": Inputs(("seed", "sample"), ("diffusion", "texture_vae")),
    "evaluate": Inputs(
        ("seed", "data.image_size", "data.mirror", "evaluate"), ("prepare", "texture_vae", "judge", "sample")
    ),
    "register": Inputs(
        ("sample", "register.name", "register.alias"), ("prepare", "texture_vae", "diffusion", "sample", "evaluate")
    ),
    "tune": Inputs(("seed", "data.image_size", "data.mirror", "schedule", "diffusion", "sample", "evaluate", "tune")),
}
"""The graph. ``dvc.yaml`` says the same to DVC; a test keeps the two equal. What `tune` reads depends on the kind of its study."""

PARALLEL = ("features", "latents", "diffusion", "sample", "evaluate")
"""The stages that several processes can share, as torchrun or a scheduler starts them."""


def upstream_of(name: str, params: Params) -> tuple[str, ...]:
    """The stages whose results a stage reads. Weights from a file are not trained, so they need no latents."""
    if name == "diffusion" and params.diffusion.source == "file":
        return ("texture_vae",)
    return STAGES[name].upstream


@dataclass
class Stage:
    """One running stage.

    Attributes:
        params: the parameters as ``params.yaml`` has them; paths in them are relative to the project's root.
        content: digests of everything that downstream stages read; if set, they replace the input fingerprint.
    """

    name: str
    workspace: Workspace
    params: Params
    fingerprint: str
    run: Run | None
    content: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        """Where the stage works. It survives a kill."""
        return self.workspace.work(self.name)

    @property
    def out(self) -> Path:
        """Where the result is built; it becomes ``results/NAME`` at the end."""
        return self.work / "out"

    def upstream(self, name: str) -> Path:
        """The finished result of another stage."""
        return self.workspace.result(name)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics to the tracking journal (rank 0 only); never waits for a server."""
        if self.run is not None:
            self.run.log_metrics(metrics, step)

    def log_input(self, name: str, digest: str, source: Path, context: str, profile: dict[str, object]) -> None:
        """A data set that the stage reads, as an MLflow dataset (rank 0 only)."""
        if self.run is not None:
            self.run.log_input(name, digest, self.workspace.name_of(source), context, profile)

    def require_run_id(self) -> str:
        """The MLflow run's id, waiting for the store. Raises :class:`UserError` if the store cannot be reached."""
        found = self.run.wait_for_run_id() if self.run is not None else None
        if found is None:
            trouble = self.run.trouble if self.run is not None else None
            raise UserError(
                f"this stage needs MLflow, but {trouble or 'it did not answer in time'}; run it again when that is mended"
            )
        return found

    def log_artifacts(self, *paths: Path) -> None:
        """Files or folders as MLflow artifacts (rank 0 only)."""
        for path in paths:
            if self.run is not None:
                self.run.log_artifact(path)


@contextmanager
def stage(name: str, upstream: tuple[str, ...] | None = None, workspace: Workspace | None = None) -> Iterator[Stage]:
    """Everything around a stage's own work. A mistake of the user ends in one line on stderr and exit status 2.

    Args:
        upstream: replaces what :data:`STAGES` says that the stage reads.
        workspace: the project; None: that of the working folder.

    SIGTERM ends the stage with status 143 and without a traceback; training saves a checkpoint first.
    A mistake that all processes find is printed once. A process whose peer ended says so and ends.
    """
    hide_in_tracebacks()
    with terminable(), _told(name):
        _check_parallel(name)
        form_group()
        workspace = workspace or Workspace.find()
        params = workspace.load_params()
        upstream = upstream_of(name, params) if upstream is None else upstream
        fingerprint = stage_fingerprint(workspace, name, params, upstream)
        current = Stage(name, workspace, params, fingerprint, None)
        with lock(current.work) if rank() == 0 else nullcontext():
            if rank() == 0:
                _open_work(current.work, fingerprint)
            barrier()
            _check_shared(current.work, fingerprint)
            with _tracked(current, upstream) as current.run, undisturbed_end():
                yield current
                barrier()
                if rank() == 0:
                    # Linux counts in KiB.
                    current.log({"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
                    _publish(current)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Prints a mistake of the user, or the end of another process, in one line and ends this process with status 2."""
    try:
        yield
    except UserError as error:
        reason, cause = str(error), ""
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        reason = "a connection between the processes of this job broke; where one has ended, its message is the reason"
        cause = f" ({' '.join(str(error).split())})"
    else:
        return
    if claim_message(reason):
        # One write: `print` writes the line's end by itself, and the delivery may say something in between.
        sys.stderr.write(f"error: {name}: {reason}{cause}\n")
        sys.stderr.flush()
    sys.exit(2)


def _check_parallel(name: str) -> None:
    if world_size() > 1 and name not in PARALLEL:
        raise UserError(
            f"this stage runs in one process, and here are {world_size()}; start it without a launcher "
            f"(several processes can share {', '.join(PARALLEL)})"
        )


def stage_fingerprint(workspace: Workspace, name: str, params: Params, upstream: tuple[str, ...] | None = None) -> str:
    """sha256 over the stage's parameters, the weights files that they name, and the fingerprints of what it reads.

    Raises:
        UserError: an upstream result is missing.
    """
    upstream = upstream_of(name, params) if upstream is None else upstream
    keys = STAGES[name].params
    tree = to_tree(params)
    init_from = params.diffusion.init_from if "diffusion" in keys else None
    addresses = [init_from] if init_from is not None and registered_model(init_from) else []
    facts = {
        "stage": name,
        "params": {key: select(tree, key) for key in keys},
        "upstream": {read: published_fingerprint(workspace, read) for read in upstream},
        "files": {str(path): digest_path(workspace.resolve(path)) for path in params.paths(*keys)},
        "registered": [resolve_registered(workspace, address) for address in addresses],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def resolve_registered(workspace: Workspace, address: str) -> dict[str, str]:
    """``name`` and ``version`` behind a registered model's address, and the ``run_id`` that made it, as stage ``scan`` found them.

    Raises:
        UserError: the stage has not looked this address up.
    """
    file = workspace.init_from
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    registered = registered_model(address)
    if registered is None or known.get("init_from") != address:
        raise UserError(
            f"which version {address} means is not known ({file}); run `dvc repro diffusion`, which looks it up"
        )
    return {"name": registered[0], "version": known["version"], "run_id": known["run_id"]}


def digest_path(path: Path) -> str:
    """sha256 of a file, or of a folder's files in order of name. Raises :class:`UserError` if it does not exist."""
    if not path.exists():
        raise UserError(f"{path} does not exist, but params.yaml names it; correct the path or put the file there")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.suffix != ".pyc":
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def published_fingerprint(workspace: Workspace, name: str) -> str:
    """The fingerprint that a finished stage left beside its result. Raises :class:`UserError` when there is none."""
    file = workspace.result(name) / "fingerprint.json"
    if not file.is_file():
        raise UserError(f"the result of stage `{name}` is missing ({file}); run `dvc repro {name}` first")
    fingerprint: str = json.loads(file.read_text())["fingerprint"]
    return fingerprint


def check_current(workspace: Workspace, names: Iterable[str], params: Params) -> None:
    """Raises :class:`UserError` unless these stages are finished and made from these parameters."""
    for name in names:
        found = published_fingerprint(workspace, name)
        if name != "prepare" and found != stage_fingerprint(
            workspace, name, params
        ):  # that of prepare is of its content
            raise UserError(
                f"{workspace.result(name)} was made from other parameters than those in params.yaml; run `dvc repro {name}` first"
            )


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
        owner.write_text(f"{os.getpid()} {here}\n")
        yield
    finally:
        held.release()


def _read_owner(file: Path) -> tuple[str, str]:
    """Process id and machine of the last owner of the lock; empty and this machine if there was none."""
    pid, _, host = file.read_text().strip().partition(" ") if file.is_file() else ("", "", "")
    return pid, host or socket.gethostname()


def _open_work(work: Path, fingerprint: str) -> None:
    """Continues in the work folder if it was made from the same parameters, inputs and code, else empties it and says so."""
    fingerprint = _with_code(fingerprint)
    mark = work / "fingerprint"
    previous = mark.read_text() if mark.is_file() else None
    if previous is not None and previous != fingerprint:
        print(
            f"{work.name}: parameters, inputs or code changed since the interrupted run, so it starts from the beginning",
            file=sys.stderr,
        )
    # A result that was published but not recorded by DVC left its work without `out`: nothing of it may be continued.
    if previous != fingerprint or not (work / "out").is_dir():
        mark.unlink(missing_ok=True)  # first, so that a kill in between leaves no half-emptied folder that looks whole
        for path in work.iterdir():
            if path.name != "owner":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    (work / "out").mkdir(exist_ok=True)
    mark.write_text(fingerprint)


def _with_code(fingerprint: str) -> str:
    """A stage's fingerprint together with that of the code that works on it."""
    return hashlib.sha256(f"{fingerprint}/{digest_path(Path(__file__).parents[1])}".encode()).hexdigest()


def _check_shared(work: Path, fingerprint: str) -> None:
    """Raises :class:`UserError` in a process that does not see the work folder as process 0 has just opened it."""
    mark = work / "fingerprint"
    if rank() != 0 and (not mark.is_file() or mark.read_text() != _with_code(fingerprint)):
        raise UserError(
            f"process {rank()} on {socket.gethostname()} does not see {work.absolute()} as process 0 opened it; start all processes in "
            "one folder that their machines share, with the same params.yaml, results and code"
        )


@contextmanager
def _tracked(current: Stage, upstream: tuple[str, ...]) -> Iterator[Run | None]:
    """The stage's run, in process 0."""
    if rank() != 0:
        yield None
        return
    workspace, name, params = current.workspace, current.name, current.params
    parents = {read: published_fingerprint(workspace, read) for read in upstream}
    with start_run(workspace, name, current.fingerprint, params.tracking, parents) as run:
        tree = to_tree(params)
        run.log_params(flatten({key: select(tree, key) for key in STAGES[name].params}))
        yield run


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested mappings to dotted keys."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _publish(current: Stage) -> None:
    """Moves the finished folder to ``results`` in one rename and forgets the work. An old result goes whole, too."""
    published = current.fingerprint
    if current.content:
        # Content alone: an option that did not change the result must not make later stages run again.
        published = hashlib.sha256("/".join([current.name, *current.content]).encode()).hexdigest()
        if current.run is not None:
            current.run.log_tags({"sfd.fingerprint": published})  # under which later stages name their parent
    (current.out / "fingerprint.json").write_text(
        json.dumps({"stage": current.name, "fingerprint": published}, indent=2) + "\n"
    )
    replace_result(current.workspace, current.name, current.out)
    shutil.rmtree(current.work)


def replace_result(workspace: Workspace, name: str, finished: Path) -> None:
    """Moves a finished folder to ``results/NAME`` in one rename. An old result goes whole, to ``replaced`` beside the finished one."""
    target = workspace.result(name)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        replaced = finished.with_name("replaced")
        shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed between the two renames
        target.replace(replaced)
    finished.replace(target)
