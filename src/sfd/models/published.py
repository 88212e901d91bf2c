"""Configurations of published models: from the keys of the published implementation, or from the shapes of the weights."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit_config import LightningDiTConfig

_COPIED = (
    "input_size",
    "patch_size",
    "in_channels",
    "hidden_size",
    "depth",
    "num_heads",
    "use_qknorm",
    "use_swiglu",
    "use_rope",
    "use_rmsnorm",
)
_REQUIRED = (*_COPIED[:1], *_COPIED[2:6], "num_classes")
_INTERPRETED = (
    "num_classes",
    "wo_shift",
    "use_repa",
    "repa_depth",
    "repa_projector_dim",
    "repa_dino_version",
    "semantic_chans",
    "semfirst_delta_t",
    "class_dropout_prob",
)
_FIXED = {"mlp_ratio": 4.0, "learn_sigma": False}
"""Keys that have one value in all published models."""
_UNUSED = ("use_checkpoint",)
"""Keys that change how the published code runs, not what it computes."""


def config_from_published(published: dict[str, Any]) -> LightningDiTConfig:
    """Reads a published ``model`` mapping. A ``use_*`` key that is absent means that the part is off, as published.

    Raises:
        ValueError: a key is missing, or is not one whose meaning is known here.
    """
    missing = [key for key in _REQUIRED if key not in published]
    unknown = sorted(set(published) - set(_COPIED) - set(_INTERPRETED) - set(_FIXED) - set(_UNUSED))
    for key, value in _FIXED.items():
        if published.get(key, value) != value:
            raise ValueError(
                f"published model configuration: {key} is {published[key]!r}, but only {value!r} is supported"
            )
    if missing or unknown:
        raise ValueError(f"published model configuration: missing keys {missing}, unknown keys {unknown}")
    copied: dict[str, Any] = {key: False for key in _COPIED if key.startswith("use_")}
    copied |= {key: published[key] for key in _COPIED if key in published}
    return LightningDiTConfig(
        **copied,
        semantic_channels=published.get("semantic_chans", 0),
        two_times=published.get("semfirst_delta_t", 0.0) > 0.0,
        use_shift=not published.get("wo_shift", False),
        condition=ClassCondition.numbered(
            published["num_classes"], has_null=published.get("class_dropout_prob", 0.1) > 0.0
        ),
        repa_depth=published.get("repa_depth", 0) if published.get("use_repa", False) else 0,
        repa_width=published.get("repa_projector_dim", 2048),
    )


PUBLISHED_REPA_DEPTH = 2
"""Block after which published models are aligned with the encoder (arXiv 2512.04926); it cannot be read from the weights."""


def config_from_weights(
    state: Mapping[str, Tensor], semantic_channels: int, has_null_class: bool
) -> LightningDiTConfig:
    """The configuration that fits published weights. Tensors may be on the meta device.

    Args:
        state: parameters under their published names.
        semantic_channels, has_null_class: what cannot be read from weights: how many of the channels are semantic, and whether the last
            row of the class table means "no class".

    Raises:
        ValueError: a weight that a width is read from is missing, widths contradict each other, or the weights are of a model of two paths.
    """
    if "fusion.weight" in state:
        raise ValueError(
            "fusion.weight is of a model that was trained here with diffusion.sparse_deep, and its paths cannot be read from weights; use its "
            "folder, which has config.json"
        )
    width, in_channels, patch = _shape(state, "x_embedder.proj.weight", 4)[:3]
    tokens = _shape(state, "pos_embed", 3)[1]
    rows = _shape(state, "y_embedder.embedding_table.weight", 2)[0]
    modulation = _shape(state, "blocks.0.adaLN_modulation.1.weight", 2)[0]
    grid, head = math.isqrt(tokens), _head_width(state)
    if grid * grid != tokens:
        raise ValueError(f"pos_embed has {tokens} tokens, which is not a square number")
    if width % head:
        raise ValueError(f"the width {width} is not a multiple of the width of a head, {head}")
    blocks = [int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))]
    return LightningDiTConfig(
        input_size=grid * patch,
        in_channels=in_channels,
        hidden_size=width,
        depth=1 + max(blocks),
        num_heads=width // head,
        condition=ClassCondition.numbered(rows - has_null_class, has_null_class),
        patch_size=patch,
        semantic_channels=semantic_channels,
        two_times="t_embedder_sem.mlp.0.weight" in state,
        use_qknorm="blocks.0.attn.q_norm.weight" in state,
        use_swiglu="blocks.0.mlp.w12.weight" in state,
        use_rope="feat_rope.freqs_cos" in state,
        use_rmsnorm="blocks.0.norm1.weight" in state,
        use_shift=modulation == 6 * width,
        **_read_projector(state),
    )


def _read_projector(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of REPA's projector, of either kind; none if there is no projector."""
    if "repa_projector.proj.weight" in state:
        width = _shape(state, "repa_projector.proj.weight", 4)[0]
        return {"repa_depth": PUBLISHED_REPA_DEPTH, "repa_projector": "conv", "feature_dim": width}
    if "repa_projector.0.weight" not in state:
        return {}
    return {
        "repa_depth": PUBLISHED_REPA_DEPTH,
        "repa_width": _shape(state, "repa_projector.0.weight", 2)[0],
        "feature_dim": _shape(state, "repa_projector.4.weight", 2)[0],
    }


def _shape(state: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"{key} is missing")
    if state[key].ndim != dimensions:
        raise ValueError(f"{key} has shape {list(state[key].shape)}, but should have {dimensions} dimensions")
    return tuple(state[key].shape)


def _head_width(state: Mapping[str, Tensor]) -> int:
    """Channels of one attention head, read from a tensor of that width."""
    if "feat_rope.freqs_cos" in state:
        return _shape(state, "feat_rope.freqs_cos", 2)[1]
    if "blocks.0.attn.q_norm.weight" in state:
        return _shape(state, "blocks.0.attn.q_norm.weight", 1)[0]
    raise ValueError(
        "the width of a head is unknown: neither feat_rope.freqs_cos nor blocks.0.attn.q_norm.weight is there"
    )
