"""Principal components of pixel blocks as texture latents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from sfd.encoders.texture_vae import load_pretrained, load_texture_vae
from sfd.encoders.tokenizers.pca import PcaTokenizer
from sfd.errors import UserError
from sfd.params import TextureVaeParams


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth colour images uint8 ``(40, 3, 16, 16)``."""
    coarse = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic")
    return (smooth.clamp(0, 1) * 255).to(torch.uint8)


def fitted(images: Tensor, channels: int = 6, batch: int = 40) -> PcaTokenizer:
    params = TextureVaeParams(source="pca", block_size=4, latent_channels=channels)
    made = PcaTokenizer.build(params)
    made.fit(images.split(batch))
    return made.eval()


def round_trip(tokenizer: PcaTokenizer, images: Tensor) -> Tensor:
    noise = torch.randn(tokenizer.latent_shape(len(images), images.shape[-1]))
    return tokenizer.decode(tokenizer.encode(images, noise))


def squared_error(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).square().mean())


def test_latents_are_the_coordinates_that_scikit_learn_finds_up_to_sign(images: Tensor) -> None:
    pixels = images.numpy() / 127.5 - 1.0
    blocks = pixels.reshape(40, 3, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 48)
    expected = PCA(6, svd_solver="full").fit_transform(blocks)
    found = fitted(images).encode(images, torch.empty(0))
    assert found.shape == (40, 6, 4, 4)
    rows = found.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    np.testing.assert_allclose(np.abs(rows), np.abs(expected), atol=1e-3)


def test_all_components_give_the_images_back_and_fewer_a_coarser_one(images: Tensor) -> None:
    noisy = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(round_trip(fitted(noisy, 48), noisy), noisy)
    errors = [squared_error(round_trip(fitted(images, channels), images), images) for channels in (2, 6, 12)]
    assert errors[0] > errors[1] > errors[2] > 0.0


def test_the_fit_does_not_depend_on_batches_and_repeats_bit_by_bit(images: Tensor) -> None:
    assert torch.equal(fitted(images).components, fitted(images).components)
    torch.testing.assert_close(fitted(images, batch=7).components, fitted(images).components, rtol=0.0, atol=1e-6)
    largest = fitted(images).components.gather(1, fitted(images).components.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all()), "signs are decided"


def test_grey_images_have_fewer_components_which_is_said_and_is_no_matter_for_the_yardstick(images: Tensor) -> None:
    grey = images[:, :1].expand(-1, 3, -1, -1)
    with pytest.raises(
        UserError, match="latent_channels is 20, but blocks of 4 x 4 .* only 16 components; set it to 16"
    ):
        fitted(grey, 20)
    linear = PcaTokenizer.yardstick(4, 200, [grey])
    assert linear.latent_channels == 48 and squared_error(round_trip(linear, grey), grey) < 0.1


def test_a_saved_tokenizer_decodes_the_same_and_loads_as_a_file(images: Tensor, tmp_path: Path) -> None:
    made = fitted(images)
    made.save(tmp_path)
    params = TextureVaeParams.model_validate({"source": "file", "file": str(tmp_path)})
    for loaded in (load_texture_vae(tmp_path), load_pretrained(params)):
        assert (loaded.factor, loaded.latent_channels, loaded.training) == (4, 6, False)
        assert torch.equal(round_trip(loaded, images), round_trip(made, images))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_channels": 5}, "does not fit its config.json"),
        ({"width": 8}, "does not describe a tokenizer of kind `pca`: .*width"),
        ({"kind": "ica"}, "kind is 'ica'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    images: Tensor, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    fitted(images).save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=named):
        load_texture_vae(tmp_path)
