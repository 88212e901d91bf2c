"""What a stage logged, on local disk: one file for each run, one JSON record a line, and beside it how much MLflow has.

``.sfd/journal/FINGERPRINT-STAGE.jsonl`` holds the records (of an experiment, with its name at the end), ``*.state.json`` the delivered
part, ``artifacts/`` the files that wait. One call writes a line, so a kill leaves whole lines and at most one torn last one, which is dropped.
"""

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sfd.errors import UserError, redact
from sfd.workspace import Workspace

Record = dict[str, Any]

WRITER_WAIT_S = 10.0  # a killed stage's data loader workers may hold its lock for some seconds more
DELIVERY_WAIT_S = 5.0
LINK_ABOVE_BYTES = 64 * 1024**2
FINISH_PREFIX = b'{"kind": "finish"'


@dataclass(frozen=True)
class State:
    """How much of a journal MLflow has.

    Attributes:
        uri: the tracking store, without credentials.
        run_id: the MLflow run there; None: not created yet.
        offset: bytes of the journal that are delivered.
    """

    uri: str
    run_id: str | None = None
    offset: int = 0


class Journal:
    """One run's journal, for reading and for its delivery state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.artifacts = path.parent / "artifacts" / path.stem
        self._state_path = path.with_suffix(".state.json")

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Yields every whole record from byte ``offset`` on, with the byte where it ends.

        Raises:
            UserError: a line is not JSON, e.g. after a power cut.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                except ValueError:
                    raise UserError(
                        f"{self.path} is damaged at byte {offset}; move it away (its MLflow run keeps what it has)"
                    ) from None
                offset += len(line)
                yield record, offset

    def read_header(self) -> Record:
        """The first record of a journal that has one: id, stage, fingerprint, experiment, time in ms."""
        return next(self.read())[0]

    def is_finished(self) -> bool:
        """Whether the stage ended by itself, well or not; a killed one is to be continued."""
        with self.path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            tail = file.read()
        return tail.endswith(b"\n") and tail.splitlines()[-1].startswith(FINISH_PREFIX)

    def state(self, uri: str) -> State:
        """The delivery state at the store ``uri``. A journal that was delivered in part to another store is delivered here from its start.

        MLflow does not double a record that it gets twice. So this is safe even if both addresses are of the same server.
        """
        if not self._state_path.exists():
            return State(uri)
        state = State(**json.loads(self._state_path.read_text(encoding="utf-8")))
        return state if state.uri == uri or self._count_lines(state.offset) == 0 else State(uri)

    def remove_artifacts(self) -> None:
        """Drops the copies that waited for delivery."""
        if self.artifacts.exists():
            shutil.rmtree(self.artifacts)

    def write_state(self, state: State) -> None:
        """Replaces the delivery state in one step, and not before what it counts is on disk."""
        temporary = self._state_path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._state_path)

    def flush_to_disk(self) -> None:
        """Waits until the records survive a power cut; a delivered record that is lost here would be logged twice."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def count_pending(self, uri: str) -> int:
        """Records that the store ``uri`` does not have yet."""
        return self._count_lines(self.state(uri).offset)

    @contextmanager
    def delivery_lock(self) -> Iterator[None]:
        """Lets one process at a time deliver. Raises :class:`filelock.Timeout` after ``DELIVERY_WAIT_S``."""
        with FileLock(self.path.with_suffix(".delivery.lock"), timeout=DELIVERY_WAIT_S):
            yield

    def _count_lines(self, offset: int) -> int:
        with self.path.open("rb") as file:
            file.seek(offset)
            return sum(line.endswith(b"\n") for line in file)


def find_journals(workspace: Workspace) -> list[Journal]:
    """The project's journals, oldest first."""
    timed = []
    for path in workspace.journals.glob("*.jsonl"):
        first = next(Journal(path).read(), None)
        if first is not None:  # else its stage was killed before it wrote anything
            timed.append((first[0]["time"], path))
    return [Journal(path) for _, path in sorted(timed)]


class JournalWriter:
    """The stage's end of a journal: appends records, and remembers what is there so that nothing is written twice."""

    def __init__(self, journal: Journal, header: Mapping[str, object]) -> None:
        self.journal = journal
        self.values: dict[str, dict[str, str]] = {
            kind: {} for kind in ("params", "tags", "parents", "repro_params", "repro_tags")
        }
        self._repro: str | None = None
        self._steps: dict[str, set[int]] = {}
        self._mutex = threading.Lock()
        self._file = os.open(journal.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)  # less the umask
        end = 0
        for record, record_end in journal.read():
            self._remember(record)
            end = record_end
        os.ftruncate(self._file, end)
        if end == 0:
            self._append({"kind": "header", **header})

    def add_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Appends those values whose (key, step) is new; a continued stage passes some steps a second time."""
        new = {key: value for key, value in values.items() if step not in self._steps.get(key, ())}
        if new:
            self._append({"kind": "metrics", "step": step, "time": now_ms(), "values": new})

    def add_values(self, kind: str, values: Mapping[str, str]) -> None:
        """Appends those ``params``, ``tags`` or ``parents`` that differ from what is there, without passwords."""
        values = {key: redact(value) for key, value in values.items()}
        new = {key: value for key, value in values.items() if self.values[kind].get(key) != value}
        if new:
            self._append({"kind": kind, "repro": self._repro, "values": new})

    def join_repro(self, repro_id: str) -> None:
        """From now on the run is a child of that of a `dvc repro`, which the kinds ``repro_params`` and ``repro_tags`` describe."""
        self._append({"kind": "repro", "repro": repro_id})

    def add_result(self, values: Mapping[str, float]) -> None:
        """Appends metrics of the `dvc repro`, if the run is a child of one."""
        if self._repro is not None:
            self._append({"kind": "repro_metrics", "repro": self._repro, "time": now_ms(), "values": dict(values)})

    def add_input(self, record: Record) -> None:
        """Appends one data set, without a password in its address."""
        self._append({"kind": "input", **record, "source": redact(record["source"])})

    def add_artifact(self, path: Path, artifact_path: str) -> None:
        """Keeps a copy of a file or folder until it is delivered: results may be rebuilt meanwhile.

        Files above 64 MiB are hard-linked where the file system can: replace such a file, do not write into it.
        """
        kept = self.journal.artifacts / uuid.uuid4().hex / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=_keep_file)
        else:
            _keep_file(path, kept)
        name = kept.relative_to(self.journal.path.parent).as_posix()
        self._append({"kind": "artifact", "file": name, "artifact_path": artifact_path})

    def finish(self, status: str) -> None:
        """Ends the journal with MLflow's run status FINISHED or FAILED."""
        self._append({"kind": "finish", "repro": self._repro, "status": status, "time": now_ms()})

    def close(self) -> None:
        """Closes the file; an unfinished journal stays to be continued."""
        os.close(self._file)

    def _remember(self, record: Record) -> None:
        if record["kind"] == "metrics":
            for key in record["values"]:
                self._steps.setdefault(key, set()).add(record["step"])
        elif record["kind"] == "repro" and record["repro"] != self._repro:
            self._repro = record["repro"]
            self.values |= {"repro_params": {}, "repro_tags": {}}  # another parent knows none of them
        elif record["kind"] in self.values:
            self.values[record["kind"]].update(record["values"])

    def _append(self, record: Record) -> None:
        line = (json.dumps(record) + "\n").encode()
        with self._mutex:
            start = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(errno.ENOSPC, f"no space left for {self.journal.path}")
            except OSError:
                os.ftruncate(self._file, start)  # half a line would spoil the next record
                raise
            self._remember(record)


@contextmanager
def open_journal(workspace: Workspace, stage: str, fingerprint: str, experiment: str) -> Iterator[JournalWriter]:
    """Continues the unfinished journal of a killed stage, or starts one; a finished journal is never added to.

    Raises:
        UserError: the same stage runs already in this project, or its journal is damaged.
    """
    home = workspace.journals
    home.mkdir(parents=True, exist_ok=True)
    # Two experiments may make the same result at the same time.
    variant = "" if workspace.dvc_experiment is None else f"-{workspace.dvc_experiment.name}"
    name = f"{fingerprint[:16]}-{stage}{variant}"
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(home / f"{name}.lock", timeout=WRITER_WAIT_S))
        except Timeout:
            where = workspace.root.resolve()
            raise UserError(f"stage {stage} runs already in {where}; wait for it, or end that process") from None
        generation = 1
        path = home / f"{name}.jsonl"
        while path.exists() and Journal(path).is_finished():
            generation += 1
            path = home / f"{name}.{generation}.jsonl"
        header = {
            "id": uuid.uuid4().hex,
            "stage": stage,
            "fingerprint": fingerprint,
            "experiment": experiment,
            "time": now_ms(),
        }
        writer = JournalWriter(Journal(path), header)
        try:
            yield writer
        finally:
            writer.close()


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


def _keep_file(source: str | Path, target: str | Path) -> str | Path:
    """Hard-links a large file, copies any other; returns ``target``, as ``shutil.copytree`` asks."""
    if os.stat(source).st_size > LINK_ABOVE_BYTES:
        try:
            os.link(source, target)
            return target
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
    return target
