"""What all sections are made of: their base class, and types of options that pydantic does not have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PlainSerializer, PlainValidator
from pydantic_core import CoreSchema, core_schema

from sfd.names import Entry, nearest

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=1.0, le=20.0)]
Precision = Literal["auto", "fp32", "bf16"]
"""In which type a network computes; :mod:`sfd.precision` says what each word means on a device."""
ComputedIn = Literal["fp32", "bf16"]
"""In which type something was computed, as records say it."""


class Section(BaseModel):
    """Base of all sections: frozen; a key that is not declared, a value of another type and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def named_paths(self) -> Iterator[Path]:
        """Every file or folder that this section and its inner sections name."""
        for name in type(self).model_fields:
            yield from paths_in(getattr(self, name))


def paths_in(value: object) -> Iterator[Path]:
    """Every file or folder that a value names: itself, or what a section or a list of sections has in it."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Section):
        yield from value.named_paths()
    elif isinstance(value, tuple):
        for each in value:
            yield from paths_in(each)


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or value == "":
        raise ValueError("write the path of a file or folder")
    return Path(value)


FilePath = Annotated[Path, PlainValidator(_path), PlainSerializer(str, return_type=str)]
"""A file or folder whose content takes part in the result: text in YAML, :class:`~pathlib.Path` in Python."""


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
        """Pydantic's hook: the check runs after that of the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        known = list(self.descriptions())
        if name not in known:
            *most, last = (f"'{each}'" for each in known)
            names = f"{', '.join(most)} or {last}" if most else last
            raise ValueError(f"choose {names}; nearest: '{nearest(name, known)}'")
        return name
