"""Patches, times and positions as a transformer reads them.

Legend of shapes: B images, C channels, H x W latent positions, N tokens, D hidden width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

FREQUENCY_SIZE = 256
"""Width of the sinusoidal embedding of a time."""


class PatchEmbedding(nn.Module):
    """Convolution with kernel = stride = patch; tokens row by row."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, N, D)``."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoidal embedding ``[cos | sin]`` of ``t`` (not scaled), then Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_SIZE, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """``(B,)`` -> ``(B, width)``."""
        half = FREQUENCY_SIZE // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which queries and keys turn.

    Each is ``(N, head_dim)`` for tokens at all positions, or ``(B, 1, K, head_dim)`` for K tokens of each image.
    """

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Turns neighbouring pairs of ``x`` ``(B, heads, N, head_dim)``: ``(a, b) -> (a cos - b sin, b cos + a sin)``."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.cos + torch.stack([-b, a], dim=-1).flatten(-2) * self.sin

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of the tokens at ``positions`` ``(B, K)``."""
        return Rotation(self.cos[positions][:, None], self.sin[positions][:, None])

    def behind(self, count: int) -> "Rotation":
        """The rotation of the same tokens behind ``count`` others that do not turn."""
        shape = (*self.cos.shape[:-2], count, self.cos.shape[-1])
        cos, sin = self.cos.new_ones(shape), self.sin.new_zeros(shape)
        return Rotation(torch.cat([cos, self.cos], dim=-2), torch.cat([sin, self.sin], dim=-2))


class RotaryEmbedding(nn.Module):
    """2D rotary embedding: the first half of a head turns with the row index, the second with the column index."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_dim: int, grid: int) -> None:
        super().__init__()
        half = head_dim // 2
        frequencies = 10_000.0 ** (-torch.arange(0, half, 2)[: half // 2].float() / half)
        angles = (torch.arange(grid).float()[:, None] * frequencies).repeat_interleave(2, dim=-1)
        rows = angles[:, None, :].expand(grid, grid, half)
        columns = angles[None, :, :].expand(grid, grid, half)
        table = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_dim)
        self.register_buffer("freqs_cos", table.cos())
        self.register_buffer("freqs_sin", table.sin())

    def forward(self, dtype: torch.dtype) -> Rotation:
        """The rotation of all tokens, in the type in which queries and keys are computed."""
        return Rotation(self.freqs_cos.to(dtype), self.freqs_sin.to(dtype))


def sincos_embedding(width: int, grid: int) -> Tensor:
    """Fixed 2D embedding ``(1, N, D)``: first half of the width from the column, second from the row, each ``[sin | cos]``."""
    quarter = width // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns = line[None, :, :].expand(grid, grid, -1)
    rows = line[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width).float()
