"""The frozen texture VAE: a diffusers ``AutoencoderKL`` (by name, from a folder, or trained here), one of Flux2 from a folder, or a tokenizer
that is fitted here."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.names import TOKENIZERS
from sfd.network_files import CONFIG, read_config, read_implementation, with_default_mode
from sfd.params import TextureVaeParams
from sfd.pixels import to_pixels, to_uint8
from sfd.precision import InferenceNetwork
from sfd.seeding import seeded_initialisation

FLUX2 = "AutoencoderKLFlux2"
"""The class of diffusers that ``config.json`` of Flux2's autoencoder names."""


class TextureVae(InferenceNetwork, ABC):
    """Images to texture latents and back: an autoencoder of diffusers, or a tokenizer that is fitted here.

    An implementation calls its network by :meth:`run`, so that it computes in the precision of the stage.
    """

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the texture latent."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels per latent position along one side."""

    @abstractmethod
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images uint8 ``(B, 3, S, S)`` and standard normal noise ``(B, C, S/f, S/f)`` -> latent, shaped as the noise.

        The noise draws from the posterior of those that have one.
        """

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``(B, C, S/f, S/f)`` -> images uint8 ``(B, 3, S, S)``."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what :func:`load_texture_vae` reads."""

    def latent_shape(self, num_images: int, image_size: int) -> tuple[int, int, int, int]:
        """Shape ``(B, C, S/f, S/f)`` of the latents of B = ``num_images`` images."""
        return num_images, self.latent_channels, image_size // self.factor, image_size // self.factor


class KlVae(TextureVae):
    """A diffusers ``AutoencoderKL``. The autoencoder itself takes and gives pixels in [-1, 1]."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    @property
    def latent_channels(self) -> int:
        """As :class:`TextureVae` says."""
        return int(self.autoencoder.config.latent_channels)

    @property
    def factor(self) -> int:
        """As :class:`TextureVae` says."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """As :class:`TextureVae` says: a sample of the posterior."""
        mean, std = self.run(self._posterior, to_pixels(images))
        return mean + std * noise

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.autoencoder.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """As :class:`TextureVae` says."""
        return to_uint8(self.run(self._pixels, latent))

    def _pixels(self, latent: Tensor) -> Tensor:
        pixels: Tensor = self.autoencoder.decode(latent).sample
        return pixels

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors``, the layout of diffusers."""
        folder.mkdir(parents=True, exist_ok=True)
        with with_default_mode(folder / "diffusion_pytorch_model.safetensors"):
            self.autoencoder.save_pretrained(folder)


class TrainableAutoencoder(nn.Module):
    """A small, freshly initialised ``AutoencoderKL`` with the forward pass that training needs."""

    def __init__(self, params: TextureVaeParams, seed: int) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

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

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels ``(B, 3, S, S)``, noise of the latent's shape -> reconstruction, KL per image ``(B,)``, and the latent that was decoded."""
        posterior = self.autoencoder.encode(pixels).latent_dist
        latent = posterior.mean + posterior.std * noise
        return self.autoencoder.decode(latent).sample, posterior.kl(), latent


def load_pretrained(params: TextureVaeParams) -> TextureVae:
    """An ``AutoencoderKL`` by its hub name, or what a folder holds: one in diffusers' layout, also of Flux2, or a tokenizer that was fitted by sfd.

    Raises:
        UserError: the hub cannot be reached, or the folder holds no such model.
    """
    folder = params.file if params.source == "file" else None
    if folder is not None and (folder / CONFIG).is_file():
        config = read_config(folder)
        if "kind" in config or config.get("_class_name") == FLUX2:
            return load_texture_vae(folder)
    from diffusers import AutoencoderKL

    origin = folder or params.name
    try:
        return KlVae(AutoencoderKL.from_pretrained(origin, local_files_only=params.source == "file")).eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        remedy = (
            "give a folder with config.json and diffusion_pytorch_model.safetensors"
            if params.source == "file"
            else "check the name and the connection, or download it elsewhere and set texture_vae.source: file and texture_vae.file: FOLDER"
        )
        raise UserError(f"the texture VAE {origin} could not be loaded: {reason}; {remedy}") from error


def load_texture_vae(folder: Path) -> TextureVae:
    """Inverse of :meth:`TextureVae.save`, in evaluation mode. A tokenizer's ``config.json`` has a ``kind``, that of diffusers a ``_class_name``.

    Raises:
        UserError: ``config.json`` is missing, or the files of a tokenizer do not fit.
    """
    vae: TextureVae
    config = read_config(folder)
    if "kind" in config:
        vae = read_implementation(folder, TOKENIZERS).load(folder)
    elif config.get("_class_name") == FLUX2:
        from diffusers import AutoencoderKLFlux2

        from sfd.encoders.flux2_vae import Flux2Vae

        vae = Flux2Vae(AutoencoderKLFlux2.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32))
    else:
        from diffusers import AutoencoderKL

        vae = KlVae(AutoencoderKL.from_pretrained(folder, local_files_only=True))
    return vae.eval().requires_grad_(False)
