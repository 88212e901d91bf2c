"""The published implementation's configuration keys, read into ours."""

from typing import Any

from sfd.models.lightningdit import LightningDiTConfig

_COPIED = (
    "input_size",
    "patch_size",
    "in_channels",
    "hidden_size",
    "depth",
    "num_heads",
    "num_classes",
    "use_qknorm",
    "use_swiglu",
    "use_rope",
    "use_rmsnorm",
)
_REQUIRED = _COPIED[:1] + _COPIED[2:7]
_INTERPRETED = (
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
        use_null_class=published.get("class_dropout_prob", 0.1) > 0.0,
        repa_depth=published.get("repa_depth", 0) if published.get("use_repa", False) else 0,
        repa_width=published.get("repa_projector_dim", 2048),
    )
