"""The grid of a sweep: keys of section ``sample`` with the values that the command line gives them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfd.errors import UserError
from sfd.params import Params, as_yaml, parse_yaml, with_values

FORM = "KEY=VALUE,VALUE,... (KEY+KEY=... for keys that have the value in common)"
EXAMPLE = "sample.guidance.scale_texture=1.0,1.25,1.5"
NOT_SWEPT = {
    "sample.num_images": "all settings draw equally many images: give their number with --images",
    "sample.class_mix": "it changes what samples are compared with, as well",
    "sample.step": "a sweep draws from one model; `sfd evaluate-steps` compares steps",
    "sample.ema_decay": "a sweep draws from one model; `sfd evaluate-steps` compares averages",
}
"""Keys of `sample` that a sweep leaves alone, and why."""


@dataclass(frozen=True)
class Axis:
    """Keys that have one value in common, and its values in the order in which they were given."""

    keys: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The last parts of the keys."""
        return " + ".join(key.rpartition(".")[2] for key in self.keys)

    @property
    def labels(self) -> list[str]:
        """The values as they stand in a params file."""
        return [as_yaml(value) for value in self.values]


@dataclass(frozen=True)
class Setting:
    """One point of the grid. ``values``: by dotted key; ``place``: its number on every axis; ``params``: with these values."""

    values: dict[str, Any]
    place: tuple[int, ...]
    params: Params


@dataclass(frozen=True)
class Grid:
    """All settings that the rules between options allow, and a line for each one that they do not allow."""

    axes: tuple[Axis, ...]
    settings: list[Setting]
    left_out: list[str]


def make_grid(params: Params, texts: Sequence[str]) -> Grid:
    """The grid of all combinations.

    Args:
        texts: one axis each, of the form :data:`FORM`.

    Raises:
        UserError: a text has another form; a key stands twice, or is none that a sweep can change; or a value is in no valid setting.
    """
    axes = tuple(_parse(text) for text in texts)
    keys = [key for axis in axes for key in axis.keys]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"`{key}` stands twice in the grid: remove one of them")
        _check_key(key)
    settings: list[Setting] = []
    refused: dict[tuple[int, ...], str] = {}
    for place in itertools.product(*(range(len(axis.values)) for axis in axes)):
        values = {key: axis.values[n] for axis, n in zip(axes, place, strict=True) for key in axis.keys}
        try:
            settings.append(Setting(values, place, with_values(params, values)))
        except UserError as error:
            refused[place] = str(error)
    for number, axis in enumerate(axes):
        for n in range(len(axis.values)):
            if not any(setting.place[number] == n for setting in settings):
                raise UserError(next(reason for place, reason in refused.items() if place[number] == n))
    return Grid(axes, settings, list(refused.values()))


def _parse(text: str) -> Axis:
    names, equals, listed = text.partition("=")
    keys = tuple(names.split("+"))
    values = parse_yaml(f"[{listed}]", names) if equals and listed else []
    if not all(keys) or not values:
        raise UserError(f"{text!r} is no axis of a grid: write {FORM}, for instance {EXAMPLE}")
    if len({as_yaml(value) for value in values}) < len(values):
        raise UserError(f"{text!r} names a value twice: remove one of them")
    return Axis(keys, tuple(values))


def _check_key(key: str) -> None:
    if not key.startswith("sample."):
        raise UserError(
            f"`{key}` cannot be swept, because a sweep trains nothing: give keys of section `sample`, for instance {EXAMPLE}; "
            "`sfd tune` with tune.kind `training` searches `schedule` and `diffusion`"
        )
    if key in NOT_SWEPT:
        raise UserError(f"`{key}` cannot be swept: {NOT_SWEPT[key]}")
