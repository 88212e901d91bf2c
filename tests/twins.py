"""Digits-sized twins of presets: the preset's mechanisms, at the size of ``small_params``."""

import copy
from typing import Any

from support import small_params

from sfd.params import Params

MODEL = ("backbone", "patch_size", "use_rmsnorm", "use_qknorm", "use_swiglu", "use_rope", "use_shift")
LOSS = (
    "velocity_weight",
    "semantic_weight",
    "cosine_weight",
    "cosine_floor",
    "repa_weight",
    "repa_loss",
    "timestep_sampling",
)


def twin(params: Params) -> dict[str, Any]:
    """Small parameters with the schedule, the semantics, the blocks and the loss terms of a preset."""
    preset, tree = params.model_dump(mode="json"), copy.deepcopy(small_params())
    tree["schedule"] = preset["schedule"]
    if preset["schedule"]["learnt"] is not None:
        tree["schedule"]["learnt"] |= {"probe_steps": 3, "probe_size": None}
    tree["diffusion"]["model"] |= {key: preset["diffusion"]["model"][key] for key in MODEL}
    tree["diffusion"]["loss"] |= {key: preset["diffusion"]["loss"][key] for key in LOSS}
    tree["latents"]["store_features"] = preset["latents"]["store_features"]
    tree["latents"] |= {key: preset["latents"][key] for key in ("semantic_posterior", "quadrants")}
    if tree["latents"]["quadrants"]:
        tree["encoder"]["input_size"] //= 2
    tree["features"] |= {key: preset["features"][key] for key in ("crop", "mirror")}
    tree["semantic"]["kind"] = preset["semantic"]["kind"]
    if preset["semantic"]["training"] is None and preset["semantic"]["source"] == "train":
        tree["semantic"]["training"] = None
    if preset["encoder"]["source"] == "none":
        tree["encoder"] |= {"source": "none", "training": None}
    if preset["semantic"]["kind"] == "none":
        tree["sample"]["guidance"] |= {"scale_semantic": 1.0, "start_semantic": 0.0}
    return tree
