"""Sizes of the backbone, without torch."""

from typing import Literal

ModelSize = Literal["tiny", "XS", "S", "B", "L", "XL", "1p0B", "1p6B"]

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (128, 4, 4),
    "XS": (192, 6, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
"""Width, depth and number of heads of the published sizes, and of two smaller ones."""
