"""Training of the semantic VAE."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfd.params import SemanticParams
from sfd.seeding import generator
from sfd.training.loop import BatchedDataset, Tensors


class SemVaeTask:
    """MSE + cosine + KL (arXiv 2512.04926)."""

    purpose = "semantic_vae"

    def __init__(
        self, params: SemanticParams, network: nn.Module, dataset: BatchedDataset, num_tokens: int, seed: int
    ) -> None:
        self.network, self.dataset, self.seed = network, dataset, seed
        self.latent_shape = (num_tokens, params.latent_channels)
        self.weights: Mapping[str, float] = {"mse": 1.0, "cosine": 1.0, "kl": params.kl_weight}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensors:
        """The posterior's noise ``(B, N, C_sem)``."""
        random = generator(self.seed, "semantic_vae/posterior", step, device)
        return (torch.randn(batch_size, *self.latent_shape, generator=random, device=device),)

    def losses(self, network: nn.Module, data: Tensors, noise: Tensors) -> dict[str, Tensor]:
        """The three terms, batch means."""
        terms: dict[str, Tensor] = network(data[0], noise[0])
        return terms
