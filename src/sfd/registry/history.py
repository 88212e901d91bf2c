"""The champions of a model in order, as the records of promotions and rollbacks in the tags of its versions tell them."""

import json
from collections.abc import Iterable
from typing import Any

from sfd.registry.versions import VersionInfo


def former_champions(versions: Iterable[VersionInfo], champion: str | None) -> list[str]:
    """The champions before the present one that still exist, the latest first.

    A promotion adds a champion; a rollback takes the later ones away, so that the next one goes further back. An alias that was moved by
    hand counts as a rollback if that version was champion before, else as a promotion.
    """
    versions = list(versions)
    line: list[str] = []
    for entry in _entries(versions):
        if entry["before"] is not None:
            _continue(line, entry["before"])
        if entry["action"] == "promote":
            line.append(entry["after"])
        else:
            _continue(line, entry["after"])
    if champion is not None:
        _continue(line, champion)
        line.pop()
    existing = {version.version for version in versions} - {champion}
    return list(dict.fromkeys(version for version in reversed(line) if version in existing))


def was_champion(version: VersionInfo) -> bool:
    """Whether a promotion or rollback made it champion once."""
    return any(entry["after"] == version.version for entry in _entries([version]))


def _continue(line: list[str], version: str) -> None:
    """Makes ``version`` the last of the line: by cutting what follows it, or by adding it."""
    if version in line:
        while line[-1] != version:
            line.pop()
    else:
        line.append(version)


def _entries(versions: Iterable[VersionInfo]) -> list[dict[str, Any]]:
    """The records of all moves, oldest first. Both versions of a move have the same record."""
    found = {when: line for version in versions for when, line in version.promotions.items()}
    return [json.loads(found[when]) for when in sorted(found)]
