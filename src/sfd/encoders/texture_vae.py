"""The frozen texture VAE, a diffusers ``AutoencoderKL``: pretrained by name, from a folder, or a small one trained here."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.network_files import with_default_mode
from sfd.params import TextureVaeParams
from sfd.seeding import seeded_initialisation


class TextureVae(nn.Module):
    """Images to texture latents and back. The autoencoder itself takes and gives pixels in [-1, 1]."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    @property
    def latent_channels(self) -> int:
        """Channels of the texture latent."""
        return int(self.autoencoder.config.latent_channels)

    @property
    def factor(self) -> int:
        """Pixels per latent position along one side."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    def latent_shape(self, num_images: int, image_size: int) -> tuple[int, int, int, int]:
        """Shape ``(B, C, S/f, S/f)`` of the latents of B = ``num_images`` images."""
        return num_images, self.latent_channels, image_size // self.factor, image_size // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images uint8 ``(B, 3, S, S)`` and standard normal noise ``(B, C, S/f, S/f)`` -> a sample of the posterior, shaped as the noise."""
        posterior = self.autoencoder.encode(to_pixels(images)).latent_dist
        latent: Tensor = posterior.mean + posterior.std * noise
        return latent

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``(B, C, S/f, S/f)`` -> images uint8 ``(B, 3, S, S)``."""
        return to_uint8(self.autoencoder.decode(latent).sample)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(pixels: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 [0, 255], rounded."""
    return ((pixels.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


class TrainableAutoencoder(nn.Module):
    """A small, freshly initialised ``AutoencoderKL`` with the forward pass that training needs."""

    def __init__(self, params: TextureVaeParams, seed: int) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        levels = len(params.channels)
        with seeded_initialisation(seed, "texture_vae/initialisation"):
            self.autoencoder: Any = AutoencoderKL(
                block_out_channels=list(params.channels),
                down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels,
                layers_per_block=params.layers_per_block,
                latent_channels=params.latent_channels,
                norm_num_groups=math.gcd(8, *params.channels),
            )

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``(B, 3, S, S)``, noise of the latent's shape -> reconstruction and KL per image ``(B,)``."""
        posterior = self.autoencoder.encode(pixels).latent_dist
        reconstruction = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction, posterior.kl()


def load_pretrained(params: TextureVaeParams) -> TextureVae:
    """An ``AutoencoderKL`` by its hub name or from a folder in diffusers' layout.

    Raises:
        UserError: the hub cannot be reached, or the folder holds no such model.
    """
    from diffusers import AutoencoderKL

    origin = params.file if params.source == "file" else params.name
    try:
        return TextureVae(AutoencoderKL.from_pretrained(origin, local_files_only=params.source == "file")).eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        remedy = (
            "give a folder with config.json and diffusion_pytorch_model.safetensors"
            if params.source == "file"
            else "check the name and the connection, or download it elsewhere and set texture_vae.source: file and texture_vae.file: FOLDER"
        )
        raise UserError(f"the texture VAE {origin} could not be loaded: {reason}; {remedy}") from error


def save_texture_vae(folder: Path, vae: TextureVae) -> None:
    """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors``, the layout of diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    with with_default_mode(folder / "diffusion_pytorch_model.safetensors"):
        vae.autoencoder.save_pretrained(folder)


def load_texture_vae(folder: Path) -> TextureVae:
    """Inverse of :func:`save_texture_vae`, in evaluation mode."""
    from diffusers import AutoencoderKL

    return TextureVae(AutoencoderKL.from_pretrained(folder, local_files_only=True)).eval().requires_grad_(False)
