"""Params files as text: read exactly as DVC reads them, and written so that YAML 1.1 and 1.2 read the same.

DVC reads YAML 1.2, many editors and libraries read YAML 1.1, and some plain scalars mean different things in the two: ``010`` is 10 or 8,
``yes`` is a word or true, ``1:30`` is text or 90. Such a scalar is refused.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.error import YAMLError
from ruamel.yaml.util import load_yaml_guess_indent

from sfd.errors import UserError

_TAG = "tag:yaml.org,2002:"


def read_tree(path: Path) -> Any:
    """The content of a params file, unchecked.

    Raises:
        UserError: the file cannot be read or is not YAML, a key stands twice, or a value means two things.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run in the project's folder, or make a project with `sfd init DIR`"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the path of a params file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}; save it as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str, accept_ambiguous: bool = False) -> Any:
    """The content of YAML text as DVC reads it.

    Args:
        text: one YAML document.
        origin: where the text comes from, named in errors.
        accept_ambiguous: read what means two things as YAML 1.2 does, instead of refusing it: for files that other programs wrote.

    Raises:
        UserError: the text is not YAML, a key stands twice, or a value means two things.
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        root = yaml.compose(text)
        if root is None:
            return None
        if not accept_ambiguous:
            _check_node(root, "", origin, set())
        return yaml.constructor.construct_document(root)
    except (YAMLError, ValueError) as error:
        raise UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def _check_node(node: Node, key: str, origin: str, seen: set[int]) -> None:
    """Raises :class:`UserError` for a key that stands twice or a scalar that means two things, at or below ``node``."""
    if id(node) in seen:  # an alias of something that was checked
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        _check_scalar(node, key, origin)
    elif isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            _check_node(item, f"{key}.{number}".lstrip("."), origin, seen)
    elif isinstance(node, MappingNode):
        keys: set[str] = set()
        for name, value in node.value:
            inner = f"{key}.{name.value}".lstrip(".") if isinstance(name, ScalarNode) else key
            _check_node(name, inner, origin, seen)
            if isinstance(name, ScalarNode) and name.value in keys:
                raise UserError(
                    f"{origin}, line {_line(name)}: key `{name.value}` stands twice (`{inner}`); remove one of them"
                )
            keys |= {name.value} if isinstance(name, ScalarNode) else set()
            _check_node(value, inner, origin, seen)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _check_scalar(node: ScalarNode, key: str, origin: str) -> None:
    if node.style is not None or not means_two_things(node.value):
        return
    meant, other = (reading(node.value, version) for version in ((1, 2), (1, 1)))
    raise UserError(
        f"{origin}, line {_line(node)}: `{key}` is written {node.value}, which is {as_yaml(meant)} for DVC (YAML 1.2) but {as_yaml(other)} "
        f"in YAML 1.1: write {as_yaml(meant)}, or {as_yaml(other)} if that is meant"
    )


def reading(text: str, version: tuple[int, int]) -> Any:
    """The value of a plain scalar in one version of YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.load(text)


def means_two_things(text: str) -> bool:
    """Whether a plain scalar has another value, or another type, in YAML 1.1 than in YAML 1.2."""
    tags = {str(resolver.resolve(ScalarNode, text, (True, False))) for resolver in _RESOLVERS}
    if len(tags) == 1 and not tags & {f"{_TAG}int", f"{_TAG}float"}:
        return False
    if _PLAIN_NUMBER.fullmatch(text):
        return False
    first, second = (reading(text, version) for version in ((1, 2), (1, 1)))
    return type(first) is not type(second) or repr(first) != repr(second)


_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
"""Numbers that both versions read alike, which need no second look. (The letter of YAML 1.1 wants a point in 1e-4.)"""


def _versioned_resolver(version: tuple[int, int]) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.resolver


_RESOLVERS = [_versioned_resolver(version) for version in ((1, 2), (1, 1))]


def as_yaml(value: object) -> str:
    """A scalar or a list as it can be written in a params file on one line."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return _plain_float(value)
    if isinstance(value, str) and means_two_things(value):
        return f"'{value}'"
    return str(value)


def _plain_float(value: float) -> str:
    """3.0e-07 rather than 3e-07, which older readers take for text."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def round_trip(text: str = "") -> YAML:
    """A reader and writer that keeps comments, order, quotes, and the indentation of ``text``."""
    _, sequence, offset = load_yaml_guess_indent(text) if text else (None, None, None)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1_000_000
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=sequence or 2, offset=offset or 0)
    represent = yaml.representer.add_representer
    represent(type(None), lambda writer, _: writer.represent_scalar(f"{_TAG}null", "null"))
    represent(float, lambda writer, value: writer.represent_scalar(f"{_TAG}float", _plain_float(value)))
    represent(str, _represent_text)
    return yaml


def _represent_text(writer: Any, value: str) -> Any:
    return writer.represent_scalar(f"{_TAG}str", value, style="'" if value and means_two_things(value) else None)


def dump_tree(tree: object) -> str:
    """Mappings, lists and scalars as YAML, in their order."""
    stream = io.StringIO()
    round_trip().dump(tree, stream)
    return stream.getvalue()


_OPEN = ("gates", "space")
"""Mappings whose keys are the user's, so that ``None`` takes one away."""


def merge(tree: dict[str, Any], changes: Mapping[str, Any], is_open: bool = False) -> None:
    """Puts ``changes`` into a tree of parameters, in place, so that comments stay: mappings are merged, and other values replaced.

    ``None`` in place of a mapping means no such section, gate, or key of the study. Lists of mappings are merged place by place, and the
    result is as long as the new one.
    """
    for key, value in changes.items():
        old = tree.get(key)
        if is_open and value is None:
            tree.pop(key, None)
        elif isinstance(old, dict) and isinstance(value, Mapping):
            merge(old, value, key in _OPEN)
        elif isinstance(old, list) and _holds_mappings(old) and _holds_mappings(value):
            del old[len(value) :]
            for mine, theirs in zip(old, value, strict=False):
                merge(mine, theirs)
            old.extend(value[len(old) :])
        else:
            tree[key] = value


def _holds_mappings(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, Mapping) for each in value)
