"""Training of the semantic VAE."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.data.shards import ShardReader
from sfd.evaluation.pictures import plot_pca_features
from sfd.params import SemanticParams
from sfd.pipeline import Stage
from sfd.seeding import generator, seeded_initialisation
from sfd.semantic.features import FeatureDataset
from sfd.semantic.semvae import SemVae, SemVaeConfig, save_semvae
from sfd.training.frozen import NUM_PICTURES, train_stage
from sfd.training.loop import BatchedDataset, Tensors

QUALITY_IMAGES = 1000
"""Stored images that the reconstruction quality is measured on."""


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


def make_semantic_vae(params: SemanticParams, shards: Path, data: Prepared, stage: Stage) -> None:
    """Trains SemVAE on stored features, writes it, and logs how well it reconstructs them."""
    reader = ShardReader(shards)
    config = SemVaeConfig(
        reader.index["feature_dim"], params.width, params.num_heads, params.depth, params.latent_channels
    )
    with seeded_initialisation(stage.params.seed, "semantic_vae/initialisation"):
        network = SemVae(config)
    dataset = FeatureDataset(reader)
    task = SemVaeTask(params, network, dataset, reader.index["tokens"], stage.params.seed)
    train_stage(task, params.training, stage).copy_to(network)
    save_semvae(stage.out / "model", network)
    # Evenly spaced, since images are stored class by class.
    measured = torch.linspace(0, len(dataset) - 1, min(QUALITY_IMAGES, len(dataset))).long().tolist()
    features = dataset.__getitems__(measured)[0]
    with torch.no_grad():
        posterior = network.encode(features)
        reconstruction = network.decode(posterior.mean)
    explained = 1.0 - mse_loss(reconstruction, features) / features.var(dim=(0, 1), unbiased=False).mean()
    quality = {
        "reconstruction_cosine": float(cosine_similarity(reconstruction, features, dim=-1).mean()),
        "explained_variance": float(explained),
        "kl_per_image": float(posterior.kl().mean()),
    }
    stage.log(quality)
    shown = torch.linspace(0, len(reader) - 1, min(NUM_PICTURES, len(reader))).long().tolist()
    _picture(network, dataset, shown, data, stage)


def _picture(network: SemVae, dataset: FeatureDataset, shown: list[int], data: Prepared, stage: Stage) -> None:
    """Principal components of features and of their reconstruction, for some stored images, not mirrored."""
    side = math.isqrt(dataset.reader.index["tokens"])
    features = dataset.__getitems__([number * dataset.num_mirrorings for number in shown])[0]
    with torch.no_grad():
        reconstruction = network.decode(network.encode(features).mean)
    images = data.images(TRAIN).__getitems__([dataset.reader.index["images"][number] for number in shown])[0]
    file = stage.out / "features.png"
    plot_pca_features(features.unflatten(1, (side, side)), reconstruction.unflatten(1, (side, side)), images, file)
    stage.log_artifacts(file)
