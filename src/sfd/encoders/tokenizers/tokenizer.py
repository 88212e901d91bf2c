"""The base class of tokenizers that are fitted here. A new one is one file beside this one and one line of ``names.TOKENIZERS``."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfd.encoders.texture_vae import TextureVae
from sfd.encoders.tokenizers.residual import ResidualDecoder
from sfd.errors import UserError
from sfd.network_files import CONFIG, load_weights, read_config, save_network
from sfd.params import TextureVaeParams
from sfd.pixels import to_pixels, to_uint8


class Tokenizer(TextureVae):
    """Images to latents and back, with weights that :meth:`fit` computes in one pass over training images.

    Stage ``texture_vae`` builds and fits it. It encodes without noise. Only its residual follows the precision of stages: what is fitted costs
    little, and is computed in float32.

    Attributes:
        kind: its name in ``names.TOKENIZERS``, and in ``config.json``.
        residual: a network that improves what it decodes, if one was trained.
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.residual: ResidualDecoder | None = None

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, S, S)`` in [-1, 1] -> latent ``(B, C, S/f, S/f)``."""

    @abstractmethod
    def decode_pixels(self, latent: Tensor) -> Tensor:
        """Latent ``(B, C, S/f, S/f)`` -> pixels ``(B, 3, S, S)``, not clipped to [-1, 1]; without the residual."""

    @classmethod
    @abstractmethod
    def build(cls, params: TextureVaeParams) -> Self:
        """The tokenizer that the parameters describe, not yet fitted."""

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Computes its weights. Training images come in batches uint8 ``(B, 3, S, S)``, one in memory at a time."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values from which :meth:`from_config` builds a tokenizer of the same shape; ``latent_channels`` is among them."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Inverse of :meth:`config`. Raises ``TypeError`` for a record that does not fit."""

    @torch.no_grad()
    def encode(self, images: Tensor, _noise: Tensor) -> Tensor:
        """As :class:`TextureVae` says; there is no noise in it."""
        return self.encode_pixels(to_pixels(images))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """As :class:`TextureVae` says."""
        pixels = self.decode_pixels(latent)
        return to_uint8(pixels if self.residual is None else self.run(self._improved, pixels))

    def _improved(self, pixels: Tensor) -> Tensor:
        assert self.residual is not None
        improved: Tensor = self.residual(pixels)
        return improved

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``."""
        width = None if self.residual is None else self.residual.width
        save_network(folder, self, {"kind": self.kind, "residual_width": width, **self.config()})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Inverse of :meth:`save`. Raises :class:`UserError` if files are missing or do not fit."""
        config = read_config(folder)
        del config["kind"]
        try:
            width = config.pop("residual_width")
            tokenizer = cls.from_config(config)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{folder / CONFIG} does not describe a tokenizer of kind `{cls.kind}`: {error}; rerun the stage that makes it"
            ) from error
        if width is not None:
            tokenizer.residual = ResidualDecoder(tokenizer.factor, width)
        load_weights(folder, tokenizer)
        return tokenizer
