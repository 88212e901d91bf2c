"""Texture latents by principal components of pixel blocks: a linear tokenizer, and what every other one is compared with."""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from sfd.encoders.components import leading_components, moments
from sfd.encoders.tokenizers.tokenizer import Tokenizer
from sfd.errors import UserError
from sfd.params import TextureVaeParams
from sfd.pixels import to_pixels

EMPTY_SHARE = 1e-9
"""A component with a smaller share of the largest variance is rounding, not image."""


class PcaTokenizer(Tokenizer):
    """A latent position holds the coordinates of one block of pixels along the components: ``components @ (block - mean)``.

    The components are orthonormal, so a channel's variance is its share of the pixels' variance.
    """

    kind = "pca"
    mean: Tensor
    components: Tensor

    def __init__(self, block_size: int, latent_channels: int) -> None:
        """``mean`` ``(D,)`` and ``components`` ``(latent_channels, D)`` with D = 3 * block_size^2 come from :meth:`fit` or a file."""
        super().__init__()
        self.block_size = block_size
        self.register_buffer("mean", torch.zeros(3 * block_size**2))
        self.register_buffer("components", torch.zeros(latent_channels, 3 * block_size**2))

    @property
    def latent_channels(self) -> int:
        """Components that are kept."""
        return len(self.components)

    @property
    def factor(self) -> int:
        """The side of a block, pixels."""
        return self.block_size

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """As :class:`Tokenizer` says."""
        blocks = pixel_unshuffle(pixels, self.block_size) - self.mean[:, None, None]
        return torch.einsum("cd,bdhw->bchw", self.components, blocks)

    def decode_pixels(self, latent: Tensor) -> Tensor:
        """As :class:`Tokenizer` says."""
        blocks = torch.einsum("cd,bchw->bdhw", self.components, latent) + self.mean[:, None, None]
        return pixel_shuffle(blocks, self.block_size)

    @classmethod
    def build(cls, params: TextureVaeParams) -> Self:
        """As :class:`Tokenizer` says."""
        return cls(params.block_size, params.latent_channels)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """As :class:`Tokenizer` says. Raises :class:`UserError` if the images have fewer components than channels are asked for."""
        mean, variances, components = self._components(batches)
        filled = int((variances > EMPTY_SHARE * variances[0]).sum())
        if filled < self.latent_channels:
            raise UserError(
                f"texture_vae.latent_channels is {self.latent_channels}, but blocks of {self.block_size} x {self.block_size} pixels of the "
                f"training images have only {filled} components; set it to {filled} or less"
            )
        self.mean.copy_(mean)
        self.components.copy_(components)

    @classmethod
    def yardstick(cls, factor: int, latent_channels: int, batches: Iterable[Tensor]) -> Self:
        """The best linear tokenizer of this factor with at most so many channels; some may be empty."""
        made = cls(factor, min(latent_channels, 3 * factor**2))
        mean, _, components = made._components(batches)
        made.mean.copy_(mean)
        made.components.copy_(components)
        return made.eval()

    def _components(self, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variances and components of the blocks of uint8 images."""
        blocks = (pixel_unshuffle(to_pixels(batch), self.block_size).movedim(1, -1).flatten(0, 2) for batch in batches)
        mean, covariance = moments(blocks, len(self.mean))
        return mean, *leading_components(covariance, self.latent_channels)

    def config(self) -> dict[str, Any]:
        """As :class:`Tokenizer` says."""
        return {"block_size": self.block_size, "latent_channels": self.latent_channels}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """As :class:`Tokenizer` says."""
        return cls(**config)
