"""Composite latents of images: the parts that there are, on one grid."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.encoders.composite import CompositeEncoder
from sfd.encoders.semantic.pca import PcaSemantic
from sfd.errors import UserError


class Pixels(nn.Module):
    """A texture VAE or vision encoder of no weights: means over squares of pixels."""

    factor, latent_channels, feature_dim = 4, 3, 3

    def __init__(self, grid: int = 0) -> None:
        super().__init__()
        self.grid = grid
        self.patches = 4 * grid, 4

    def latent_shape(self, count: int, size: int) -> tuple[int, int, int, int]:
        return count, 3, size // 4, size // 4

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.float(), 4) + noise

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), self.grid).flatten(2).transpose(1, 2)


def composite(encoder: Any, semantic: PcaSemantic | None) -> CompositeEncoder:
    return CompositeEncoder(Pixels(), encoder, semantic, 0, torch.device("cpu"))  # type: ignore[arg-type]


def first_channel() -> PcaSemantic:
    network = PcaSemantic(3, 1)
    network.components[0, 0] = 1.0
    return network


IMAGES = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).remainder(256).to(torch.uint8)


def test_semantics_stand_behind_texture_at_the_positions_of_their_patches() -> None:
    encode = composite(Pixels(2), first_channel())
    latent, features = encode(IMAGES, [0, 1])
    assert (encode.semantic_channels, encode.feature_dim, encode.check_grid(8)) == (1, 3, 2)
    assert latent.shape == (2, 4, 2, 2) and features.shape == (2, 4, 3)
    assert torch.equal(latent[:, 3], nn.functional.avg_pool2d(IMAGES.float(), 4)[:, 0])


def test_texture_does_not_depend_on_whether_there_are_semantics_and_features() -> None:
    whole = composite(Pixels(2), first_channel())(IMAGES, [5, 6])
    with_features, alone = composite(Pixels(2), None), composite(None, None)
    assert (with_features.semantic_channels, with_features.feature_dim) == (0, 3)
    assert (alone.semantic_channels, alone.feature_dim) == (0, 0)
    for encode, expected in ((with_features, whole[1]), (alone, torch.empty(2, 4, 0))):
        latent, features = encode(IMAGES, [5, 6])
        assert torch.equal(latent, whole[0][:, :3]) and torch.equal(features, expected)


def test_an_image_size_that_the_texture_vae_cannot_divide_and_another_grid_are_refused() -> None:
    assert composite(None, None).check_grid(12) == 3
    with pytest.raises(UserError, match="data.image_size 10 must be a multiple of 4"):
        composite(None, None).check_grid(10)
    with pytest.raises(
        UserError, match="12 / 4 = 3, but encoder.input_size 8 / encoder.patch_size 4 = 2; set encoder.input_size to 12"
    ):
        composite(Pixels(2), None).check_grid(12)
