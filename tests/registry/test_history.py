"""Which champion a rollback returns to, from the records of the moves."""

import json
from datetime import UTC, datetime

import pytest

from sfd.registry.history import former_champions, was_champion
from sfd.registry.versions import VersionInfo


def versions(*moves: tuple[str, str | None, str], existing: str = "12345") -> list[VersionInfo]:
    """The versions of a model after these moves: action, from, to."""
    records: dict[str, dict[str, str]] = {number: {} for number in existing}
    for time, (action, before, after) in enumerate(moves):
        line = json.dumps({"action": action, "before": before, "after": after})
        for number in {before, after} & records.keys():
            records[str(number)][f"2026-01-01T00:00:0{time}"] = line
    none = {"metrics": {}, "measured": {}, "data": {}, "smoke": None}
    return [
        VersionInfo("m", number, "r", datetime.now(UTC), (), promotions=kept, **none)
        for number, kept in records.items()
    ]  # type: ignore[arg-type]


LINE = (("promote", None, "1"), ("promote", "1", "2"), ("promote", "2", "3"))
CASES = {
    "no move": ((), None, "12345", ""),
    "one champion": (LINE[:1], "1", "12345", ""),
    "three champions": (LINE, "3", "12345", "21"),
    "after a rollback": ((*LINE, ("rollback", "3", "2")), "2", "12345", "1"),
    "after two rollbacks": ((*LINE, ("rollback", "3", "2"), ("rollback", "2", "1")), "1", "12345", ""),
    "promoted after a rollback": ((*LINE, ("rollback", "3", "2"), ("promote", "2", "4")), "4", "12345", "21"),
    "back to a later one": ((*LINE, ("rollback", "3", "1"), ("rollback", "1", "3")), "3", "12345", "1"),
    "the champion before was deleted": (LINE, "3", "1345", "1"),
    "the champion was deleted": (LINE, None, "1245", "21"),
    "the alias was moved back by hand": (LINE, "1", "12345", ""),
    "the alias was moved to a new one by hand": (LINE, "5", "12345", "321"),
    "promoted from one that was set by hand": ((*LINE, ("promote", "5", "4")), "4", "12345", "5321"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rollback_returns_to_the_champion_before(case: str) -> None:
    moves, champion, existing, expected = CASES[case]
    assert former_champions(versions(*moves, existing=existing), champion) == list(expected)


def test_only_what_was_made_champion_counts_as_a_former_one() -> None:
    assert [version.version for version in versions(*LINE) if was_champion(version)] == ["1", "2", "3"]
