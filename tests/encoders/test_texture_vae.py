"""The texture VAE: shapes, files, and what is refused."""

from pathlib import Path

import pytest
import torch

from sfd.encoders.texture_vae import (
    KlVae,
    TrainableAutoencoder,
    load_pretrained,
    load_texture_vae,
    to_pixels,
    to_uint8,
)
from sfd.errors import UserError
from sfd.params import TextureVaeParams

PARAMS = {"source": "train", "channels": (8, 8, 16), "layers_per_block": 1, "latent_channels": 4}
IMAGES = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def vae() -> KlVae:
    return KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(PARAMS), seed=0).autoencoder).eval()


def test_pixels_and_bytes_are_inverse() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_pixels(values)), values)


def test_encoding_is_a_sample_of_the_posterior(vae: KlVae) -> None:
    zero = vae.encode(IMAGES, torch.zeros(vae.latent_shape(2, 16)))
    one = vae.encode(IMAGES, torch.ones(vae.latent_shape(2, 16)))
    posterior = vae.autoencoder.encode(to_pixels(IMAGES)).latent_dist
    assert zero.shape == (2, 4, 4, 4) and vae.factor == 4
    assert torch.allclose(zero, posterior.mean) and torch.allclose(one - zero, posterior.std, atol=1e-5)


def test_a_saved_vae_decodes_the_same_and_loads_as_a_file(vae: KlVae, tmp_path: Path) -> None:
    vae.save(tmp_path)
    latent = vae.encode(IMAGES, torch.zeros(vae.latent_shape(2, 16)))
    decoded = vae.decode(latent)
    assert torch.equal(load_texture_vae(tmp_path).decode(latent), decoded) and decoded.dtype == torch.uint8
    params = TextureVaeParams.model_validate({"source": "file", "file": str(tmp_path)})
    assert torch.equal(load_pretrained(params).decode(latent), decoded)


def test_a_folder_that_is_no_vae_is_refused_with_the_layout(tmp_path: Path) -> None:
    params = TextureVaeParams.model_validate({"source": "file", "file": str(tmp_path)})
    with pytest.raises(UserError, match=r"config.json and diffusion_pytorch_model.safetensors"):
        load_pretrained(params)


def test_an_unreachable_hub_names_the_file_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    params = TextureVaeParams.model_validate({"source": "pretrained", "name": "someone/some-vae"})
    with pytest.raises(UserError, match=r"texture_vae.source: file and texture_vae.file"):
        load_pretrained(params)
