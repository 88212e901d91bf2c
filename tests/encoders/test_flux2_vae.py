"""The texture VAE of Flux2: patches as diffusers orders them, the mean of the posterior, files."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline

from sfd.bench.networks import _texture_channels
from sfd.encoders.flux2_vae import Flux2Vae
from sfd.encoders.texture_vae import load_pretrained, load_texture_vae
from sfd.importing.origin import _load_texture_vae
from sfd.params import TextureVaeParams
from sfd.pixels import to_pixels
from sfd.seeding import generator, seeded_initialisation

IMAGES = torch.randint(0, 256, (2, 3, 16, 24), generator=generator(0, "test/images"), dtype=torch.uint8)


@pytest.fixture(scope="module")
def vae() -> Flux2Vae:
    with seeded_initialisation(0, "test/vae"):
        network = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=3,
            norm_num_groups=4,
        )
    network.bn.running_mean += 5.0
    return Flux2Vae(network).eval()


def test_the_latent_is_the_mean_of_the_posterior_in_the_patches_of_diffusers(vae: Flux2Vae) -> None:
    with torch.no_grad():
        expected = Flux2KleinPipeline._patchify_latents(vae.autoencoder.encode(to_pixels(IMAGES)).latent_dist.mean)
    found = vae.encode(IMAGES, torch.ones(2, 12, 4, 6))
    assert (vae.latent_channels, vae.factor) == (12, 4) and found.shape == (2, 12, 4, 6)
    torch.testing.assert_close(found, expected)
    assert vae.latent_shape(2, 16) == (2, 12, 4, 4)


def test_what_is_decoded_are_the_patches_put_back(vae: Flux2Vae) -> None:
    latent = torch.randn(2, 12, 4, 6, generator=generator(1, "test/latents"))
    with torch.no_grad():
        pixels = vae.autoencoder.decode(Flux2KleinPipeline._unpatchify_latents(latent)).sample
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert vae.decode(latent).shape == (2, 3, 16, 24)
    assert (vae.decode(latent).int() - expected.int()).abs().max() <= 1


def test_a_folder_in_the_layout_of_diffusers_is_read_wherever_a_texture_vae_is(vae: Flux2Vae, tmp_path: Path) -> None:
    vae.save(tmp_path)
    params = TextureVaeParams.model_validate({"source": "file", "file": str(tmp_path), "latent_channels": 12})
    noise = torch.zeros(2, 12, 4, 6)
    for loaded in (load_texture_vae(tmp_path), load_pretrained(params), _load_texture_vae(tmp_path)):
        assert isinstance(loaded, Flux2Vae)
        stored, kept = loaded.state_dict(), vae.state_dict()
        assert stored.keys() == kept.keys() and all(torch.equal(stored[name], kept[name]) for name in kept)
        torch.testing.assert_close(loaded.encode(IMAGES, noise), vae.encode(IMAGES, noise))
    assert _texture_channels(params) == 12
