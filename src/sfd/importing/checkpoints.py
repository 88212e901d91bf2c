"""Reads published files safely: only tensors and plain values are unpickled; a file with other objects is refused, and they are named."""

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfd.errors import UserError

SHOWN = 5
"""Keys that a message lists; the others are counted."""

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Parts of keys that stand for a wrapper: of DistributedDataParallel and AveragedModel, torch.compile, FSDP, activation checkpoints, Fabric."""

COUNTER = "n_averaged"
"""Beside the weights of torch's AveragedModel: how many were averaged."""

SEFI = "dual_time_embed.semantic_embedder.linear_1.weight"
"""A key that the weights of SeFi-Image have and those of other diffusion models do not."""

TELLTALES = {
    "diffusion": ("x_embedder.proj.weight", SEFI),
    "semantic-vae": ("encoder.1.attn.in_proj_weight",),
    "texture-vae": ("encoder.conv_in.weight",),
}
"""Keys one of which the weights of a kind have and those of other kinds do not."""


@dataclass
class Weights:
    """The parameters found in a file, by their published names. ``unused``: descriptions of what else the file holds."""

    source: Path
    state: dict[str, Tensor]
    unused: list[str] = field(default_factory=list)


def read_checkpoint(source: Path) -> Any:
    """The content of a torch or safetensors file. Tensors stay on disk until they are used, where the format allows it.

    Raises:
        UserError: the file is missing, empty, cut off, of another format, or holds objects other than tensors and plain values.
    """
    if not source.is_file():
        raise UserError(f"{source} is {'a folder' if source.is_dir() else 'missing'}; give the published file itself")
    if source.stat().st_size == 0:
        raise UserError(f"{source} is empty; download it again")
    with source.open("rb") as stream:
        start = stream.read(64)
    if source.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return load_file(source)
        except SafetensorError as error:
            remedy = "call it .pt, for it is a torch file" if start.startswith(b"PK") else "download it again"
            raise UserError(f"{source} is no whole safetensors file ({error}); {remedy}") from error
    is_zip = start.startswith(b"PK\x03\x04")
    if is_zip and not zipfile.is_zipfile(source):
        raise UserError(
            f"{source} begins as a torch file, but its end is missing after {source.stat().st_size:,} bytes: "
            "the download was cut off; download it again"
        )
    if not is_zip and not start.startswith(b"\x80"):
        raise UserError(
            f"{source} is no torch file, it begins with {start[:24]!r}; give the published .pt or .ckpt file"
        )
    try:
        # Files of torch before 1.6 are one pickle, which cannot be mapped.
        return torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # what a damaged pickle raises has no end
        names = _foreign_objects(source, is_zip, error)
        if names:
            raise UserError(
                f"{source} holds the objects {_list(names)}, and unpickling such objects can run any code, so it is not read; if you "
                'trust the file, save its weights alone: torch.save({"ema": torch.load(FILE, weights_only=False)["ema"]}, NEW_FILE), '
                'or "state_dict" for "ema"'
            ) from error
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:160]
        raise UserError(f"{source} cannot be read as a torch file ({reason}); download it again") from error


def _foreign_objects(source: Path, is_zip: bool, error: Exception) -> list[str]:
    """Names of objects in a file that are neither tensors nor plain values; of an old file only the first one, which torch names."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    if is_zip:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(source)))
    return re.findall(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE)


def pick_weights(
    source: Path, content: Any, kind: str, keys: tuple[str, ...], drop: tuple[str, ...], known: tuple[str, ...] = ()
) -> Weights:
    """The parameters of a checkpoint, without the prefixes of wrappers and without the keys to drop.

    Args:
        kind: one of :data:`TELLTALES`.
        keys: where the parameters may lie in the file, the preferred one first; else the file itself is a state dict.
        drop: prefixes of keys that the user wants to drop.
        known: prefixes of keys that files of this kind may have and nobody needs.

    Raises:
        UserError: the file holds another kind, or no parameters under a known key; something among them is no float tensor; or a
            beginning in ``drop`` fits no key.
    """
    _check_kind(source, content, kind)
    first = next((key for key in keys if isinstance(content, Mapping) and content.get(key) is not None), None)
    if first is not None and not isinstance(content[first], Mapping):
        raise UserError(
            f"{source} holds under {first} no weights by name, but {type(content[first]).__name__}; save them as a dict of tensors"
        )
    key = next((key for key in keys if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)), None)
    if key is None and not _is_state(content):
        found = list(content) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{source} holds {_list(found)}, but a {kind} file holds its weights under {' or '.join(keys)}")
    state, unused = _unwrap(source, content if key is None else content[key])
    if key is not None and len(content) > 1:
        unused.insert(0, "beside the weights: " + _list([name for name in content if name != key]))
    for beginning in (*known, *drop):
        kept = {name: value for name, value in state.items() if not name.startswith(beginning)}
        if len(kept) < len(state):
            unused.append(f"{len(state) - len(kept)} keys {beginning}*")
        elif beginning in drop:
            raise UserError(f"no key of {source} begins with {beginning}, as --drop says; keys are {_list(state)}")
        state = kept
    _check_tensors(source, state)
    return Weights(source, _separate(state), unused)


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _bare(key: str) -> str:
    """A key without wrappers, wherever they stand in it."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _unwrap(source: Path, state: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Removes wrappers from the keys, and what AveragedModel counts; also says what was removed."""
    counted = COUNTER in state and any(str(key).startswith("module.") for key in state)
    wrapped = [str(key) for key in state if not (counted and key == COUNTER)]
    keys = [_bare(key) for key in wrapped]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise UserError(f"{source} holds weights twice, with the prefixes of wrappers and without: {_list(twice)}")
    removed = [f"{COUNTER}, the counter beside averaged weights"] if counted else []
    for wrapper in WRAPPERS:
        count = sum(wrapper in key.split(".") for key in wrapped)
        if count:
            removed.append(f"the prefix {wrapper}. of {'every key' if count == len(wrapped) else f'{count} keys'}")
    values = (value for key, value in state.items() if not (counted and key == COUNTER))
    return dict(zip(keys, values, strict=True)), removed


def _check_kind(source: Path, content: Any, kind: str) -> None:
    """Raises :class:`UserError` if the weights have the telltale of another kind."""
    if not isinstance(content, Mapping):
        return
    parts = [{_bare(str(key)) for key in part} for part in (content, *content.values()) if isinstance(part, Mapping)]
    looks = [other for other, keys in TELLTALES.items() if any(key in part for key in keys for part in parts)]
    if looks and kind not in looks:
        raise UserError(f"{source} looks like a {looks[0]}, not like a {kind}: give --kind {looks[0]}, or another file")


def _check_tensors(source: Path, state: Mapping[str, Any]) -> None:
    wrong = [key for key, value in state.items() if not (isinstance(value, Tensor) and value.is_floating_point())]
    if wrong:
        raise UserError(
            f"{source}: weights must be tensors of floating-point numbers, but these are not: {_list(wrong)}"
        )
    empty = [key for key, value in state.items() if value.is_meta]
    if empty:
        raise UserError(f"{source} holds shapes and no numbers (device meta) of {_list(empty)}; save the loaded model")


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts to float32 and gives each tensor its own memory, as safetensors requires. Tensors that have both are not copied."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        whole = value.untyped_storage().nbytes() == value.nbytes and value.is_contiguous()
        separate[key] = (
            value.float()
            if whole and value.data_ptr() not in seen
            else value.float().clone(memory_format=torch.contiguous_format)
        )
        seen.add(value.data_ptr())
    return separate


def load_strictly(network: nn.Module, weights: Weights, what: str) -> None:
    """Puts the weights into a network that was built on the meta device, without a copy of them.

    ``what`` says in an error what the network is.

    Raises:
        UserError: a key is missing, there is one too many, a shape differs, or a number is not finite; the keys are listed.
    """
    expected = {key: value.shape for key, value in network.state_dict().items()}
    state = weights.state
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    mistakes = {
        "missing": [key for key in expected if key not in state],
        "extra": [key for key in state if key not in expected],
        "misshapen": misshapen,
    }
    found = [f"{len(keys)} {name} ({_list(keys)})" for name, keys in mistakes.items() if keys]
    if found:
        raise UserError(
            f"{weights.source} does not fit {what}: {'; '.join(found)}; give the whole published file"
            + ("; drop keys that are known to be superfluous with --drop" if mistakes["extra"] else "")
        )
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{weights.source}: {len(broken)} weights hold NaN or infinity ({_list(broken)}); get another file"
        )
    network.load_state_dict(state, strict=True, assign=True)


def _list(names: Iterable[Any] | str) -> str:
    if isinstance(names, str):
        return names
    shown = [str(name) for name in names]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
