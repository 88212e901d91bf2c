"""The run of one `dvc repro`: the parent of its stages' runs, with all parameters and the final metrics.

It has no journal of its own. The journals of its stages name it by an id, and whoever delivers one of them finds it by that id or makes it.
The id lasts from stage ``scan``, the first of every `dvc repro`, to the last stage: so a repro that is killed and run again with the same
parameters goes on with its run, and one that finds nothing to do leaves none.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfd.workspace import Workspace

LAST_STAGES = ("evaluate", "register")
"""Once one of these has ended, the next `dvc repro` begins a run of its own, also with the same parameters."""


@dataclass(frozen=True)
class Repro:
    """One `dvc repro`. ``params``: those of all stages, by dotted key."""

    id: str
    params: Mapping[str, object]


def begin_repro(workspace: Workspace, params: Mapping[str, object]) -> None:
    """Called by stage ``scan``: goes on with the last repro if it was not finished and had the same parameters, else begins another one."""
    last = _read(workspace)
    if last is None or last["finished"] or last["params"] != _digest(params):
        _write(workspace, uuid.uuid4().hex, params, finished=False)


def current_repro(workspace: Workspace, params: Mapping[str, object]) -> Repro:
    """The repro that a stage belongs to. A stage that is run by itself belongs to the last one, if that had the same parameters."""
    last = _read(workspace)
    if last is not None and last["params"] == _digest(params):
        return Repro(str(last["id"]), params)
    made = Repro(uuid.uuid4().hex, params)
    _write(workspace, made.id, params, finished=False)
    return made


def end_repro(workspace: Workspace, repro: Repro) -> None:
    """Called when a last stage has ended."""
    _write(workspace, repro.id, repro.params, finished=True)


def _file(workspace: Workspace) -> Path:
    return workspace.root / ".sfd" / "repro.json"


def _read(workspace: Workspace) -> dict[str, object] | None:
    file = _file(workspace)
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _write(workspace: Workspace, repro_id: str, params: Mapping[str, object], finished: bool) -> None:
    """In one rename, because a stage may be killed at any time."""
    file = _file(workspace)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(
        json.dumps({"id": repro_id, "params": _digest(params), "finished": finished}), encoding="utf-8"
    )
    temporary.replace(file)


def _digest(params: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
