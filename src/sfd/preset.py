"""Presets: ready params files. A complete one stands for itself; an overlay names a ``base`` and only the keys that differ from it.

The comments at the top are paragraphs that begin with a topic and a colon, such as ``# Disk: ...``. An overlay has the paragraphs of its
base, too, but those about a topic of its own.

``sfd/presets`` is a link to the repository's ``presets``, and in an installed package a folder of its own.
"""

import difflib
import functools
import io
import re
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from sfd.errors import UserError
from sfd.params import Params, parse_params
from sfd.params.yaml import merge, parse_yaml, round_trip

FOLDER = Path(__file__).parent / "presets"
_TOPIC = re.compile(r"# (Preset(?= [\w-]+: )|[A-Z][\w ]*(?=: ))")


def names() -> list[str]:
    """All presets, in order of name."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def list_presets() -> str:
    """One line per preset: its name and its title, the first line of its comments."""
    width = max(map(len, names()))
    titles = {name: _text(name).splitlines()[0] for name in names()}
    return "\n".join(
        f"{name:<{width}}  {title.removeprefix(f'# Preset {name}: ').rstrip('.')}" for name, title in titles.items()
    )


def load_preset(name: str) -> Params:
    """The parameters of a preset. Raises :class:`UserError` if there is none of that name, or it breaks a rule."""
    return _parse(_complete(name), f"preset {name}")


@functools.cache
def _parse(text: str, origin: str) -> Params:
    return parse_params(parse_yaml(text, origin), origin)


def base_of(name: str) -> str | None:
    """The preset that an overlay changes; None for a complete one. Raises :class:`UserError` if there is none of that name."""
    base = re.search(r"^base: (.+)$", _text(name), re.MULTILINE)
    return None if base is None else base[1]


def render(name: str) -> str:
    """The text of a complete params.yaml: a complete preset as it stands, an overlay put into its base, with the comments of both.

    Raises:
        UserError: there is no preset of that name, or it breaks a rule.
    """
    load_preset(name)
    return _complete(name)


def document(text: str) -> CommentedMap:
    """The tree of a params file with its comments, which :func:`as_text` writes."""
    tree: CommentedMap = round_trip(text).load(text)
    return tree


def as_text(tree: CommentedMap, comments: str) -> str:
    """A params file: ``comments`` at its top in place of those of the tree, and an empty line before each section."""
    stream = io.StringIO()
    round_trip().dump(tree, stream)
    body = stream.getvalue().removeprefix(top_comments(stream.getvalue()))
    return comments + re.sub(r"\n+((?:#.*\n)*\w)", r"\n\n\1", body)


def top_comments(text: str) -> str:
    """The lines of comment at the top."""
    return "".join(re.findall(r"\A(?:#.*\n)+", text))


def _file(name: str) -> Path:
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=3, cutoff=0.0)
        raise UserError(f"there is no preset `{name}`; nearest: {', '.join(nearest)} (all: `sfd preset list`)")
    return FOLDER / f"{name}.yaml"


def _text(name: str) -> str:
    return _file(name).read_text(encoding="utf-8")


def _complete(name: str) -> str:
    """The text of a preset with all keys, those of its base included; unchecked."""
    text, base = _text(name), base_of(name)
    return text if base is None else _overlay(_complete(base), text)


@functools.cache
def _overlay(below: str, text: str) -> str:
    """A base with what an overlay changes."""
    changes, tree = document(text), document(below)
    del changes["base"]
    merge(tree, changes)
    return as_text(tree, _inherit(top_comments(text), top_comments(below)))


def _inherit(comments: str, base: str) -> str:
    """An overlay's paragraphs of comment, and those of its base about other topics."""
    own = _paragraphs(comments)
    return comments + "".join(text for topic, text in _paragraphs(base).items() if topic not in own)


def _paragraphs(comments: str) -> dict[str, str]:
    """Topic to paragraph; a line without a topic belongs to the paragraph before it, and one about the file's keys to none."""
    found: dict[str, str] = {}
    topic = ""
    for line in comments.splitlines(keepends=True):
        start = _TOPIC.match(line)
        topic = start[1] if start else "keys" if line.startswith("# `sfd params") else topic
        found[topic] = found.get(topic, "") + line
    return found
