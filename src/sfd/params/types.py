"""Types of options that pydantic does not have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from sfd.names import Entry, nearest


@dataclass(frozen=True, eq=False)
class OneOf:
    """Marks a string that must be a name of an open table (:mod:`sfd.names`), as in ``Annotated[str, OneOf(SAMPLERS)]``.

    The table is read when a value is checked, so an entry that is added later counts.

    Attributes:
        table: name to entry.
        extra: further names that have no implementation, and their descriptions.
    """

    table: Mapping[str, Entry]
    extra: Mapping[str, str] = field(default_factory=dict)

    def descriptions(self) -> dict[str, str]:
        """Every allowed name and what it means."""
        return {name: entry.description for name, entry in self.table.items()} | dict(self.extra)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        known = list(self.descriptions())
        if name not in known:
            names = ", ".join(f"`{each}`" for each in known)
            raise ValueError(f"choose one of {names}; nearest: `{nearest(name, known)}`")
        return name
