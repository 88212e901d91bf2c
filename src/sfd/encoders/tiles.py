"""Images and latents in square parts of equal size, which are encoded one by one, and joined again."""

import math

from torch import Tensor


def split_tiles(values: Tensor, tiles: int) -> Tensor:
    """``(B, C, H, W)`` -> ``(B * tiles^2, C, H / tiles, W / tiles)``; the parts of an image are neighbours, row by row."""
    count, channels, height, width = values.shape
    size = height // tiles, width // tiles
    parts = values.reshape(count, channels, tiles, size[0], tiles, size[1])
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(count * tiles**2, channels, *size)


def join_tiles(parts: Tensor, tiles: int) -> Tensor:
    """Inverse of :func:`split_tiles`."""
    count, channels, height, width = parts.shape
    values = parts.reshape(count // tiles**2, tiles, tiles, channels, height, width)
    return values.permute(0, 3, 1, 4, 2, 5).reshape(count // tiles**2, channels, tiles * height, tiles * width)


def tokens_to_map(tokens: Tensor) -> Tensor:
    """Tokens ``(B, N, C)`` of a square, row by row -> ``(B, C, sqrt(N), sqrt(N))``."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)


def map_to_tokens(values: Tensor) -> Tensor:
    """Inverse of :func:`tokens_to_map`."""
    return values.flatten(2).transpose(1, 2)


def join_tokens(tokens: Tensor, tiles: int) -> Tensor:
    """Tokens ``(B * tiles^2, N, C)`` of the parts -> tokens ``(B, N * tiles^2, C)`` of the whole."""
    return map_to_tokens(join_tiles(tokens_to_map(tokens), tiles)) if tiles > 1 else tokens


def split_tokens(tokens: Tensor, tiles: int) -> Tensor:
    """Inverse of :func:`join_tokens`."""
    return map_to_tokens(split_tiles(tokens_to_map(tokens), tiles)) if tiles > 1 else tokens
