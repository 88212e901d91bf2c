"""Published texture VAE weights (LDM names) as diffusers' ``AutoencoderKL``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd.encoders.ldm import autoencoder_from_ldm, ldm_config, rename_ldm_keys

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DATA = Path(__file__).parents[1] / "data/conformance"
RELEASED = json.loads((DATA / "released_checkpoint_shapes.json").read_text())["sd_vae_f16d32"]


def released_state() -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in RELEASED["state_dict"].items()}


@pytest.fixture(scope="module")
def published() -> "AutoencoderKL":
    with torch.device("meta"):
        return autoencoder_from_ldm(released_state())


def test_the_published_names_and_shapes_fit_diffusers_strictly(published: "AutoencoderKL") -> None:
    renamed = rename_ldm_keys(released_state(), num_levels=5)
    expected = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in renamed.items()} == expected
    assert len(renamed) == len(RELEASED["state_dict"])


def test_the_published_model_has_its_69_836_067_parameters(published: "AutoencoderKL") -> None:
    assert sum(p.numel() for p in published.parameters()) == RELEASED["parameters"] == 69_836_067


def test_the_published_model_is_the_documented_one(published: "AutoencoderKL") -> None:
    config = published.config
    assert list(config.block_out_channels) == [128, 128, 256, 256, 512]
    assert list(config.down_block_types) == 4 * ["DownEncoderBlock2D"] + ["AttnDownEncoderBlock2D"]
    assert list(config.up_block_types) == ["AttnUpDecoderBlock2D"] + 4 * ["UpDecoderBlock2D"]
    assert (config.layers_per_block, config.latent_channels) == (2, 32)
    assert config.use_quant_conv and config.use_post_quant_conv
    assert not published.training


def test_without_quant_convolutions_the_model_has_none() -> None:
    state = {key: value for key, value in released_state().items() if "quant_conv" not in key}
    config = ldm_config(state)
    assert not config["use_quant_conv"] and not config["use_post_quant_conv"]


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    tensors = load_file(DATA / "texture_vae_tiny.safetensors")
    return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}


def test_values_are_carried_over_and_1x1_convolutions_of_attention_become_matrices(tiny: dict[str, Tensor]) -> None:
    renamed = rename_ldm_keys(tiny, num_levels=5)
    query = tiny["encoder.down.4.attn.1.q.weight"]
    assert query.ndim == 4
    assert torch.equal(renamed["encoder.down_blocks.4.attentions.1.to_q.weight"], query[:, :, 0, 0].float())
    upsampler = tiny["decoder.up.4.upsample.conv.weight"]
    assert torch.equal(renamed["decoder.up_blocks.0.upsamplers.0.conv.weight"], upsampler.float())
    assert all(value.dtype == torch.float32 for value in renamed.values())


def test_a_missing_or_extra_weight_is_refused_by_its_name(tiny: dict[str, Tensor]) -> None:
    missing = {key: value for key, value in tiny.items() if key != "decoder.mid.block_1.norm1.bias"}
    with pytest.raises(RuntimeError, match="Missing key.*decoder.mid_block.resnets.0.norm1.bias"):
        autoencoder_from_ldm(missing)
    with pytest.raises(RuntimeError, match="Unexpected key.*loss.logvar"):
        autoencoder_from_ldm(tiny | {"loss.logvar": torch.zeros(1)})


@pytest.mark.parametrize("state", [{}, {"blocks.0.weight": torch.zeros(1)}], ids=["nothing", "another model"])
def test_weights_that_are_no_ldm_autoencoder_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(KeyError, match="encoder.conv_in.weight"):
        autoencoder_from_ldm(state)
