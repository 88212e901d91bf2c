"""Writes values into a params file, and keeps its comments, its order and the format of its other values."""

import difflib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from sfd.errors import UserError
from sfd.params import load_params, parse_params, parse_yaml
from sfd.params.yaml import round_trip
from sfd.text_file import replace_text


def apply_values(file: Path, values: Mapping[str, object]) -> str:
    """Writes values under dotted keys into a params file; returns the change as a unified diff. A number in a key is a list index.

    A section that is ``null``, such as ``sample.schedule``, becomes a mapping. The file is replaced in one rename and keeps its
    permissions. The diff is empty if nothing changes.

    Raises:
        UserError: the file is not a valid params file, lacks a key, would not be valid with the new values, or cannot be written.
    """
    load_params(file)
    old = file.read_text(encoding="utf-8")
    yaml = round_trip(old)
    tree = yaml.load(old)
    for key, value in values.items():
        _set(tree, key, value, file)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    new = stream.getvalue()
    try:
        if parse_params(parse_yaml(new, str(file)), str(file)) == load_params(file):
            return ""
    except UserError as error:
        raise UserError(f"{error}; the file is left as it was") from None
    try:
        replace_text(file.resolve(), new)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}; make its folder writable, or change the file by hand"
        ) from None
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), str(file), str(file), lineterm="")
    return "\n".join(lines) + "\n"


def _set(tree: Any, key: str, value: object, file: Path) -> None:
    *way, last = key.split(".")
    node = tree
    for name in way:
        if isinstance(node, CommentedMap) and name in node and node[name] is None:
            node[name] = CommentedMap()
            node[name].fa.set_flow_style()  # on the same line as the null, so that a comment there keeps its place
        if not isinstance(node, CommentedMap) or name not in node:
            raise UserError(f"{file} has no key `{key}`; add it there, then apply again")
        node = node[name]
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, CommentedMap) and (last in node or node.fa.flow_style()):
        node[last] = value
    else:
        raise UserError(f"{file} has no key `{key}`; add it there, then apply again")
