"""Sizes of the backbones, without torch."""

from typing import Literal

ModelSize = Literal[
    "tiny", "XS", "S", "B", "L", "XL", "1p0B", "1p6B", "0p5b", "1b", "2b", "3b", "4b", "5b", "6b", "8b", "9b"
]

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (128, 4, 4),
    "XS": (192, 6, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
    "0p5b": (1536, 13, 12),
    "1b": (2048, 16, 16),
    "2b": (2560, 20, 20),
    "3b": (2816, 23, 22),
    "4b": (3072, 25, 24),
    "5b": (3328, 27, 26),
    "6b": (3584, 28, 28),
    "8b": (3840, 31, 30),
    "9b": (4096, 32, 32),
}
"""Width, depth and number of heads of the published sizes, and of two smaller ones. From 0p5b on they are those of SeFi-Image."""

USEFUL_IMAGES: dict[str, int] = {"tiny": 80_000, "XS": 48_000, "S": 320_000, "B": 1_280_000}
"""Training images, repeats counted, from which on a size that starts from nothing is worth its time. XS draws some things recognisably after
64,000 images of 64 tokens, and about half of them after 320,000 (emoji, docs/your-own-images.md); the others are scaled from that by judgement."""

FLUX2_DOUBLE_BLOCKS: dict[str, int] = {
    "tiny": 1,
    "0p5b": 3,
    "1b": 4,
    "2b": 4,
    "3b": 5,
    "4b": 5,
    "5b": 6,
    "6b": 6,
    "8b": 7,
    "9b": 8,
}
"""The sizes of backbone `flux2`, and how many of the blocks keep the text in a stream of its own (github.com/jmliu206/SeFi-Image)."""

FLUX2_HEAD_WIDTH = 128
"""Channels of an attention head of backbone `flux2`; so its size `tiny` has one head."""

SIZES_OF: dict[str, tuple[str, ...]] = {
    "lightningdit": tuple(name for name in SIZES if name == "tiny" or name not in FLUX2_DOUBLE_BLOCKS),
    "flux2": tuple(FLUX2_DOUBLE_BLOCKS),
}
"""The sizes that a backbone has. One that is not listed takes any."""
