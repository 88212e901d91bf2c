"""From images to composite latents: the texture VAE, and beside it the vision encoder followed by the semantic encoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfd.encoders.semantic.encoder import SemanticEncoder, load_semantic
from sfd.encoders.texture_vae import TextureVae, load_texture_vae
from sfd.encoders.vision import VisionEncoder, load_encoder
from sfd.errors import UserError
from sfd.params import Params, shared_grid
from sfd.seeding import generator


@dataclass(frozen=True)
class CompositeEncoder:
    """Texture latent (a sample of the posterior) and semantic latent, stacked on channels.

    ``encoder`` is None if nothing needs features, ``semantic`` is None if the composite is texture alone.
    """

    texture_vae: TextureVae
    encoder: VisionEncoder | None
    semantic: SemanticEncoder | None
    seed: int
    device: torch.device

    @classmethod
    def load(cls, params: Params, results: Path, seed: int, device: torch.device) -> "CompositeEncoder":
        """Loads the results of stages ``texture_vae``, ``encoder`` and ``semantic``; only what is needed."""
        encoder = load_encoder(results / "encoder/model").to(device) if params.needs_features else None
        semantic = load_semantic(results / "semantic/model").to(device) if params.semantic.kind != "none" else None
        return cls(load_texture_vae(results / "texture_vae/model").to(device), encoder, semantic, seed, device)

    @property
    def semantic_channels(self) -> int:
        """C_sem; 0 without semantics."""
        return self.semantic.latent_channels if self.semantic is not None else 0

    @property
    def feature_dim(self) -> int:
        """Channels of a patch feature; 0 without an encoder."""
        return self.encoder.feature_dim if self.encoder is not None else 0

    def check_grid(self, image_size: int) -> int:
        """Positions along one side of the latents. Raises :class:`UserError` if texture and semantics have different grids."""
        try:
            return shared_grid(
                image_size, self.texture_vae.factor, self.encoder.patches if self.encoder is not None else None
            )
        except ValueError as error:
            raise UserError(str(error)) from None

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(B, 3, S, S)`` -> latent ``(B, C, H, W)`` and features ``(B, N, D)``.

        ``draws``: one number per image, which with the seed decides its draw of the posterior. Without an encoder, D = 0.
        """
        shape = self.texture_vae.latent_shape(1, images.shape[-1])[1:]
        noise = torch.stack(
            [torch.randn(shape, generator=generator(self.seed, "latents/posterior", draw)) for draw in draws]
        )
        images = images.to(self.device)
        texture = self.texture_vae.encode(images, noise.to(self.device))
        if self.encoder is None:
            return texture, texture.new_empty(len(images), shape[-1] ** 2, 0)
        features = self.encoder(images)
        if self.semantic is None:
            return texture, features
        grid = self.encoder.grid
        semantic = self.semantic.encode(features).transpose(1, 2).unflatten(2, (grid, grid))
        return torch.cat([texture, semantic], dim=1), features
