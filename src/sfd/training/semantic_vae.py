"""Training of the semantic VAE."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfd.params import SemanticParams
from sfd.pipeline import Stage
from sfd.seeding import generator, seeded_initialisation
from sfd.semantic.features import FeatureDataset
from sfd.semantic.semvae import SemVae, SemVaeConfig
from sfd.training.frozen import train_stage
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


def train_semantic_vae(params: SemanticParams, dataset: FeatureDataset, stage: Stage) -> SemVae:
    """SemVAE, trained on stored features."""
    facts = dataset.reader.index
    config = SemVaeConfig(facts["feature_dim"], params.width, params.num_heads, params.depth, params.latent_channels)
    with seeded_initialisation(stage.params.seed, "semantic_vae/initialisation"):
        network = SemVae(config)
    task = SemVaeTask(params, network, dataset, facts["tokens"], stage.params.seed)
    train_stage(task, params.training, stage).copy_to(network)
    return network
