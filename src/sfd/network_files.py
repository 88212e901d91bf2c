"""Frozen networks on disk: ``config.json`` beside ``model.safetensors``."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from sfd.errors import UserError

WEIGHTS = "model.safetensors"


def save_network(folder: Path, network: nn.Module, config: dict[str, Any]) -> None:
    """Writes the weights and what is needed to build the network again."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The saved configuration. Raises :class:`UserError` if the folder holds no network."""
    for file in (folder / "config.json", folder / WEIGHTS):
        if not file.is_file():
            raise UserError(
                f"{folder} holds no network: {file.name} is missing; rerun the stage that makes it, or correct the path"
            )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def load_weights(folder: Path, network: nn.Module) -> None:
    """Loads the weights strictly. Raises :class:`UserError` with the missing, extra and misshapen keys."""
    try:
        network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit its config.json: {' '.join(str(error).split())}") from error


def weights_digest(folder: Path) -> str:
    """sha256 of the weights file."""
    with (folder / WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
