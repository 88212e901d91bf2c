"""Composite latents of images: the parts that there are, on one grid."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.encoders.composite import CompositeEncoder
from sfd.encoders.semantic.encoder import SemanticEncoder
from sfd.encoders.semantic.pca import PcaSemantic
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
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


def composite(encoder: Any, semantic: SemanticEncoder | None) -> CompositeEncoder:
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


# --- the semantic posterior ---


def small_vae() -> SemVae:
    """Random weights; the spread of its posterior is about that of its mean."""
    torch.manual_seed(3)
    return SemVae(SemVaeConfig(input_dim=3, hidden_dim=8, heads=2, blocks=1, latent_dim=2)).eval().requires_grad_(False)


def test_the_mean_of_the_semantic_posterior_needs_no_draw_and_texture_does_not_depend_on_the_choice() -> None:
    mean = composite(Pixels(2), small_vae())
    drawn = replace(mean, draws_semantics=True)
    first, again, other = mean(IMAGES, [0, 1])[0], drawn(IMAGES, [0, 1])[0], mean(IMAGES, [7, 8])[0]
    assert torch.equal(first[:, :3], again[:, :3]) and not torch.equal(first[:, :3], other[:, :3])
    assert torch.equal(first[:, 3:], other[:, 3:])


def test_a_draw_of_the_semantic_posterior_depends_on_seed_and_number_alone() -> None:
    encode = replace(composite(Pixels(2), small_vae()), draws_semantics=True)
    both, features = encode(IMAGES, [4, 5])
    assert torch.equal(encode(IMAGES, [4, 5])[0], both)
    torch.testing.assert_close(encode(IMAGES[1:], [5])[0], both[1:])
    assert not torch.equal(encode(IMAGES, [5, 4])[0][:, 3:], both[:, 3:])
    assert not torch.equal(replace(encode, seed=1)(IMAGES, [4, 5])[0][:, 3:], both[:, 3:])
    assert torch.equal(features, composite(Pixels(2), small_vae())(IMAGES, [4, 5])[1])


def test_draws_of_the_semantic_posterior_are_spread_about_its_mean_as_it_says() -> None:
    network, count = small_vae(), 4000
    encode = replace(composite(Pixels(2), network), draws_semantics=True)
    features = Pixels(2)(IMAGES[:1])
    posterior = network.posterior(features)
    drawn = encode(IMAGES[:1].expand(count, -1, -1, -1), list(range(count)))[0][:, 3:].flatten(2).transpose(1, 2)
    std = (0.5 * posterior.logvar[0]).exp()
    assert ((drawn.mean(0) - posterior.mean[0]).abs() < 5 * std / count**0.5).all()
    assert ((drawn.std(0) / std - 1.0).abs() < 0.06).all()


def test_components_have_no_posterior_so_both_choices_are_the_same() -> None:
    encode = composite(Pixels(2), first_channel())
    assert torch.equal(replace(encode, draws_semantics=True)(IMAGES, [0, 1])[0], encode(IMAGES, [0, 1])[0])


# --- quadrants ---

LARGE = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_quadrants_equal_four_separate_encodings_joined_on_one_grid() -> None:
    network = small_vae()
    encode = replace(composite(Pixels(2), network), tiles=2)
    latent, features = encode(LARGE, [0, 1])
    assert encode.check_grid(16) == 4 and latent.shape == (2, 5, 4, 4) and features.shape == (2, 16, 3)
    for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = LARGE[:, :, 8 * rows : 8 * rows + 8, 8 * columns : 8 * columns + 8]
        alone, its_features = composite(Pixels(2), network)(part, [0, 1])
        place = (..., slice(2 * rows, 2 * rows + 2), slice(2 * columns, 2 * columns + 2))
        torch.testing.assert_close(latent[:, 3:][place], alone[:, 3:])
        on_grid = features.transpose(1, 2).unflatten(2, (4, 4))[place]
        torch.testing.assert_close(on_grid, its_features.transpose(1, 2).unflatten(2, (2, 2)))


def test_a_quadrant_is_another_thing_than_a_part_of_a_larger_pass_and_texture_is_the_same() -> None:
    network = small_vae()
    whole, parts = composite(Pixels(4), network), replace(composite(Pixels(2), network), tiles=2)
    one, other = whole(LARGE, [0, 1])[0], parts(LARGE, [0, 1])[0]
    assert torch.equal(one[:, :3], other[:, :3]) and not torch.allclose(one[:, 3:], other[:, 3:], rtol=0.0, atol=1e-5)


def test_draws_of_quadrants_are_spread_about_the_means_of_quadrants() -> None:
    parts = replace(composite(Pixels(2), small_vae()), tiles=2)
    count = 1000
    mean = parts(LARGE[:1], [0])[0][0, 3:]
    drawn = replace(parts, draws_semantics=True)(LARGE[:1].expand(count, -1, -1, -1), list(range(count)))[0][:, 3:]
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / count**0.5).all()


def test_a_grid_that_quadrants_do_not_give_is_refused_with_the_size_that_does() -> None:
    reason = "2 quadrants \\* encoder.input_size 16 / encoder.patch_size 4 = 8; set encoder.input_size to 8"
    with pytest.raises(UserError, match=reason):
        replace(composite(Pixels(4), None), tiles=2).check_grid(16)
