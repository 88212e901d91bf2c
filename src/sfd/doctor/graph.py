"""The stages: what DVC says of each, and what stage ``scan`` would find now. Nothing of the project is changed."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sfd.data.listing import write_listing
from sfd.doctor.findings import Finding
from sfd.errors import UserError
from sfd.params import Params, parse_yaml, select, to_tree
from sfd.pipeline.inputs import differences
from sfd.pipeline.quality import stopped
from sfd.pipeline.scan import GRAPH_NAME, check_stages, write_experiment, write_stage_codes
from sfd.registry.source import write_init_from
from sfd.workspace import PARAMS_NAME, Workspace

NO_GIT = "is not a git repository"
"""What DVC answers in a folder without git."""
CURRENT = "current"
SHORT = 60
"""Characters of a value in the table."""


@dataclass(frozen=True)
class Look(Workspace):
    """The project, whose stage ``scan`` writes to ``place``."""

    place: Path = Path()

    @property
    def results(self) -> Path:
        """Where ``scan`` writes."""
        return self.place


@dataclass
class Graph:
    """What is known of the graph.

    Attributes:
        stages, locked: entries of ``dvc.yaml`` and of ``dvc.lock``.
        status: what DVC says of the stages that are not current.
        scanned: md5 of the files that ``scan`` would write now, by their names below the root.
        unknown: why it cannot look at a file.
    """

    stages: dict[str, dict[str, Any]]
    locked: dict[str, dict[str, Any]]
    status: dict[str, Any]
    params: dict[str, Any]
    scanned: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def check_graph(workspace: Workspace, params: Params) -> list[Finding]:
    """One finding per stage, in the order of the graph; or one that says why DVC cannot be asked, or need not be."""
    if not (workspace.root / GRAPH_NAME).is_file():
        return [Finding("graph", "missing", f"there is no {GRAPH_NAME} in {workspace.root.resolve()}", is_stale=True)]
    try:
        check_stages(workspace, params)
    except UserError as error:
        return [Finding("graph", "outdated", str(error), is_stale=True)]
    answer = _ask_dvc(workspace)
    if isinstance(answer, Finding):
        return [answer]
    stages, locked = (_read(workspace.root / name).get("stages", {}) for name in (GRAPH_NAME, "dvc.lock"))
    graph = Graph(stages, locked, answer, to_tree(params))
    _scan(graph, workspace, params)
    found: dict[str, Finding] = {}
    for name, stage in stages.items():
        if not stage.get("always_changed"):
            found[name] = _judge(graph, name, found)
            reason = stopped(workspace, name)
            if found[name].is_stale and reason is not None:
                remedy = f"do what the reason says, or sfd accept {name}"
                found[name] = Finding(name, "stopped", reason, remedy, is_stale=True)
    return list(found.values())


def _read(file: Path) -> dict[str, Any]:
    return parse_yaml(file.read_text(encoding="utf-8"), str(file), accept_ambiguous=True) if file.is_file() else {}


def _ask_dvc(workspace: Workspace) -> dict[str, Any] | Finding:
    """`dvc status` as a mapping of stage to what is not current."""
    asked = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", GRAPH_NAME],
        cwd=workspace.root,
        capture_output=True,
        text=True,
    )
    if asked.returncode == 0:
        return dict(json.loads(asked.stdout))
    said = " ".join(asked.stderr.split()).removeprefix("ERROR: ")
    if NO_GIT in said:
        remedy = "dvc config --local core.no_scm true (or git init, to use experiments)"
        return Finding("graph", "unknown", "DVC expects a git repository", remedy, is_stale=True)
    if "acquire lock" in said or "is busy" in said:
        return Finding("graph", "busy", said[:200], "wait for the other dvc command", is_stale=True)
    remedy = "git checkout --theirs dvc.lock, then dvc repro" if "merge conflict" in said else "dvc status"
    return Finding("graph", "unknown", said[:300], remedy, is_stale=True)


def _scan(graph: Graph, workspace: Workspace, params: Params) -> None:
    """Looks at what ``scan`` looks at, and writes to a temporary folder."""
    with TemporaryDirectory() as folder:
        look = Look(workspace.root, workspace.dvc_experiment, Path(folder))
        try:
            write_listing(workspace.resolve_paths(params.data), look.listing)
        except UserError as error:
            graph.unknown[_name(look.listing, look)] = str(error)
        try:
            write_init_from(look, params.diffusion.init_from)
        except UserError as error:
            graph.unknown[_name(look.init_from, look)] = str(error)
        write_stage_codes(look)
        write_experiment(look)
        for file in Path(folder).rglob("*"):
            if file.is_file():
                graph.scanned[_name(file, look)] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _name(file: Path, look: Look) -> str:
    return f"results/{file.relative_to(look.place).as_posix()}"


def _judge(graph: Graph, name: str, before: Mapping[str, Finding]) -> Finding:
    """One stage. ``before``: the findings of the stages that it may read."""
    remedy, entries = f"dvc repro {name}", graph.status.get(name, [])
    changed_outs = _part(entries, "changed outs").values()
    if name not in graph.locked:
        if "deleted" in changed_outs or not changed_outs:
            return Finding(name, "missing", "it has never run", remedy, is_stale=True)
        return Finding(name, "unrecorded", "its result was made without DVC", f"dvc commit {name}", is_stale=True)
    reasons = list(_reasons(graph, name, entries, before))
    if reasons:
        return Finding(name, "outdated", "; ".join(reasons), remedy, is_stale=True)
    reads = dict.fromkeys(_stage_of(dep) for dep in graph.stages[name].get("deps", []))
    waits = [read for read in reads if read in before and before[read].is_stale]
    if waits:
        return Finding(name, "waits", f"for {', '.join(waits)}", is_stale=True)
    if "deleted" in changed_outs:
        return Finding(name, "missing", "recorded, but not here", f"dvc pull {name} (or dvc checkout)", is_stale=True)
    if "modified" in changed_outs:
        return Finding(
            name,
            "altered",
            "the result is not the recorded one",
            f"dvc checkout -f {name}, or dvc commit {name} to keep it",
            is_stale=True,
        )
    if changed_outs:
        return Finding(name, CURRENT, "but not in DVC's cache", f"dvc commit {name}")
    unknown = [graph.unknown[dep] for dep in graph.stages[name].get("deps", []) if dep in graph.unknown]
    return Finding(name, "not checked", unknown[0]) if unknown else Finding(name, CURRENT)


def _stage_of(dep: str) -> str:
    """The stage whose result, or a file of it, a dependency is; something else for any other file."""
    return dep.removeprefix("results/").partition("/")[0]


def _part(entries: list[Any], key: str) -> dict[str, Any]:
    """One part of what DVC says of a stage."""
    return next((entry[key] for entry in entries if isinstance(entry, dict) and key in entry), {})


def _reasons(graph: Graph, name: str, entries: list[Any], before: Mapping[str, Finding]) -> Iterator[str]:
    """Why a stage must run, apart from stages before it that must run as well."""
    locked = {dep["path"]: dep.get("md5") for dep in graph.locked[name].get("deps", [])}
    for dep in graph.stages[name].get("deps", []):
        now = graph.scanned.get(dep)
        if now is not None and now != locked.get(dep):
            yield _describe_scan(dep)
    if "changed command" in entries:
        yield "its command changed"
    for path, change in _part(entries, "changed deps").items():
        read = _stage_of(path)
        if path == PARAMS_NAME:
            keys = change if isinstance(change, dict) else graph.stages[name].get("params", [])
            yield from _describe_params(graph, name, keys)
        elif path.startswith("results/scan/"):
            if path not in graph.scanned and path not in graph.unknown:
                yield f"{path} {change}"
        elif read not in before:
            yield f"{path} {change}"
        elif not before[read].is_stale:
            yield f"{path} is newer"


def _describe_scan(file: str) -> str:
    match file.split("/")[2:]:
        case ["listing.json"]:
            return "images changed (names, sizes or times)"
        case ["init_from.json"]:
            return "the model in diffusion.init_from changed"
        case ["experiment.json"]:
            return "an experiment registered it, without an alias"
        case _:
            return "its code or a library changed"


def _describe_params(graph: Graph, name: str, keys: Iterable[str]) -> Iterator[str]:
    """Every option that changed, with both values."""
    recorded = graph.locked[name].get("params", {}).get(PARAMS_NAME, {})
    for key in keys:
        for option, before, now in differences({key: recorded.get(key)}, {key: select(graph.params, key)}):
            yield f"{option} was {str(before)[:SHORT]}, is {str(now)[:SHORT]}"
