"""The shipped parameters with some keys changed, and what the parser says of them."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support import REPOSITORY

from sfd.errors import UserError
from sfd.params import parse_params

DIGITS: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text())


EYE = {"kind": "timm", "source": "package", "name": "eye", "model": "tf_efficientnet_lite1"}
BOTH: dict[str, Any] = {"judges": [DIGITS["judges"][0], EYE]}
"""The digits' judge, and another one."""
ENCODER = {"encoder.source": "package", "encoder.name": "tf_efficientnet_lite1", "encoder.training": None}
"""The encoder is that other one."""


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys; `N` is the place in a list of mappings."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            yield from dict.fromkeys(each for entry in value for each in leaves(entry, f"{prefix}{key}.N."))
        else:
            yield prefix + key


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The shipped parameters with some dotted keys set."""
    tree = copy.deepcopy(DIGITS)
    for key, value in changes.items():
        *sections, last = key.split(".")
        inner: Any = tree
        for section in sections:
            inner = inner[int(section) if isinstance(inner, list) else section]
        inner[last] = copy.deepcopy(value)  # which a later key may change
    return tree


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        parse_params(changed(changes))
    assert "\n" not in str(error.value)
    return str(error.value)
