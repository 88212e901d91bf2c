"""Converts weights of an LDM autoencoder (CompVis names) to diffusers' ``AutoencoderKL``."""

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_ATTENTION_NAMES = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def autoencoder_from_ldm(state: dict[str, Tensor]) -> "AutoencoderKL":
    """An ``AutoencoderKL`` with the weights of an LDM autoencoder; every width is read from the weights.

    Raises:
        RuntimeError: the weights do not fit exactly; torch lists keys that are missing, extra or of another shape.
        KeyError: ``state`` is not an LDM autoencoder at all.
    """
    config = ldm_config(state)
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**config)
    model.load_state_dict(rename_ldm_keys(state, num_levels=len(config["block_out_channels"])), strict=True)
    return model.eval()


def ldm_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The ``AutoencoderKL`` arguments that fit LDM weights. A resolution has attention if the weights have it."""
    found = [int(match[1]) for key in state if (match := re.match(r"encoder\.down\.(\d+)\.", key))]
    num_levels = 1 + max(found, default=-1)
    channels = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(num_levels)]
    down = [_block_type("Down", "encoder", f"encoder.down.{i}.attn.", state) for i in range(num_levels)]
    up = [_block_type("Up", "decoder", f"decoder.up.{i}.attn.", state) for i in reversed(range(num_levels))]
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": len({key.split(".")[4] for key in state if key.startswith("encoder.down.0.block.")}),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
    }


def _block_type(direction: str, half: str, attention_prefix: str, state: dict[str, Tensor]) -> str:
    has_attention = any(key.startswith(attention_prefix) for key in state)
    return f"{'Attn' if has_attention else ''}{direction}{half.capitalize()}Block2D"


def rename_ldm_keys(state: dict[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """LDM names to diffusers names; 1x1 convolutions of attention become matrices."""
    renamed = {}
    for key, value in state.items():
        new = _rename(key, num_levels)
        is_projection = re.search(r"attentions\.\d+\.to_.*weight$", new) is not None
        renamed[new] = value.flatten(1).float() if is_projection else value.float()
    return renamed


def _rename(key: str, num_levels: int) -> str:
    def level(match: re.Match[str]) -> str:
        index = int(match[2])
        return f"{match[1]}_blocks.{index if match[1] == 'down' else num_levels - 1 - index}."

    key = re.sub(r"\b(down|up)\.(\d+)\.", level, key)
    key = re.sub(r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets.", key)
    key = re.sub(r"(_blocks\.\d+)\.(down|up)sample\.", r"\1.\2samplers.0.", key)
    key = key.replace("mid.block_1.", "mid_block.resnets.0.").replace("mid.block_2.", "mid_block.resnets.1.")
    key = key.replace("mid.attn_1.", "mid_block.attentions.0.").replace("nin_shortcut", "conv_shortcut")
    key = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", key)
    key = re.sub(r"(attentions\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{_ATTENTION_NAMES[m[2]]}.", key)
    return key.replace("norm_out", "conv_norm_out")
