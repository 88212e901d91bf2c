"""Pixels as networks take them and as files hold them."""

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(pixels: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 [0, 255], rounded."""
    return ((pixels.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
