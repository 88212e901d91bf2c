"""What a folder of SeFi-Image (arXiv 2606.22568) holds: the weights of its transformer, maybe in several files, and facts beside them.

The layout is that of its public code (github.com/jmliu206/SeFi-Image): ``transformer/diffusion_pytorch_model*.safetensors``, with an index if
there are several; ``sefi_config.yaml``; ``vae/`` with the statistics that normalise texture.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sfd.data.latents import ChannelStatistics
from sfd.errors import UserError
from sfd.importing.checkpoints import read_checkpoint
from sfd.models.flux2_config import Flux2Config
from sfd.models.text_condition import TextCondition
from sfd.params import parse_yaml

TRANSFORMER, VAE, SETTINGS = "transformer", "vae", "sefi_config.yaml"
WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"
FIRST, TEXT = "backbone.x_embedder.weight", "backbone.context_embedder.weight"
HEAD = "backbone.transformer_blocks.0.attn.norm_q.weight"
NORM_EPSILON = 1e-4
"""Of the VAE's batch norm, where its ``config.json`` does not say it: the default of diffusers."""
PIXELS_PER_TOKEN = 16


@dataclass(frozen=True)
class SefiFacts:
    """What the weights cannot say.

    Attributes:
        semantic_channels: of the composite latent.
        tau: the offset, or the range of offsets, that it was trained with.
        max_tokens: tokens of a text, all of which it attends to.
        image_size: side of the images that it was trained on, pixels.
    """

    semantic_channels: int = 16
    tau: float | tuple[float, float] = 0.1
    max_tokens: int = 512
    image_size: int = 1024


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All weights of the transformer. ``folder``: of the whole model, or of the transformer.

    Raises:
        UserError: there are none, or a file that the index names is missing or broken.
    """
    inner = folder / TRANSFORMER if (folder / TRANSFORMER).is_dir() else folder
    if not (inner / INDEX).is_file():
        if not (inner / WHOLE).is_file():
            raise UserError(
                f"{folder} is a folder without {TRANSFORMER}/{WHOLE} or {INDEX}; give the published file itself, or a folder of SeFi-Image"
            )
        return dict(read_checkpoint(inner / WHOLE))
    state: dict[str, Tensor] = {}
    for name in _shards(inner / INDEX):
        state |= read_checkpoint(inner / name)
    return state


def _shards(index: Path) -> list[str]:
    """The files that an index names, which must lie beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} has no `weight_map` from weights to files; download it again") from None
    elsewhere = [name for name in names if Path(str(name)).name != name]
    if elsewhere or not names:
        raise UserError(f"{index} names {elsewhere or 'no files'}, but must name files beside it; download it again")
    return names


def root_of(source: Path) -> Path:
    """The folder of the whole model, for a source that is it, its transformer's folder, or the file in that."""
    inner = source if source.is_dir() else source.parent
    return inner.parent if inner.name == TRANSFORMER else inner


def read_facts(root: Path) -> SefiFacts:
    """Facts from ``sefi_config.yaml``, and the published ones where it or a key is missing. Raises :class:`UserError` for a file that is no YAML."""
    if not (root / SETTINGS).is_file():
        return SefiFacts()
    tree = parse_yaml((root / SETTINGS).read_text(encoding="utf-8"), str(root / SETTINGS), accept_ambiguous=True)
    usual = SefiFacts()
    low, high = (_value(tree, f"training.sefi.delta_t_{end}", usual.tau) for end in ("min", "max"))
    return SefiFacts(
        int(_value(tree, "model.semantic_channels", usual.semantic_channels)),
        float(high) if low == high else (float(low), float(high)),
        int(_value(tree, "model.text_encoder.max_length", usual.max_tokens)),
        int(_value(tree, "data.resolution", usual.image_size)),
    )


def _value(tree: Any, path: str, usual: Any) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return usual if tree is None else tree


def texture_statistics(root: Path) -> ChannelStatistics | None:
    """Mean and standard deviation of texture's channels, from the batch norm of the VAE beside the transformer; None if there is none."""
    file = root / VAE / WHOLE
    if not file.is_file():
        return None
    with safe_open(file, "pt") as stored:
        if not {"bn.running_mean", "bn.running_var"} <= set(stored.keys()):
            return None
        mean, variance = (stored.get_tensor(f"bn.running_{name}").float() for name in ("mean", "var"))
    settings = root / VAE / "config.json"
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return ChannelStatistics(mean, (variance + config.get("batch_norm_eps", NORM_EPSILON)).sqrt())


def config_from_weights(state: Mapping[str, Tensor], semantic_channels: int, facts: SefiFacts) -> Flux2Config:
    """The configuration that fits the weights. Tensors may be on the meta device.

    Raises:
        ValueError: a weight that a width is read from is missing, or widths contradict each other.
    """
    missing = [key for key in (FIRST, TEXT, HEAD) if key not in state]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    (width, channels), head = state[FIRST].shape, len(state[HEAD])
    if width % head:
        raise ValueError(f"the width {width} is not a multiple of the width of a head, {head}")
    return Flux2Config(
        input_size=facts.image_size // PIXELS_PER_TOKEN,
        in_channels=channels,
        num_heads=width // head,
        double_blocks=_count(state, "transformer_blocks"),
        single_blocks=_count(state, "single_transformer_blocks"),
        condition=TextCondition(state[TEXT].shape[1], facts.max_tokens),
        head_width=head,
        semantic_channels=semantic_channels,
        two_times=True,
    )


def _count(state: Mapping[str, Tensor], blocks: str) -> int:
    numbers = [int(match[1]) for key in state if (match := re.match(rf"backbone\.{blocks}\.(\d+)\.", key))]
    return 1 + max(numbers, default=-1)


def joined(parts: list[ChannelStatistics], semantic_channels: int, root: Path) -> tuple[ChannelStatistics, bool]:
    """Statistics of all channels, and whether texture's are those of the VAE beside the transformer: where only semantics' are given."""
    own = texture_statistics(root) if len(parts) == 1 and len(parts[0].mean) == semantic_channels else None
    parts = parts if own is None else [own, *parts]
    return ChannelStatistics(
        torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])
    ), own is not None
