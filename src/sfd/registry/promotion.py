"""``sfd models promote`` and ``rollback``: move aliases, one process at a time, and record each move in an audit entry.

A version must pass the gates and the smoke test first.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sfd.errors import UserError
from sfd.names import reference_name
from sfd.params import CHAMPION, PREVIOUS, Params, TrackingParams
from sfd.registry.gates import GateResult, check_gates, gate_table, unlike_references
from sfd.registry.history import former_champions, was_champion
from sfd.registry.load import open_registry
from sfd.registry.lock import now, promotion_lock, who
from sfd.registry.smoke import Smoke, check_smoke, run_smoke
from sfd.registry.versions import (
    PROMOTION,
    VersionInfo,
    describe_difference,
    find_versions,
    read_aliases,
    read_champion,
    read_version,
)
from sfd.tracking import describe_origin, start_run
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient


class PromotionRefused(Exception):
    """A version may not become champion: the message says why, in one line. Nothing was changed."""


@dataclass(frozen=True)
class AuditEntry:
    """The record of one move of the champion alias. ``before``: the champion until now, or None if there was none."""

    action: str
    model: str
    before: str | None
    after: str
    gates: list[GateResult] = field(default_factory=list)
    smoke: str = ""
    forced: str | None = None


def promote(workspace: Workspace, which: str | None, force: str | None) -> str:
    """Makes a version the champion; returns one line that says what was done. Prints the table of gates.

    ``which``: a number or an alias; None for the alias of registration. ``force``: the reason to go on although gates fail.

    Raises:
        PromotionRefused: a gate or the smoke test fails.
        UserError: there is no such version, it is champion already or not complete, another promotion is going on, or the store
            does not answer.
    """
    params = workspace.load_params()
    name = workspace.model_name(params.register_)
    if force is not None and not force.strip():
        raise UserError("--force needs a reason, which is kept with the version; say why the gates do not matter")
    version = read_version(workspace, name, which or params.register_.alias)
    if version.smoke is None:
        raise UserError(
            f"{version} of model `{name}` has no images to compare with, because an older sfd or another program registered it; "
            "run `dvc repro` to register it again"
        )
    with promotion_lock(workspace, name):
        champion = read_champion(workspace, name)
        if champion is not None and champion.version == version.version:
            raise UserError(f"{version} of model `{name}` is the champion already; name another version")
        verdicts = _pass_gates(params, version, champion, force)
        smoke = _pass_smoke(workspace, version, version.smoke)
        before = champion.version if champion else None
        former = former_champions(find_versions(workspace, name), before)
        previous = before or (former[0] if former else None)
        forced = None if all(verdict.passed for verdict in verdicts) else force
        audit = AuditEntry("promote", name, before, version.version, verdicts, smoke, forced)
        _move(workspace, audit, {PREVIOUS: previous, CHAMPION: version.version}, params.tracking)
    return f"models:/{name}@{CHAMPION} is {version} now; before: {f'version {before}' if before else 'none'}"


def rollback(workspace: Workspace, to: str | None = None) -> str:
    """Makes a former champion the champion again; returns one line that says so.

    ``to``: its number or an alias; None for the one that the present champion replaced, or the last one that still exists.

    Raises:
        UserError: there is no such champion, another promotion is going on, or the store does not answer.
    """
    params = workspace.load_params()
    name = workspace.model_name(params.register_)
    with promotion_lock(workspace, name):
        aliases = read_aliases(workspace, name)
        champion = aliases.get(CHAMPION)
        former = former_champions(find_versions(workspace, name), champion)
        if not former and aliases.get(PREVIOUS) != champion:
            former = [version for alias, version in aliases.items() if alias == PREVIOUS]  # set by hand
        target = _choose_target(name, former, champion) if to is None else _named_target(workspace, name, to)
        earlier = former[former.index(target) + 1 :] if target in former else [champion]
        previous = earlier[0] if earlier else None
        audit = AuditEntry("rollback", name, champion, target)
        _move(workspace, audit, {CHAMPION: target, PREVIOUS: previous}, params.tracking)
    was = f"version {champion}" if champion else "none, because it was deleted or its alias was taken away"
    return f"models:/{name}@{CHAMPION} is version {target} again; before: {was}"


def _choose_target(name: str, former: list[str], champion: str | None) -> str:
    if not former:
        present = f"; the champion is version {champion}" if champion else ""
        raise UserError(
            f"model `{name}` has no earlier champion to return to{present}; promote the version that you want: `sfd models list`"
        )
    return former[0]


def _named_target(workspace: Workspace, name: str, to: str) -> str:
    version = read_version(workspace, name, to)
    if CHAMPION in version.aliases:
        raise UserError(f"{version} of model `{name}` is the champion already; name another version")
    if not was_champion(version):
        raise UserError(
            f"{version} of model `{name}` was never champion, so there is no way back to it; `sfd models promote {version.version}` "
            "checks its gates"
        )
    return version.version


def _pass_gates(
    params: Params, version: VersionInfo, champion: VersionInfo | None, force: str | None
) -> list[GateResult]:
    """Prints the verdicts. Raises :class:`PromotionRefused` if one fails and is not forced."""
    gates = params.register_.gates
    difference = describe_difference(version, champion) if champion else None
    reference = reference_name(params.evaluate.reference)
    verdicts = check_gates(gates, version, champion, difference is None, reference)
    against = f"champion {champion.version}" if champion else "no champion yet"
    print(f"{version} of model `{version.name}`, {against}\n")
    print(gate_table(verdicts) if verdicts else "no gates: register.gates in params.yaml is empty", flush=True)
    for said in unlike_references(gates, version, reference).values():
        print(said, flush=True)
    failed = dict.fromkeys(verdict.metric for verdict in verdicts if not verdict.passed)
    reason, remedy = f"gates fail: {', '.join(failed)}", "--force REASON promotes in spite of them"
    if difference is not None and any(gate.improve for gate in gates.values()):
        reason, remedy = difference, "evaluate both alike, or give --force REASON"
    if failed and force is None:
        raise PromotionRefused(f"{reason}; {remedy}")
    if failed:
        print(f"\nforced ({force}) in spite of: {reason}", flush=True)
    return verdicts


def _pass_smoke(workspace: Workspace, version: VersionInfo, recorded: Smoke) -> str:
    """Prints the result of the smoke test. Raises :class:`PromotionRefused` if it fails; it cannot be forced."""
    try:
        uri, what = f"models:/{version.name}/{version.version}", f"{version} of model `{version.name}`"
        said = check_smoke(recorded, run_smoke(workspace, uri, what, recorded.labels, recorded.column))
    except UserError as error:
        raise PromotionRefused(f"the smoke test fails: {error}") from None
    print(f"\nsmoke test: {said}", flush=True)
    return said


def _move(workspace: Workspace, audit: AuditEntry, aliases: Mapping[str, str | None], tracking: TrackingParams) -> None:
    """Moves the aliases and writes the audit entry. The entry's run is opened first, so that a kill in between leaves a trace."""
    old = read_aliases(workspace, audit.model)
    tags = {"sfd.model": audit.model, "sfd.who": who(), "sfd.from": audit.before or "none", "sfd.to": audit.after}
    forced = {} if audit.forced is None else {"sfd.forced": audit.forced}
    with start_run(workspace, audit.action, uuid.uuid4().hex, tracking, {}) as run, TemporaryDirectory() as folder:
        run.final_status = "FAILED"  # until all is done: an interrupted promotion is not continued
        run.log_tags(tags | forced)
        when, run_id = now(), run.wait_for_run_id()
        entry = {
            "who": who(),
            "when": when,
            "run_id": run_id,
            **asdict(audit),
            **describe_origin(workspace, audit.action),
        }
        line = json.dumps({key: entry[key] for key in ("action", "who", "before", "after", "forced", "run_id")})
        versions = [version for version in (audit.before, audit.after) if version is not None]
        try:
            with open_registry(workspace) as registry:
                _set_aliases(registry, audit.model, aliases)
                for version in versions:
                    registry.set_model_version_tag(audit.model, version, PROMOTION + when, line)
        except BaseException:  # an interruption, too: all or nothing
            with open_registry(workspace) as registry:
                _set_aliases(registry, audit.model, {alias: old.get(alias) for alias in aliases})
                for version in versions:
                    registry.delete_model_version_tag(audit.model, version, PROMOTION + when)
            raise
        file = Path(folder) / "audit.json"
        file.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        run.log_artifact(file)
        run.final_status = "FINISHED"


def _set_aliases(registry: "MlflowClient", model: str, aliases: Mapping[str, str | None]) -> None:
    """Alias to version, or to None: no such alias."""
    for alias, version in aliases.items():
        if version is None:
            registry.delete_registered_model_alias(model, alias)
        else:
            registry.set_registered_model_alias(model, alias, version)
