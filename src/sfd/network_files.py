"""Frozen networks on disk: ``config.json`` beside ``model.safetensors``."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.names import Table, load

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROVENANCE = ("name", "weights")
"""Keys of a configuration that say where weights come from, and not what the network computes."""
POSITIONS = "pos_embed"
"""The last part of the name of a transformer's table of positions. timm computes it for the size of the input, and machines round differently."""


def save_network(folder: Path, network: nn.Module, config: dict[str, Any]) -> None:
    """Writes the weights, and the configuration from which the network can be built again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, network.state_dict())
    write_config(folder, config)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, with the permissions of any new file."""
    with with_default_mode(file):
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)


@contextmanager
def with_default_mode(file: Path) -> Iterator[None]:
    """What the block writes as ``file`` gets the permissions that the umask gives. safetensors 0.8 itself gives 0600, whatever the umask.

    After an error nothing is left: half of a file would keep a full disk full.
    """
    file.unlink(missing_ok=True)
    file.touch()
    mode = file.stat().st_mode
    try:
        yield
    except BaseException:
        file.unlink()
        raise
    file.chmod(mode)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes ``config.json`` alone, for a network whose weights have another format."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class NetworkConfig(dict[str, Any]):
    """A saved configuration, read from ``file``. A key that it lacks is a :class:`UserError`."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.file = file

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.file} lacks {key!r}; rerun the stage that makes it, or name a folder that sfd wrote")


def read_config(folder: Path) -> NetworkConfig:
    """The saved configuration. Raises :class:`UserError` if the file is missing or holds no JSON object."""
    file = _existing(folder, CONFIG)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no JSON object; rerun the stage that makes it, or correct the path")
    return NetworkConfig(file, config)


def read_implementation(folder: Path, table: Table) -> Any:
    """The table's implementation of the ``kind`` in the saved configuration. Raises :class:`UserError` if the table has no such kind."""
    kind = read_config(folder).get("kind")
    if kind not in table:
        raise UserError(
            f"{folder / CONFIG}: kind is {kind!r}, but must be one of {', '.join(table)}; rerun the stage that makes it"
        )
    return load(table, kind)


def load_weights(folder: Path, network: nn.Module) -> None:
    """Loads the weights strictly.

    Raises:
        UserError: the file is missing, or keys are missing, extra or of another shape; the message lists all of them.
    """
    file = _existing(folder, WEIGHTS)
    try:
        network.load_state_dict(load_file(file), strict=True)
    except RuntimeError as error:
        raise UserError(f"{file} does not fit its {CONFIG}: {' '.join(str(error).split())}") from error


def weights_digest(folder: Path) -> str:
    """sha256 of the weights file. Raises :class:`UserError` if it is missing."""
    return file_digest(_existing(folder, WEIGHTS))


def network_digest(folder: Path) -> str:
    """sha256 of what a network computes: its configuration, and its weights by name, type, shape and bytes.

    Where weights come from does not count, nor how their file was written, nor a table of positions (the size that it is computed for does). Of an
    autoencoder of diffusers the weights alone count: its configuration says what version wrote it, and their names and shapes say the rest.

    Raises:
        UserError: the folder holds no configuration or no weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} holds no network: there is no *.safetensors; rerun the stage that makes it, or correct the path"
        )
    config = read_config(folder)
    facts = {} if "_class_name" in config else {key: config[key] for key in config if key not in PROVENANCE}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in sorted(name for name in stored.keys() if name.rpartition(".")[2] != POSITIONS):
                value: Tensor = stored.get_tensor(name)
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(
            f"{folder} holds no network: {name} is missing; rerun the stage that makes it, or correct the path"
        )
    return folder / name


def link(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes any more; a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
