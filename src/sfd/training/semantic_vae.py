"""Training of a semantic encoder on stored features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfd.data.batches import BatchedDataset
from sfd.encoders.semantic.encoder import SemanticEncoder
from sfd.encoders.semantic.features import FeatureBatch
from sfd.params import SemanticParams
from sfd.seeding import generator


class SemanticTask:
    """The terms of the loss and their weights are the network's own."""

    purpose = "semantic_vae"

    def __init__(
        self,
        params: SemanticParams,
        network: SemanticEncoder,
        dataset: BatchedDataset[FeatureBatch],
        num_tokens: int,
        seed: int,
    ) -> None:
        self.network, self.dataset, self.seed = network, dataset, seed
        self.latent_shape = (num_tokens, params.latent_channels)
        self.weights: Mapping[str, float] = network.loss_weights(params)

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        """The noise of a sample of the latent, ``(B, N, C_sem)``."""
        random = generator(self.seed, "semantic_vae/posterior", step, device)
        return torch.randn(batch_size, *self.latent_shape, generator=random, device=device)

    def losses(self, network: nn.Module, data: FeatureBatch, noise: Tensor) -> dict[str, Tensor]:
        """The terms, batch means."""
        terms: dict[str, Tensor] = network(data.features.float(), noise)
        return terms
