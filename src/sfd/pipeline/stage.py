"""What every stage shares: its inputs' fingerprint, its lock, its resumable work folder, its MLflow run, and publishing its result.

A stage works in ``.sfd/work/STAGE``, which DVC does not know, and moves the finished folder to ``results/STAGE`` in one rename. So a
result is whole or absent, whenever the stage is killed; and the next run continues in the work folder, if its fingerprint is the same.
"""

import hashlib
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfd.errors import UserError, hide_in_tracebacks, in_one_line, print_any_name
from sfd.params import Params, select, to_tree
from sfd.pipeline.code import Imports, code_now, scanned_code
from sfd.pipeline.inputs import (
    STAGES,
    Facts,
    digest_facts,
    first_change,
    input_facts,
    mark_of,
    published_fingerprint,
    upstream_of,
    work_facts,
    write_published,
)
from sfd.pipeline.work import lock, open_work, read_mark
from sfd.processes import (
    barrier,
    claim_message,
    form_group,
    is_lost_peer,
    rank,
    terminable,
    undisturbed_end,
    world_size,
)
from sfd.tracking import LAST_STAGES, Run, current_repro, end_repro, start_run
from sfd.workspace import Workspace

PARALLEL = ("features", "latents", "schedule", "diffusion", "sample", "reference", "evaluate")
"""The stages that several processes can share, as torchrun or a scheduler starts them."""


@dataclass
class Stage:
    """One running stage.

    Attributes:
        params: the parameters as ``params.yaml`` has them; paths in them are relative to the project's root.
        fingerprint: stands for all inputs.
        facts: what work in progress depends on, in words.
        content: digests of everything that downstream stages read; if set, they replace the input fingerprint.
        part: which of several networks that the stage makes; empty: all of it.
        prefix: of the names of this part's metrics, and the folder of its artifacts.
    """

    name: str
    workspace: Workspace
    params: Params
    fingerprint: str
    facts: Facts
    run: Run | None
    content: list[str] = field(default_factory=list)
    part: str = ""
    prefix: str = ""

    @property
    def mark(self) -> str:
        """Stands for what the work folder, and a checkpoint in it, were made from."""
        return mark_of(self.facts)

    @property
    def work(self) -> Path:
        """Where the stage, or its part, works. It survives a kill."""
        whole = self.workspace.work(self.name)
        return whole / "parts" / self.part if self.part else whole

    @property
    def out(self) -> Path:
        """Where the result is built; it becomes ``results/NAME`` at the end. A part's is a folder of it."""
        return self.workspace.work(self.name) / "out" / self.part

    @property
    def finished(self) -> Path:
        """Where the last training is kept, so that a longer one can go on from there."""
        return self.workspace.finished(self.name) / self.part

    def upstream(self, name: str) -> Path:
        """The finished result of another stage."""
        return self.workspace.result(name)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics to the tracking journal (rank 0 only); never waits for a server."""
        if self.run is not None:
            self.run.log_metrics({f"{self.prefix}{name}": value for name, value in metrics.items()}, step)

    def log_result(self, metrics: Mapping[str, float]) -> None:
        """Metrics of the stage that are also those of the whole `dvc repro` (rank 0 only)."""
        if self.run is not None:
            self.run.log_result(metrics)

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
                self.run.log_artifact(path, self.prefix.rstrip("/"))


@contextmanager
def stage(
    name: str,
    upstream: tuple[str, ...] | None = None,
    workspace: Workspace | None = None,
    options: Mapping[str, object] | None = None,
) -> Iterator[Stage]:
    """Everything around a stage's own work. A mistake of the user ends in one line on stderr and exit status 2.

    Args:
        upstream: replaces what :data:`STAGES` says that the stage reads.
        workspace: the project; None: that of the working folder.
        options: what the result depends on besides the parameters: the options of a command, as JSON.

    SIGTERM ends the stage with status 143, and Ctrl-C with 130 and one line; training saves a checkpoint first.
    A mistake that all processes find is printed once. A process whose peer ended says so and ends.
    """
    hide_in_tracebacks()
    with (
        terminable(f"{name}: interrupted; the same command continues"),
        _told(name, workspace.root if workspace else Path()),
    ):
        _check_parallel(name)
        form_group()
        workspace = workspace or Workspace.find()
        params = workspace.load_params()
        upstream = upstream_of(name, params) if upstream is None else upstream
        inputs = input_facts(workspace, name, params, upstream) | ({} if options is None else {"options": options})
        facts = work_facts(workspace, params, inputs, Imports().code(STAGES[name].code))
        current = Stage(name, workspace, params, digest_facts(inputs), facts, None)
        with lock(current.work) if rank() == 0 else nullcontext():
            if rank() == 0:
                _check_scanned(workspace, facts)
                open_work(workspace, name, current.mark)
            barrier()
            _check_shared(current)
            with _tracked(current, upstream) as current.run, undisturbed_end():
                yield current
                barrier()
                if rank() == 0:
                    # Linux counts in KiB.
                    current.log({"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
                    _check_unchanged(workspace, facts, upstream)
                    _publish(current)


@contextmanager
def _told(name: str, folder: Path) -> Iterator[None]:
    """Prints an error that is no fault of the code in one line and ends this process with status 2. ``folder``: where files are written."""
    print_any_name()
    try:
        yield
    except Exception as error:
        cause = ""
        reason = in_one_line(error, folder)
        if reason is None and isinstance(error, RuntimeError) and is_lost_peer(error):
            reason = (
                "a connection between the processes of this job broke; where one has ended, its message is the reason"
            )
            cause = f" ({' '.join(str(error).split())})"
        if reason is None:
            raise
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


def _check_scanned(workspace: Workspace, facts: Facts) -> None:
    """Raises :class:`UserError` if DVC would record other code than this stage runs with."""
    known = scanned_code(workspace.code(facts["stage"]))
    if "DVC_STAGE" in os.environ and known is not None and known != facts["code"]:
        change = first_change({"code": known}, {"code": facts["code"]})
        raise UserError(f"{change} since stage `scan` looked at it; run `dvc repro scan`, then this again")


def _check_unchanged(workspace: Workspace, facts: Facts, upstream: tuple[str, ...]) -> None:
    """Raises :class:`UserError` if something that the stage has read is not any more what it was. DVC would record it for this result."""
    kept = f"the finished work is kept in {workspace.work(facts['stage'])}"
    try:
        params = workspace.load_params()
        inputs = input_facts(workspace, facts["stage"], params, upstream)
        now = work_facts(workspace, params, inputs, code_now(facts["code"]))
    except UserError as error:
        raise UserError(
            f"what it was made from cannot be read any more ({error}), so {kept}; mend that and run again"
        ) from None
    change = first_change(facts, now)
    if change:
        raise UserError(
            f"{change} while the stage ran, so the result is not published; run again to make it anew, or change that back and run "
            f"again to publish: {kept}"
        )


def _check_shared(current: Stage) -> None:
    """Raises :class:`UserError` in a process that does not see the work folder as process 0 has just opened it."""
    if rank() != 0 and read_mark(current.work) != current.mark:
        raise UserError(
            f"process {rank()} on {socket.gethostname()} does not see {current.work.absolute()} as process 0 opened it; start all processes in "
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
    repro = None if name == "tune" else current_repro(workspace, graph_params(params))
    with start_run(workspace, name, current.fingerprint, params.tracking, parents, repro) as run:
        tree = to_tree(params)
        run.log_params(flatten({key: select(tree, key) for key in STAGES[name].params}))
        yield run
    if repro is not None and name in LAST_STAGES:
        end_repro(workspace, repro)


def graph_params(params: Params) -> dict[str, object]:
    """The parameters of all stages of the graph, by dotted key."""
    tree = to_tree(params)
    keys = [key for name, inputs in STAGES.items() if name != "tune" for key in inputs.params]
    return flatten({key: select(tree, key) for key in keys})


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested mappings, and lists of mappings, to dotted keys."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            value = {str(place): each for place, each in enumerate(value)}
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _publish(current: Stage) -> None:
    """Moves the finished folder to ``results`` in one rename and forgets the work. An old result goes whole, too."""
    published, content = current.fingerprint, None
    if current.content:
        # Content alone: neither an option that did not change it nor a file beside it must make later stages run again.
        published = content = hashlib.sha256("/".join([current.name, *current.content]).encode()).hexdigest()
        if current.run is not None:
            current.run.log_tags({"sfd.fingerprint": published})  # under which later stages name their parent
    write_published(current.out, current.name, published, content)
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
