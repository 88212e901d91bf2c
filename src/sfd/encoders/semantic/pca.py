"""Semantic latents by principal components of the encoder's patch features (ReDi, arXiv 2504.16064): a baseline without training."""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor

from sfd.encoders.components import leading_components, moments
from sfd.encoders.semantic.encoder import SemanticEncoder
from sfd.errors import UserError
from sfd.params import SemanticParams


class PcaSemantic(SemanticEncoder):
    """Tokens in, tokens out: ``latent = components @ (features - mean)``, and the linear reconstruction back."""

    kind = "pca"
    is_trained = False
    mean: Tensor
    components: Tensor

    def __init__(self, input_dim: int, latent_channels: int) -> None:
        """``mean`` ``(input_dim,)`` and orthonormal ``components`` ``(latent_channels, input_dim)`` come from :meth:`fit` or a file."""
        super().__init__()
        self.input_dim = input_dim
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("components", torch.zeros(latent_channels, input_dim))

    @property
    def latent_channels(self) -> int:
        """As :class:`SemanticEncoder` says."""
        return len(self.components)

    def encode(self, features: Tensor) -> Tensor:
        """Features ``(B, N, input_dim)`` to the latent ``(B, N, latent_channels)``."""
        return (features - self.mean) @ self.components.T

    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``(B, N, latent_channels)`` to features ``(B, N, input_dim)``."""
        return latent @ self.components + self.mean

    @classmethod
    def build(cls, params: SemanticParams, feature_dim: int, _seed: int) -> Self:
        """As :class:`SemanticEncoder` says; no seed is needed. Raises :class:`UserError` for more components than feature channels."""
        if params.latent_channels > feature_dim:
            raise UserError(
                f"semantic.latent_channels is {params.latent_channels}, but the encoder's features have {feature_dim} channels; lower it"
            )
        return cls(feature_dim, params.latent_channels)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """The leading principal components of all tokens.

        Raises:
            UserError: a feature is not finite.
        """
        mean, covariance = moments((batch.flatten(0, 1) for batch in batches), self.input_dim)
        if not covariance.isfinite().all():
            raise UserError(
                "a stored feature is not finite; check the encoder's weights, then run stage `features` again"
            )
        self.mean.copy_(mean)
        self.components.copy_(leading_components(covariance, self.latent_channels)[1])

    def config(self) -> dict[str, Any]:
        """As :class:`SemanticEncoder` says."""
        return {"input_dim": self.input_dim, "latent_channels": self.latent_channels}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """As :class:`SemanticEncoder` says."""
        return cls(**config)
