"""From images to composite latents: the texture VAE, and beside it the vision encoder followed by the semantic encoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfd.data.networks import ENCODER, SEMANTIC, TEXTURE_VAE, Networks
from sfd.data.transfer import send
from sfd.encoders.semantic.encoder import SemanticEncoder, load_semantic
from sfd.encoders.texture_vae import TextureVae, load_texture_vae
from sfd.encoders.tiles import join_tokens, map_to_tokens, split_tiles, split_tokens, tokens_to_map
from sfd.encoders.vision import VisionEncoder, load_encoder
from sfd.errors import UserError
from sfd.network_files import network_digest
from sfd.params import Params, shared_grid
from sfd.precision import Inference
from sfd.seeding import generator


@dataclass(frozen=True)
class CompositeEncoder:
    """Texture latent (a sample of the posterior) and semantic latent, stacked on channels.

    ``encoder`` is None if nothing needs features, ``semantic`` is None if the composite is texture alone. ``draws_semantics``: the semantic latent
    is a sample of the posterior, too, and not its mean. ``tiles``: parts along one side that are encoded to features and semantics one by one.
    """

    texture_vae: TextureVae
    encoder: VisionEncoder | None
    semantic: SemanticEncoder | None
    seed: int
    device: torch.device
    draws_semantics: bool = False
    tiles: int = 1

    @classmethod
    def load(cls, params: Params, results: Path, seed: int, inference: Inference) -> "CompositeEncoder":
        """Loads the results of stages ``texture_vae``, ``encoder`` and ``semantic``; only what is needed."""
        encoder = inference.place(load_encoder(results / "encoder/model")) if params.needs_features else None
        has_semantics, draws = params.semantic.kind != "none", params.latents.draws_semantics
        semantic = inference.place(load_semantic(results / "semantic/model")) if has_semantics else None
        texture_vae = inference.place(load_texture_vae(results / "texture_vae/model"))
        return cls(texture_vae, encoder, semantic, seed, inference.device, draws, params.latents.tiles)

    @staticmethod
    def networks(params: Params, results: Path) -> Networks:
        """The networks that the latents come from. The encoder counts where there are semantic latents: what REPA compares with may be another."""
        has_semantics = params.semantic.kind != "none"
        return {
            TEXTURE_VAE: network_digest(results / "texture_vae/model"),
            ENCODER: network_digest(results / "encoder/model") if has_semantics else None,
            SEMANTIC: network_digest(results / "semantic/model") if has_semantics else None,
        }

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
            patches = self.encoder.patches if self.encoder is not None else None
            return shared_grid(image_size, self.texture_vae.factor, patches, self.tiles)
        except ValueError as error:
            raise UserError(str(error)) from None

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: list[int]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(B, 3, S, S)`` -> latent ``(B, C, H, W)`` and features ``(B, N, D)``.

        ``draws``: one number per image, which with the seed decides its draws of the posteriors. Without an encoder, D = 0.
        """
        shape = self.texture_vae.latent_shape(1, images.shape[-1])[1:]
        images = images.to(self.device, non_blocking=True)
        texture = self.texture_vae.encode(images, self._noise("latents/posterior", shape, draws))
        if self.encoder is None:
            return texture, texture.new_empty(len(images), shape[-1] ** 2, 0)
        features = self.encoder(split_tiles(images, self.tiles) if self.tiles > 1 else images)
        if self.semantic is None:
            return texture, join_tokens(features, self.tiles)
        if self.draws_semantics:
            noise = self._noise("latents/semantic", (self.semantic_channels, *shape[1:]), draws)
            latent = self.semantic.sample(features, split_tokens(map_to_tokens(noise), self.tiles))
        else:
            latent = self.semantic.encode(features)
        semantic = tokens_to_map(join_tokens(latent, self.tiles))
        return torch.cat([texture, semantic], dim=1), join_tokens(features, self.tiles)

    def _noise(self, purpose: str, shape: tuple[int, ...], draws: list[int]) -> Tensor:
        """Standard normal noise of this shape for each image, drawn on the CPU, so that it is the same on every device."""
        noise = torch.stack([torch.randn(shape, generator=generator(self.seed, purpose, draw)) for draw in draws])
        return send(noise, self.device)
