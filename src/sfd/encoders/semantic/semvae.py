"""Semantic VAE (arXiv 2512.04926): a Gaussian per token over frozen encoder features. Parameter names as published."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from sfd.encoders.semantic.encoder import SemanticEncoder
from sfd.params import SemanticParams
from sfd.seeding import seeded_initialisation

LOGVAR_RANGE = (-30.0, 20.0)

CosineAxis = Literal["channels", "tokens"]
AXES: dict[CosineAxis, int] = {"channels": 2, "tokens": 1}
"""The dimension of ``(B, N, D)`` along which the cosine term compares."""


@dataclass(frozen=True)
class SemVaeConfig:
    """Widths of one SemVAE: tokens of ``input_dim`` feature channels in and out, latents of ``latent_dim`` channels per token between."""

    input_dim: int
    hidden_dim: int
    heads: int
    blocks: int
    latent_dim: int


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian per token: ``mean`` and ``logvar`` ``(B, N, latent_dim)``."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + std * noise`` for standard normal ``noise`` of the same shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL to the standard normal, summed over tokens and channels, per image ``(B,)``."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2))


class SemVaeBlock(nn.Module):
    """Pre-norm transformer block; no position embedding, since the encoder's features carry position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, width)`` -> ``(B, N, width)``."""
        normed = self.norm1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class SemVae(SemanticEncoder):
    """Tokens ``(B, N, input_dim)`` in, tokens out."""

    kind = "semvae"
    is_trained = True

    def __init__(self, shape: SemVaeConfig, cosine_over: CosineAxis = "channels") -> None:
        super().__init__()
        self.shape, self.cosine_over = shape, cosine_over
        self.encoder = _half(shape, shape.input_dim, 2 * shape.latent_dim)
        self.decoder = _half(shape, shape.latent_dim, shape.input_dim)

    @property
    def latent_channels(self) -> int:
        """Channels of the semantic latent."""
        return self.shape.latent_dim

    def encode(self, features: Tensor) -> Tensor:
        """Features ``(B, N, input_dim)`` to the posterior's mean ``(B, N, latent_dim)``."""
        return self.posterior(features).mean

    def sample(self, features: Tensor, noise: Tensor) -> Tensor:
        """Features ``(B, N, input_dim)`` to a draw from the posterior, by noise ``(B, N, latent_dim)``."""
        return self.posterior(features).sample(noise)

    def posterior(self, features: Tensor) -> Posterior:
        """Features ``(B, N, input_dim)`` to a posterior; the log-variance is clamped to [-30, 20]."""
        mean, logvar = self.run(self._encoded, features).chunk(2, dim=-1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``(B, N, latent_dim)`` to features ``(B, N, input_dim)``."""
        return self.run(self._decoded, latent)

    def _encoded(self, features: Tensor) -> Tensor:
        return self.encoder(features)

    def _decoded(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)

    def losses(self, features: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The three terms, batch means: ``mse``, ``cosine`` (1 - cosine along the axis :attr:`cosine_over`) and ``kl`` per image."""
        posterior = self.posterior(features)
        reconstruction = self.decode(posterior.sample(noise))
        return {
            "mse": mse_loss(reconstruction, features),
            "cosine": (1.0 - cosine_similarity(reconstruction, features, dim=AXES[self.cosine_over])).mean(),
            "kl": posterior.kl().mean(),
        }

    def forward(self, features: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """:meth:`losses`; data parallelism and compilation wrap ``forward``, so the training step must go through it."""
        return self.losses(features, noise)

    @classmethod
    def build(cls, params: SemanticParams, feature_dim: int, seed: int) -> Self:
        """As :class:`SemanticEncoder` says."""
        with seeded_initialisation(seed, "semantic_vae/initialisation"):
            shape = SemVaeConfig(feature_dim, params.width, params.num_heads, params.depth, params.latent_channels)
            return cls(shape, params.cosine_over)

    @staticmethod
    def loss_weights(params: SemanticParams) -> dict[str, float]:
        """As :class:`SemanticEncoder` says."""
        return {"mse": 1.0, "cosine": 1.0, "kl": params.kl_weight}

    def quality(self, features: Tensor) -> dict[str, float]:
        """The KL of the posterior, per image."""
        return {"kl_per_image": float(self.posterior(features).kl().mean())}

    def config(self) -> dict[str, Any]:
        """As :class:`SemanticEncoder` says."""
        return asdict(self.shape)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """As :class:`SemanticEncoder` says."""
        return cls(SemVaeConfig(**config))


def _half(config: SemVaeConfig, in_dim: int, out_dim: int) -> nn.Sequential:
    blocks = [SemVaeBlock(config.hidden_dim, config.heads) for _ in range(config.blocks)]
    return nn.Sequential(
        nn.Linear(in_dim, config.hidden_dim),
        *blocks,
        nn.LayerNorm(config.hidden_dim),
        nn.Linear(config.hidden_dim, out_dim),
    )
