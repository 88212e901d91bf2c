"""The mistakes of an input in words."""

import textwrap
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sfd.errors import redact
from sfd.names import nearest
from sfd.params.schedule import TAU_TAGS
from sfd.params.types import Section

SHOWN_MISTAKES = 5
"""A file with more mistakes than this is hardly a params file."""


def describe_mistakes(error: ValidationError, section: type[Section]) -> list[str]:
    """One line for each mistake in an input of ``section``: the key, the value, the rule, the nearest valid key."""
    return [_describe(dict(item), section) for item in error.errors()]


def _describe(item: dict[str, Any], root: type[Section]) -> str:
    location = [str(part) for part in item["loc"] if part not in TAU_TAGS]
    key, message = ".".join(location), str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown key `{key}` (value {shown(item['input'])}); nearest valid key: `{_nearest(location, root)}`"
    if item["type"] == "missing":
        return f"key `{key}` is missing and has no default"
    if not key:
        return message
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return f"`{key}`: {message}"
    return f"`{key}` is {shown(item['input'])}, but: {message}{_form(item, location, root)}"


def _nearest(location: list[str], root: type[Section]) -> str:
    """The valid key that is most like an unknown one: of the same name in the stage's section of ``runtime``, else in the same section."""
    runtime = ["runtime", location[0], location[-1]]
    if location[-1] in _fields_beside(runtime, root) and location[0] in _fields_beside(runtime[:2], root):
        return ".".join(runtime)
    return ".".join([*location[:-1], nearest(location[-1], list(_fields_beside(location, root)))])


def _form(item: dict[str, Any], location: list[str], root: type[Section]) -> str:
    """What a text must look like, in the words of its option."""
    fields = _fields_beside(location, root)
    if item["type"] != "string_pattern_mismatch" or location[-1] not in fields:
        return ""
    return f" ({fields[location[-1]].description})"


def shown(value: object) -> str:
    """A value as Python writes it: short, and without a password in an address."""
    return textwrap.shorten(redact(repr(value)), width=80, placeholder="...")


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section class that a field holds, also within ``Section | None`` or a mapping; None for a plain value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _fields_beside(location: list[str], root: type[Section]) -> dict[str, FieldInfo]:
    """The fields of the section in which a place lies, by their keys in YAML."""
    section = root
    for part in location[:-1]:
        inner = _fields(section).get(part)  # None for the free key of a mapping, `tune.space.KEY`
        section = section if inner is None else section_of(inner) or section
    return _fields(section)


def _fields(section: type[Section]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}
