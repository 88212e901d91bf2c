"""Params files to :class:`Params` and back, and changes of single keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfd.errors import UserError
from sfd.params.mistakes import SHOWN_MISTAKES, describe_mistakes
from sfd.params.rules import check_rules
from sfd.params.schema import Params
from sfd.params.yaml import dump_tree, read_tree


def load_params(path: Path) -> Params:
    """Reads and checks a params file.

    Raises:
        UserError: the file cannot be read or is not YAML, a key is unknown or missing, or a value breaks its rule.
    """
    return parse_params(read_tree(path), str(path))


def parse_params(raw: object, origin: str = "params") -> Params:
    """Checks an already parsed mapping; ``origin`` is named in errors. Raises :class:`UserError` as :func:`load_params` does."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin} must be a mapping of sections, but is {type(raw).__name__}")
    if "base" in raw:
        raise UserError(
            f"{origin} holds only what differs from preset `{raw['base']}`; write the whole with `sfd preset use NAME`"
        )
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        mistakes = [f"{origin}: {text}" for text in describe_mistakes(error, Params)]
        more = [f"and {len(mistakes) - SHOWN_MISTAKES} more"] if len(mistakes) > SHOWN_MISTAKES else []
        raise UserError("; ".join(mistakes[:SHOWN_MISTAKES] + more)) from None
    try:
        check_rules(params)
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from None
    return params


def to_tree(params: Params) -> dict[str, Any]:
    """The parameters as mappings, lists and scalars, under the keys of params.yaml."""
    return params.model_dump(mode="json", by_alias=True)


def dump_params(params: Params) -> str:
    """The resolved configuration as YAML, in the order of declaration."""
    return dump_tree(to_tree(params))


def select(tree: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in nested mappings and lists; None if a section on its way is null."""
    node: Any = tree
    for part in key.split("."):
        node = None if node is None else node[int(part)] if isinstance(node, list) else node[part]
    return node


def current_value(params: Params, key: str) -> Any:
    """The value of a dotted key; None if a section on its way is null."""
    return select(to_tree(params), key)


def with_values(params: Params, values: Mapping[str, Any]) -> Params:
    """The parameters with dotted keys replaced. A null section on a key's way becomes one with defaults.

    Raises:
        UserError: a key does not exist, or the values break a rule.
    """
    tree = to_tree(params)
    for key, value in values.items():
        *way, last = key.split(".")
        node: Any = tree
        for name in way:
            if isinstance(node, dict) and node.get(name) is None:
                node[name] = {}  # an unknown name is found by the parser, which knows the nearest one
            node = node[name] if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = value
        elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
            node[int(last)] = value
        elif isinstance(node, list):
            raise UserError(f"`{key}` is not in params.yaml: the list has {len(node)} values, 0 to {len(node) - 1}")
        else:
            raise UserError(f"unknown key `{key}`: `{'.'.join(way)}` is one value, not a section")
    return parse_params(tree, ", ".join(f"{key} = {value}" for key, value in values.items()))
