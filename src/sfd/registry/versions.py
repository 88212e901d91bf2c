"""Reads the facts that stage ``register`` wrote into the tags of a version."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sfd.params import CHAMPION, RegisterParams
from sfd.registry.load import find_version, open_registry
from sfd.registry.smoke import Smoke
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

METRIC, MEASURED, DATA, PROMOTION, SMOKE = "metric.", "measured.", "data.", "promotion.", "smoke"
"""Prefixes of the tags; ``smoke`` is one tag."""


@dataclass(frozen=True)
class VersionInfo:
    """A version with the content of its tags. ``measured``: how its metrics were measured; empty if an older sfd registered it."""

    name: str
    version: str
    run_id: str
    created: datetime
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    measured: dict[str, str]
    data: dict[str, str]
    smoke: Smoke | None
    promotions: dict[str, str]

    def __str__(self) -> str:
        return f"version {self.version}"


def read_version(workspace: Workspace, name: str, which: str) -> VersionInfo:
    """A version by its number or an alias. Raises :class:`UserError` as :func:`find_version` does."""
    found = find_version(workspace, name, which)
    return _parse_tags(found, read_aliases(workspace, name))


def read_champion(workspace: Workspace, name: str) -> VersionInfo | None:
    """The champion; None if there is none yet."""
    version = read_aliases(workspace, name).get(CHAMPION)
    return None if version is None else read_version(workspace, name, version)


def read_shown(workspace: Workspace, register: RegisterParams, which: str | None) -> VersionInfo:
    """The named version; without a name the champion; without a champion the version with the alias of registration."""
    champion = read_champion(workspace, register.name) if which is None else None
    return champion or read_version(workspace, register.name, which or register.alias)


def read_versions(workspace: Workspace, name: str) -> list[VersionInfo]:
    """All versions, newest first; empty if there is no such model. Raises :class:`UserError` if the store does not answer."""
    with open_registry(workspace) as registry:
        found = registry.search_model_versions(f"name = '{name}'")
    aliases = read_aliases(workspace, name) if found else {}
    return sorted((_parse_tags(each, aliases) for each in found), key=lambda record: -int(record.version))


def read_aliases(workspace: Workspace, name: str) -> dict[str, str]:
    """Alias to version. Raises :class:`UserError` if there is no such model."""
    with open_registry(workspace, f"there is no model `{name}`, which stage `register` makes,") as registry:
        return {alias: str(version) for alias, version in registry.get_registered_model(name).aliases.items()}


def _parse_tags(found: "ModelVersion", aliases: Mapping[str, str]) -> VersionInfo:
    version = str(found.version)

    def tags(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in found.tags.items() if key.startswith(prefix)}

    return VersionInfo(
        name=found.name,
        version=version,
        run_id=found.run_id,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == version)),
        metrics={key: float(value) for key, value in tags(METRIC).items()},
        measured=tags(MEASURED),
        data=tags(DATA),
        smoke=Smoke.from_tag(found.tags[SMOKE]) if SMOKE in found.tags else None,
        promotions=tags(PROMOTION),
    )


def describe_difference(version: VersionInfo, other: VersionInfo) -> str | None:
    """How the measurements of two versions differ, so that their metrics cannot be compared; None if they do not."""
    for record in (version, other):
        if not record.measured:
            return f"how {record} was measured is not recorded, because an older sfd registered it"
    keys = dict.fromkeys([*version.measured, *other.measured])
    pairs = {key: (version.measured.get(key, "none"), other.measured.get(key, "none")) for key in keys}
    named = [f"{key} {mine[:12]} and {theirs[:12]}" for key, (mine, theirs) in pairs.items() if mine != theirs]
    return f"{version} and {other} were measured differently: {', '.join(named)}" if named else None
