"""Parts of images and latents: their order, and that joining undoes splitting."""

import pytest
import torch

from sfd.encoders.tiles import join_tiles, join_tokens, map_to_tokens, split_tiles, split_tokens, tokens_to_map


def test_the_parts_of_an_image_are_its_quadrants_row_by_row() -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    parts = split_tiles(images, 2)
    assert parts.shape == (8, 3, 2, 2)
    for image in (0, 1):
        for part, (rows, columns) in enumerate(
            (rows, columns) for rows in (slice(0, 2), slice(2, 4)) for columns in (slice(0, 2), slice(2, 4))
        ):
            assert torch.equal(parts[4 * image + part], images[image, :, rows, columns])


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_joining_undoes_splitting(tiles: int) -> None:
    values = torch.randn(2, 5, 6, 6)
    assert torch.equal(join_tiles(split_tiles(values, tiles), tiles), values)
    tokens = map_to_tokens(values)
    assert torch.equal(tokens_to_map(tokens), values)
    assert torch.equal(join_tokens(split_tokens(tokens, tiles), tiles), tokens)


def test_tokens_of_the_parts_lie_where_the_parts_lie() -> None:
    values = torch.randn(1, 2, 4, 4)
    joined = join_tokens(map_to_tokens(split_tiles(values, 2)), 2)
    assert torch.equal(joined, map_to_tokens(values))
