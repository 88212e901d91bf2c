"""The texture VAE of Flux2 and SeFi-Image: a diffusers ``AutoencoderKLFlux2``, in a folder."""

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from sfd.encoders.texture_vae import KlVae
from sfd.pixels import to_pixels

PATCH = 2
"""Positions of the autoencoder's own latent along one side of a position of ours."""


class Flux2Vae(KlVae):
    """Positions of the autoencoder's latent are taken together in patches of 2 x 2, whose channels are ordered by channel, row and column.

    The batch norm in its file, which normalises such patches, is not applied: statistics of the latents take its place. As published, the
    latent is the posterior's mean.
    """

    @property
    def latent_channels(self) -> int:
        """As :class:`sfd.encoders.texture_vae.TextureVae` says."""
        return super().latent_channels * PATCH**2

    @property
    def factor(self) -> int:
        """As :class:`sfd.encoders.texture_vae.TextureVae` says."""
        return super().factor * PATCH

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002  # nothing is drawn
        """As :class:`sfd.encoders.texture_vae.TextureVae` says; ``noise`` is not read."""
        return pixel_unshuffle(self.run(self._mean, to_pixels(images)), PATCH)

    def _mean(self, pixels: Tensor) -> Tensor:
        mean: Tensor = self.autoencoder.encode(pixels).latent_dist.mean
        return mean

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """As :class:`sfd.encoders.texture_vae.TextureVae` says."""
        return super().decode(pixel_shuffle(latent, PATCH))
