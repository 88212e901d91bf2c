"""Reads the facts that stage ``register`` wrote into the tags of a version."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sfd.errors import UserError
from sfd.names import (
    CLIP_SCORE,
    FDR,
    HELDOUT,
    INCEPTION,
    SWAP_ACCURACY,
    distance_name,
    kind_of,
    ratio_name,
    with_floors,
)
from sfd.params import CHAMPION, RegisterParams
from sfd.registry.load import find_version, open_registry
from sfd.registry.smoke import Smoke
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REFERENCE_NAME = "reference_name"
"""Below ``measured.``: the reference as a reader knows it. Beside it stands its digest, by which measurements are compared."""
METRIC, MEASURED, DATA, PROMOTION, SMOKE = "metric.", "measured.", "data.", "promotion.", "smoke"
"""Prefixes of the tags; ``smoke`` is one tag."""
DIGEST = "digest"
"""Tag of a version: what it was made of. By it the version of some results is found."""
DIGEST_OF_DATA = "digest"
"""Below ``data.``: the images."""
REGISTRATION_NAME = "registration.json"
PRECISION = "precision"
"""Below ``measured.``: the type in which the judge computed."""
OTHERS, CMMD = "judge_digest.", "cmmd"
"""Below ``measured.``: the digest of a judge beside the first, by name; and the judge of the kernel distance of this name."""
SWAPS = "swaps"
"""Below ``measured.``: a digest of the attribute swaps."""
OF_ONE_METRIC = {CMMD: CMMD, CLIP_SCORE: CLIP_SCORE, SWAPS: SWAP_ACCURACY}
"""Keys below ``measured.`` that concern one kind of metric alone, and that kind."""


@dataclass(frozen=True)
class Registration:
    """What stage ``register`` leaves in its result: the model's name, and the digest of what was registered.

    Not the version's number: another store, or the same one after a restore, may hold another number or no version at all.
    """

    name: str
    digest: str


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

    @property
    def recorded_reference(self) -> str:
        """The name of what the first judge compared the samples with. Only Inception-v3 has published references."""
        if REFERENCE_NAME not in self.measured and self.measured.get("judge", INCEPTION) != INCEPTION:
            return HELDOUT
        return self.measured.get(REFERENCE_NAME, "what an older sfd did not record")


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
    name = workspace.model_name(register)
    champion = read_champion(workspace, name) if which is None else None
    return champion or read_version(workspace, name, which or register.alias)


def find_versions(workspace: Workspace, name: str, **tags: str) -> list[VersionInfo]:
    """The versions with these tags, newest first; none if there is no such model."""
    query = " and ".join([f"name = '{name}'", *(f"tags.{key} = '{value}'" for key, value in tags.items())])
    with open_registry(workspace) as registry:
        found = registry.search_model_versions(query)
        aliases = read_aliases(workspace, name) if found else {}
    return sorted((_parse_tags(each, aliases) for each in found), key=lambda record: -int(record.version))


def read_registration(workspace: Workspace) -> Registration | None:
    """What the result of stage ``register`` says was registered; None if there is no such result."""
    file = workspace.result("register") / REGISTRATION_NAME
    return Registration(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def find_registered(workspace: Workspace, registration: Registration) -> VersionInfo | None:
    """The newest version that was made of this; None if the store has none. Raises :class:`UserError` if the store cannot be asked."""
    found = find_versions(workspace, registration.name, digest=registration.digest)
    return found[0] if found else None


def read_aliases(workspace: Workspace, name: str) -> dict[str, str]:
    """Alias to version. Raises :class:`UserError` if there is no such model."""
    with open_registry(workspace, f"there is no model `{name}`, which stage `register` makes,") as registry:
        return {alias: str(version) for alias, version in registry.get_registered_model(name).aliases.items()}


def _parse_tags(found: "ModelVersion", aliases: Mapping[str, str]) -> VersionInfo:
    version = str(found.version)
    metrics = {}
    for key, value in found.tags.items():
        if key.startswith(METRIC):
            try:
                metrics[key.removeprefix(METRIC)] = float(value)
            except ValueError:
                raise UserError(
                    f"tag {key} of version {version} of model `{found.name}` is {value!r}, not a number; correct or delete it in MLflow"
                ) from None

    def tags(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in found.tags.items() if key.startswith(prefix)}

    return VersionInfo(
        name=found.name,
        version=version,
        run_id=found.run_id,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == version)),
        metrics=metrics,
        measured=tags(MEASURED),
        data=tags(DATA),
        smoke=Smoke.from_tag(found.tags[SMOKE]) if SMOKE in found.tags else None,
        promotions=tags(PROMOTION),
    )


def computed_in(measured: Mapping[str, str]) -> str:
    """The type in which the judge computed; older records do not say it, and are of float32."""
    return measured.get(PRECISION, "fp32")


def describe_difference(version: VersionInfo, other: VersionInfo) -> str | None:
    """How the measurements of two versions differ, so that their metrics cannot be compared; None if they do not.

    Judges beside the first concern their own metrics alone: see :func:`measured_alike`.
    """
    for record in (version, other):
        if not record.measured:
            return f"how {record} was measured is not recorded, because an older sfd or another program registered it"
    # Versions of an older sfd have the digest of their reference alone.
    keys = [
        key
        for key in dict.fromkeys([*version.measured, *other.measured])
        if key != REFERENCE_NAME and not _is_of_others(key)
    ]
    records = [{**each.measured, PRECISION: computed_in(each.measured)} for each in (version, other)]
    pairs = {key: (records[0].get(key, "none"), records[1].get(key, "none")) for key in keys}
    named = [f"{key} {mine[:12]} and {theirs[:12]}" for key, (mine, theirs) in pairs.items() if mine != theirs]
    return f"{version} and {other} were measured differently: {', '.join(named)}" if named else None


def measured_alike(metric: str, version: VersionInfo, other: VersionInfo) -> bool:
    """Whether the judges of a metric are the same in two versions whose first judge is the same."""
    mine, theirs = version.measured, other.measured
    if metric == FDR:
        return {key: mine[key] for key in mine if _is_of_others(key) and key not in OF_ONE_METRIC} == {
            key: theirs[key] for key in theirs if _is_of_others(key) and key not in OF_ONE_METRIC
        }
    key = next((key for key, kind in OF_ONE_METRIC.items() if kind == kind_of(metric)), None)
    if key is not None:
        return mine.get(key) == theirs.get(key) and _same_digest(str(mine.get(key)), mine, theirs)
    names = {key.removeprefix(OTHERS) for key in (*mine, *theirs) if key.startswith(OTHERS)}
    return all(
        _same_digest(name, mine, theirs)
        for name in names
        if metric in (ratio_name(name), *with_floors(distance_name(name)))
    )


def _same_digest(name: str, mine: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    return mine.get(OTHERS + name) == theirs.get(OTHERS + name)


def _is_of_others(key: str) -> bool:
    """Whether a key of the record concerns some metrics alone."""
    return key.startswith(OTHERS) or key == FDR or key in OF_ONE_METRIC
