"""From images to composite latents: texture VAE and encoder + SemVAE side by side."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfd.encoders.texture_vae import TextureVae
from sfd.encoders.vision import VisionEncoder
from sfd.errors import UserError
from sfd.seeding import generator
from sfd.semantic.semvae import SemVae


@dataclass(frozen=True)
class CompositeEncoder:
    """Texture latent (a sample of the posterior) and semantic latent (the posterior's mean), stacked on channels."""

    texture_vae: TextureVae
    encoder: VisionEncoder
    semvae: SemVae
    seed: int
    device: torch.device

    def check_grid(self, image_size: int) -> int:
        """The latents' side. Raises :class:`UserError` if texture and semantics do not share one grid."""
        texture_grid = image_size // self.texture_vae.factor
        if texture_grid != self.encoder.grid:
            raise UserError(
                f"texture and semantic latents must share one grid, but data.image_size {image_size} / {self.texture_vae.factor} = {texture_grid} "
                f"and the encoder has {self.encoder.grid} patches a side; change data.image_size or encoder.input_size"
            )
        return texture_grid

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(B, 3, S, S)`` and the number of each one's posterior draw -> latent ``(B, C, H, W)``, features ``(B, N, D)``."""
        shape = self.texture_vae.latent_shape(1, images.shape[-1])[1:]
        noise = torch.stack(
            [torch.randn(shape, generator=generator(self.seed, "latents/posterior", draw)) for draw in draws]
        )
        images = images.to(self.device)
        texture = self.texture_vae.encode(images, noise.to(self.device))
        features = self.encoder(images)
        semantic = (
            self.semvae.encode(features).mean.transpose(1, 2).unflatten(2, (self.encoder.grid, self.encoder.grid))
        )
        return torch.cat([texture, semantic], dim=1), features
