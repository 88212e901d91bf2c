"""Presets: ready params files. Two are complete; the others are overlays, which name a ``base`` and only the keys that differ from it.

``sfd/presets`` is a link to the repository's ``presets``, and in an installed package a folder of its own.
"""

import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from sfd.errors import UserError
from sfd.params import Params, dump_params, parse_params, read_tree

FOLDER = Path(__file__).parent / "presets"


def names() -> list[str]:
    """All presets, in order of name."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def list_presets() -> str:
    """One line per preset: its name and its title, the first line of its comments."""
    width = max(map(len, names()))
    titles = {name: _comments(_text(name)).splitlines()[0] for name in names()}
    return "\n".join(
        f"{name:<{width}}  {title.removeprefix(f'# Preset {name}: ').rstrip('.')}" for name, title in titles.items()
    )


def load_preset(name: str) -> Params:
    """The parameters of a preset. Raises :class:`UserError` if there is none of that name, or it breaks a rule."""
    return parse_params(_tree(name), f"preset {name}")


def render(name: str) -> str:
    """The text of a complete params.yaml: a complete preset as it stands, an overlay's comments above all of its values.

    Raises:
        UserError: there is no preset of that name, or it breaks a rule.
    """
    params, text = load_preset(name), _text(name)
    if "base" not in read_tree(_file(name)):
        return text
    body = re.sub(r"\n(?=\w)", "\n\n", dump_params(params))
    return f"{_comments(text)}# `sfd params --describe` explains every key.\n{body}"


def use(name: str, file: Path, force: bool) -> str:
    """Writes a preset to ``file``, in one rename; says what was done.

    Raises:
        UserError: ``file`` is no unchanged preset, and ``force`` is not given; or it cannot be written.
    """
    text, kept = render(name), ""
    try:
        if file.exists():
            found = file.read_bytes()
            if found == text.encode():
                return f"{file} is preset {name} already"
            if not any(found == render(other).encode() for other in names()):
                if not force:
                    raise UserError(
                        f"{file} is no unchanged preset, so it may hold your own work; give --force to replace it, which keeps the old one "
                        "beside it"
                    )
                kept = f"; the old one is {_keep(file)}"
        _replace(file.resolve(), text)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}; make it a file in a folder that you may write to"
        ) from None
    return f"{file} is now preset {name}{kept}"


def _keep(file: Path) -> Path:
    """A second name for the file, one that nothing has yet."""
    number = 1
    while True:
        kept = file.with_name(f"{file.name}.old-{number}")
        try:
            os.link(file.resolve(), kept)
        except FileExistsError:
            number += 1
        else:
            return kept


def _replace(file: Path, text: str) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        fresh = Path(folder) / file.name
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, file)


def _file(name: str) -> Path:
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=3, cutoff=0.0)
        raise UserError(f"there is no preset `{name}`; nearest: {', '.join(nearest)} (all: `sfd preset list`)")
    return FOLDER / f"{name}.yaml"


def _text(name: str) -> str:
    return _file(name).read_text(encoding="utf-8")


def _comments(text: str) -> str:
    """The lines of comment at the top."""
    return "".join(re.findall(r"\A(?:#.*\n)+", text))


def _tree(name: str) -> dict[str, Any]:
    """All keys of a preset, those of its base included; unchecked."""
    tree: dict[str, Any] = read_tree(_file(name))
    base = tree.pop("base", None)
    return tree if base is None else _overlay(_tree(base), tree)


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` on top of ``base``: mappings are merged, other values replaced, and ``null`` takes a whole mapping away."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and value is None:
            del merged[key]
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _overlay(old, value)
        else:
            merged[key] = value
    return merged
