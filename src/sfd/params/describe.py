"""The table of all options."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from sfd.params.mistakes import section_of
from sfd.params.networks import TrainingParams
from sfd.params.runtime import TrainingRuntime
from sfd.params.schedule import TauRange
from sfd.params.schema import Params
from sfd.params.types import OneOf, Section
from sfd.params.yaml import as_yaml

SHARED: tuple[type[Section], ...] = (TrainingParams, TrainingRuntime)
"""Sections that all trained networks have; of those that add options of their own, these alone are described with the network."""


def describe_params() -> str:
    """All options as Markdown, one table per section: key, type and limits, default, meaning. What all trainings have is described once."""
    networks = [f"`{_key(name, field)}`" for name, field in Params.model_fields.items() if _is_trained(field)]
    described: dict[type[Section], str] = {TauRange: "", TrainingParams: "", TrainingRuntime: ""}
    plain = [_row(name, field, described) for name, field in Params.model_fields.items() if section_of(field) is None]
    parts = [
        "# Options",
        "The keys of `params.yaml`. `KEY` stands for any key of a mapping, `N` for a place in a list, which begins with 0.",
        _table(plain),
    ]
    for name, field in Params.model_fields.items():
        section = section_of(field)
        if section is not None:
            parts += _describe_section(section, _key(field.alias or name, field), described)
    parts += _describe_section(TrainingRuntime, "runtime.NETWORK", described)
    parts += _describe_section(TrainingParams, "NETWORK.training", described)
    parts.append(
        f"`NETWORK` is one of {', '.join(networks)}. In `runtime`, `judge` stands for all judges. A network that is not trained here "
        "has `training: null`."
    )
    return "\n\n".join(parts)


def _key(name: str, field: FieldInfo) -> str:
    """The key of a section, or of each section in a list."""
    return f"{name}.N" if get_origin(field.annotation) is tuple else name


def _is_trained(field: FieldInfo) -> bool:
    section = section_of(field)
    return section is not None and "training" in section.model_fields


def _describe_section(section: type[Section], key: str, described: dict[type[Section], str]) -> list[str]:
    """Heading, summary, table, and the descriptions of inner sections.

    A section that is used twice is described where it first occurs (``described``: class to place, extended here).
    """
    described[section] = key
    summary = (section.__doc__ or "").splitlines()[0].replace("``", "`")
    rows, notes = _rows(section, key, described)
    return [f"## {key}", summary, _table(rows), *notes]


def _rows(section: type[Section], key: str, described: dict[type[Section], str]) -> tuple[list[str], list[str]]:
    """One row per key at or below a section, and one note per inner section that has a description."""
    rows, notes = [], []
    for name, field in section.model_fields.items():
        place, inner = f"{key}.{name}", section_of(field)
        if inner in SHARED or any(name in base.model_fields for base in SHARED if base in section.__mro__[1:]):
            continue
        if inner is None or (inner in described and type(None) in get_args(field.annotation)):
            rows.append(_row(place, field, described))
            continue
        described[inner] = place
        is_mapping = get_origin(field.annotation) is dict
        more = _rows(inner, f"{place}.KEY" if is_mapping else place, described)
        rows += more[0]
        notes += [f"`{place}`: {field.description}.", *more[1]] if field.description else more[1]
    return rows, notes


def _table(rows: list[str]) -> str:
    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows])


def _row(key: str, field: FieldInfo, described: dict[type[Section], str]) -> str:
    inner = section_of(field)
    kind = f"the keys of `{described[inner]}`, or null" if inner and described[inner] else _type_text(field)
    default = "required" if field.is_required() else f"`{as_yaml(field.get_default())}`"
    return f"| `{key}` | {kind} | {default} | {_meaning(field)} |"


def _one_of(field: FieldInfo) -> OneOf | None:
    return next((rule for rule in field.metadata if isinstance(rule, OneOf)), None)


def _meaning(field: FieldInfo) -> str:
    """The field's description, and that of every name it may hold."""
    names = _one_of(field)
    if names is None:
        return str(field.description)
    return f"{field.description}. " + "; ".join(f"`{name}`: {text}" for name, text in names.descriptions().items())


def _type_text(field: FieldInfo) -> str:
    names = _one_of(field)
    if names is not None:
        return " or ".join(f"`{name}`" for name in names.descriptions())
    limits = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, attr):g}"
        for rule in field.metadata
        for attr, sign in limits.items()
        if hasattr(rule, attr)
    ]
    return ", ".join([_kind_text(field.annotation), *bounds])


def _kind_text(kind: Any) -> str:
    """A type in the words of YAML: `a` or `b`, float or null, list of int."""
    if get_origin(kind) is Literal:
        return " or ".join(f"`{option}`" for option in get_args(kind))
    if get_origin(kind) is Annotated:
        return _type_text(FieldInfo.from_annotation(kind))
    if get_origin(kind) is tuple:
        return f"list of {_kind_text(get_args(kind)[0]).split(',')[0]}"
    if get_args(kind):
        return " or ".join(_kind_text(option) for option in get_args(kind))
    return {type(None): "null", TauRange: "{low, high}", Path: "path"}.get(kind, getattr(kind, "__name__", str(kind)))
