"""Colours of pictures and of words: the mean colour of what a picture shows, and which of some named colours it is nearest to.

Legend of shapes: H, W pixels of a picture, N pixels.
"""

from collections.abc import Sequence

import torch
from PIL import ImageColor
from torch import Tensor

LEVELS = 16
"""Levels per colour channel in which border pixels are counted, so that the noise of a drawn background does not split it."""
BACKGROUND_DISTANCE = 10.0
"""Pixels whose colour is at most so far from the background in CIELAB belong to it. 2.3 is a just noticeable difference, and white to yellow
97."""
LEAST_SHARE = 0.005
"""A picture with a smaller share of other pixels shows nothing."""

_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=torch.float64,
)
"""Linear sRGB to XYZ, of white point D65 (IEC 61966-2-1)."""


def to_lab(rgb: Tensor) -> Tensor:
    """sRGB colours (..., 3) in 0 to 255 -> CIELAB (..., 3) float64 with white point D65 (CIE 1976)."""
    value = rgb.double() / 255.0
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    relative = (linear @ _TO_XYZ.T) / _TO_XYZ.sum(dim=1)
    curved = torch.where(relative > (6 / 29) ** 3, relative.pow(1 / 3), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = curved.unbind(-1)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=-1)


def colour_of(word: str) -> Tensor:
    """The colour of a word in CIELAB (3,): that of CSS (`green` is 0, 128, 0). Raises ``ValueError`` if CSS has no such colour."""
    return to_lab(torch.tensor(ImageColor.getrgb(word)[:3]))


def shown_colour(picture: Tensor) -> Tensor | None:
    """The mean colour in CIELAB (3,) of the pixels of a picture uint8 (3, H, W) that are not background; None if it shows nothing.

    The background has the most frequent colour of the border, counted in :data:`LEVELS` levels per channel: the mean of the border pixels in
    the fullest of these boxes. Pixels within :data:`BACKGROUND_DISTANCE` of it belong to it, wherever they are.
    """
    pixels = picture.permute(1, 2, 0)
    border = torch.cat([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    boxes = (border.long() * LEVELS // 256) @ torch.tensor([LEVELS**2, LEVELS, 1])
    fullest = int(torch.bincount(boxes).argmax())
    background = to_lab(border[boxes == fullest].double().mean(dim=0))
    colours = to_lab(pixels.flatten(0, 1))
    shown = colours[(colours - background).norm(dim=1) > BACKGROUND_DISTANCE]
    return shown.mean(dim=0) if len(shown) >= LEAST_SHARE * len(colours) else None


def named_colour(picture: Tensor, words: Sequence[str]) -> str | None:
    """The word whose colour is nearest to what the picture shows, the first of two; None if it shows nothing."""
    shown = shown_colour(picture)
    if shown is None:
        return None
    distances = (torch.stack([colour_of(word) for word in words]) - shown).norm(dim=1)
    return words[int(distances.argmin())]
