"""Semantic latents by principal components of the encoder's patch features (ReDi, arXiv 2504.16064): the baseline without training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sfd.errors import UserError


class PcaSemantic(nn.Module):
    """Tokens in, tokens out: ``latent = components @ (features - mean)``, and the linear reconstruction back."""

    mean: Tensor
    components: Tensor

    def __init__(self, input_dim: int, latent_channels: int) -> None:
        """``mean`` ``(input_dim,)`` and orthonormal ``components`` ``(latent_channels, input_dim)`` come from :func:`fit_pca` or a file."""
        super().__init__()
        self.input_dim, self.latent_channels = input_dim, latent_channels
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("components", torch.zeros(latent_channels, input_dim))

    def encode(self, features: Tensor) -> Tensor:
        """Features ``(B, N, input_dim)`` to the latent ``(B, N, latent_channels)``."""
        return (features - self.mean) @ self.components.T

    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``(B, N, latent_channels)`` to features ``(B, N, input_dim)``."""
        return latent @ self.components + self.mean


def fit_pca(batches: Iterable[Tensor], input_dim: int, latent_channels: int) -> PcaSemantic:
    """The leading eigenvectors of the covariance of all tokens in batches ``(B, N, input_dim)``, one batch in memory at a time.

    Exact and in float64 (``torch.pca_lowrank`` draws random numbers). An eigenvector's sign is arbitrary: here its entry of largest
    magnitude is positive.

    Raises:
        UserError: there are more components than features, or a feature is not finite.
    """
    if latent_channels > input_dim:
        raise UserError(
            f"semantic.latent_channels is {latent_channels}, but the encoder's features have {input_dim} channels; lower it"
        )
    count, total, products = 0, torch.zeros(input_dim).double(), torch.zeros(input_dim, input_dim).double()
    for batch in batches:
        tokens = batch.double().flatten(0, 1)
        count, total, products = count + len(tokens), total + tokens.sum(0).cpu(), products + (tokens.T @ tokens).cpu()
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    if not covariance.isfinite().all():
        raise UserError("a stored feature is not finite; check the encoder's weights, then run stage `features` again")
    components = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:latent_channels]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    network = PcaSemantic(input_dim, latent_channels)
    network.mean.copy_(mean)
    network.components.copy_(components * largest.sign())
    return network.eval()
