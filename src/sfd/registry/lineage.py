"""Where a version comes from, and how two of them differ: ``sfd models list``, ``show`` and ``compare``."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sfd.errors import UserError
from sfd.names import ERROR_PREFIX, FLOORS, combined_error, is_metric, main_distance, num_images_of, too_few
from sfd.params import read_tree
from sfd.pipeline.inputs import STAGES
from sfd.pipeline.stage import flatten
from sfd.registry.gates import number
from sfd.registry.load import open_registry
from sfd.registry.versions import (
    VersionInfo,
    computed_in,
    describe_difference,
    find_versions,
    measured_alike,
    read_champion,
    read_shown,
    read_version,
)
from sfd.tables import as_text
from sfd.tracking import Store, tracking_uri
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

COMMIT, DIRTY = "mlflow.source.git.commit", "sfd.git_dirty"
PARENT, FINGERPRINT = "sfd.parent.", "fingerprint:"
"""Tags of a run that name the runs of the stages it read; by fingerprint where a run was not known yet."""
LISTED = ("class_accuracy", "memorised_fraction")
SHORT = 12
"""Digits of a digest or commit in a table."""


def list_versions(workspace: Workspace) -> str:
    """One row per version, newest first: number, aliases, time, main metrics."""
    params = workspace.load_params()
    name = workspace.model_name(params.register_)
    records = find_versions(workspace, name)
    if not records:
        return f"model `{name}` has no version at {Store(workspace).name}; `dvc repro` registers one"
    distances = list(
        dict.fromkeys(
            main_distance(record.metrics, record.measured.get("judge")) for record in records if record.metrics
        )
    )
    metrics = [*distances, *LISTED]
    rows = [
        [
            record.version,
            ", ".join(record.aliases),
            f"{record.created:%Y-%m-%d %H:%M}",
            *(number(record.metrics.get(key)) for key in metrics),
        ]
        for record in records
    ]
    return as_text([["version", "aliases", "created (UTC)", *metrics], *rows])


def compare_versions(workspace: Workspace, first: str, second: str) -> str:
    """Metrics side by side with their differences, and the parameters that differ.

    Raises:
        UserError: a version is missing, or the two were measured differently.
    """
    name = workspace.model_name(workspace.load_params().register_)
    one, other = read_version(workspace, name, first), read_version(workspace, name, second)
    difference = describe_difference(one, other)
    if difference is not None:
        raise UserError(f"{difference}; evaluate and register both alike (`dvc repro`) to compare them")
    with open_registry(workspace) as store:
        params = [_read_params(store, version.run_id) for version in (one, other)]
    parts = [f"{one} and {other} of model `{name}`", _metric_comparison(one, other)]
    return "\n\n".join([*parts, _params_comparison(one, other, *params)])


def _metric_comparison(first: VersionInfo, second: VersionInfo) -> str:
    rows = [["metric", *map(str, (first, second)), "difference", "its error", "beyond it?"]]
    keys = [
        key for key in first.metrics if key in second.metrics and is_metric(key) and measured_alike(key, first, second)
    ]
    for key in keys:
        mine, theirs = first.metrics[key], second.metrics[key]
        errors = [version.metrics.get(ERROR_PREFIX + key) for version in (first, second)]
        known = [error for error in errors if error is not None]
        combined = combined_error(*known) if len(known) == 2 else None
        beyond = "" if combined is None else "yes" if abs(theirs - mine) > combined else "no"
        rows.append([key, number(mine), number(theirs), f"{theirs - mine:+.3g}", number(combined, 2), beyond])
    return as_text(rows)


def _params_comparison(
    first: VersionInfo, second: VersionInfo, mine: dict[str, object] | None, theirs: dict[str, object] | None
) -> str:
    if mine is None or theirs is None:
        lacking = first if mine is None else second
        return f"params: the run of {lacking} has no params.yaml, so differences are not known"
    keys = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key) != theirs.get(key)]
    if not keys:
        return f"params: those of {first} and {second} are the same"
    rows = [[key, str(mine.get(key, "-")), str(theirs.get(key, "-"))] for key in keys]
    return "params that differ\n" + as_text([["key", str(first), str(second)], *rows])


def show_version(workspace: Workspace, which: str | None) -> str:
    """Everything that is known of a version. Without a name: of the champion, or of the version with the alias of registration.

    Raises:
        UserError: there is no such version, or the store does not answer.
    """
    params = workspace.load_params()
    version = read_shown(workspace, params.register_, which)
    champion = read_champion(workspace, version.name)
    with open_registry(workspace) as store:
        runs = _walk(store, version.run_id)
        mine = _read_params(store, version.run_id)
        theirs = _read_params(store, champion.run_id) if champion else None
    parts = [_facts(version, runs), _metric_table(version), _stage_table(runs)]
    if champion is not None and champion.version != version.version:
        parts.append(_params_comparison(version, champion, mine, theirs))
    return "\n\n".join([*parts, _promotion_table(version), _rebuild(workspace, version, runs)])


def _walk(store: "MlflowClient", run_id: str) -> "dict[str, MlflowRun | str]":
    """Stage to run, for a run and everything upstream of it, the last stage first. A string names a run that is not in the store.

    A parent whose records were delivered after its child's is named by its fingerprint, and found by that.
    """
    from mlflow import MlflowException

    start = store.get_run(run_id)
    found: dict[str, MlflowRun | str] = {"register": start}
    waiting = _parents(start)
    while waiting:
        stage, parent = waiting.pop()
        if not isinstance(found.get(stage, ""), str):
            continue
        try:
            run = _find_run(store, start.info.experiment_id, stage, parent)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        found[stage] = run or parent
        waiting += _parents(run) if run else []
    return {stage: found[stage] for stage in reversed(STAGES) if stage in found}


def _parents(run: "MlflowRun") -> list[tuple[str, str]]:
    """The stages whose results a run read, each with the name of its run."""
    return [(key.removeprefix(PARENT), value) for key, value in run.data.tags.items() if key.startswith(PARENT)]


def _find_run(store: "MlflowClient", experiment: str, stage: str, parent: str) -> "MlflowRun | None":
    if not parent.startswith(FINGERPRINT):
        return store.get_run(parent)
    query = f"tags.`sfd.stage` = '{stage}' and tags.`sfd.fingerprint` = '{parent.removeprefix(FINGERPRINT)}'"
    runs = store.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def _read_params(store: "MlflowClient", run_id: str) -> dict[str, object] | None:
    """The parameters that a run's model depends on, by dotted key; None if the run has no params.yaml."""
    if not any(file.path == "params.yaml" for file in store.list_artifacts(run_id)):
        return None
    with TemporaryDirectory() as folder:
        tree = read_tree(Path(store.download_artifacts(run_id, "params.yaml", folder)))
    sections = {key.split(".")[0] for name, inputs in STAGES.items() if name != "tune" for key in inputs.params}
    return flatten({section: value for section, value in tree.items() if section in sections})


def _facts(version: VersionInfo, runs: "Mapping[str, MlflowRun | str]") -> str:
    data, measured = version.data, version.measured
    sample = runs.get("sample")
    rows = [
        ["model", f"{version.name} {version}" + (f" ({', '.join(version.aliases)})" if version.aliases else "")],
        ["registered", f"{version.created:%Y-%m-%d %H:%M} UTC, run {version.run_id}"],
        ["code", _describe_code(runs.get("register"))],
        [
            "samples",
            "run is not in MLflow" if isinstance(sample, str | None) else f"{sample.info.artifact_uri}/grid.png",
        ],
    ]
    if data:
        rows.append(
            [
                "data",
                f"{data['num_images']} images in {data['num_classes']} classes ({data['num_train']} train, "
                f"{data['num_heldout']} held out), digest {data['digest'][:SHORT]}",
            ]
        )
    if measured:
        rows.append(
            [
                "measured",
                f"by {measured['judge']} ({measured['judge_digest'][:SHORT]}) on {measured['num_images']} images of "
                f"{measured['image_size']} pixels, reference {measured['reference'][:SHORT]}, {computed_in(measured)}",
            ]
        )
    if version.smoke is not None:
        rows += [["smoke test", f"sha256 {version.smoke.sha256[:SHORT]} of {len(version.smoke.labels)} images"]]
        rows += [["", f"on {version.smoke.device}"]]
    return as_text(rows)


def _describe_code(run: "MlflowRun | str | None") -> str:
    if run is None or isinstance(run, str) or COMMIT not in run.data.tags:
        return "commit is not known"
    dirty = run.data.tags.get(DIRTY) == "true"
    return f"commit {run.data.tags[COMMIT]}" + (", with changes that were not committed" if dirty else "")


def _metric_table(version: VersionInfo) -> str:
    """Metrics with standard errors, beside their floors."""
    metrics = version.metrics
    floors = {key: {floor: f"{key}_{floor}" for floor in FLOORS} for key in metrics}
    if metrics:
        distance = main_distance(metrics, version.measured.get("judge"))
        floors[distance] = {floor: f"fd_{floor}" for floor in FLOORS}
    beside = {name for names in floors.values() for name in names.values()}
    rows = [["metric", "value", "standard error", *(f"floor: {floor}" for floor in FLOORS), "images"]]
    for key, value in metrics.items():
        if key in beside or not is_metric(key):
            continue
        cells = [number(metrics[name]) if name in metrics else "" for name in floors[key].values()]
        error = metrics.get(ERROR_PREFIX + key)
        images = too_few(key, metrics) or str(num_images_of(key, metrics) or "")
        rows.append([key, number(value), "" if error is None else number(error, 2), *cells, images])
    return as_text(rows)


def _stage_table(runs: "Mapping[str, MlflowRun | str]") -> str:
    rows = [["stage", "run", "started (UTC)", "commit"]]
    for stage, run in runs.items():
        if isinstance(run, str):
            rows.append([stage, f"not in MLflow ({run[:24]})", "", ""])
            continue
        started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        commit = run.data.tags.get(COMMIT, "unknown")[:SHORT] + ("+" if run.data.tags.get(DIRTY) == "true" else "")
        rows.append([stage, run.info.run_id, f"{started:%Y-%m-%d %H:%M}", commit])
    legend = "\n+: with changes that were not committed" if any(row[-1].endswith("+") for row in rows) else ""
    return as_text(rows) + legend


def _promotion_table(version: VersionInfo) -> str:
    if not version.promotions:
        return "never promoted"
    rows = [["when (UTC)", "action", "from", "to", "who", "forced because"]]
    for when, line in sorted(version.promotions.items()):
        entry = json.loads(line)
        cells = [entry["action"], entry["before"] or "none", entry["after"], entry["who"], entry["forced"] or ""]
        rows.append([when[:19].replace("T", " "), *cells])
    return as_text(rows)


def _rebuild(workspace: Workspace, version: VersionInfo, runs: "Mapping[str, MlflowRun | str]") -> str:
    run = runs["register"]
    if isinstance(run, str) or COMMIT not in run.data.tags:
        return "to rebuild it: not possible, because the commit of its code is not known"
    where = [] if os.environ.get("MLFLOW_TRACKING_URI") else [f"  export MLFLOW_TRACKING_URI={tracking_uri(workspace)}"]
    lines = [
        "to rebuild it:",
        f"  git checkout {run.data.tags[COMMIT]}",
        *where,
        f"  mlflow artifacts download -r {version.run_id} -a params.yaml -d .",
        "  dvc repro register",
    ]
    if run.data.tags.get(DIRTY) == "true":
        lines.append("its code had changes that were not committed: these cannot be restored")
    return "\n".join(lines)
