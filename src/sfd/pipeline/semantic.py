"""Stage ``semantic``: SemVAE, principal components, or nothing; and how well the features come back."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.data.shards import ShardReader
from sfd.encoders.semantic.features import FeatureDataset
from sfd.encoders.semantic.files import SemanticEncoder, save_pca
from sfd.encoders.semantic.pca import PcaSemantic, fit_pca
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig, save_semvae
from sfd.params import SemanticParams
from sfd.pictures import plot_pca_features
from sfd.pipeline.networks import NUM_PICTURES
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.processes import inference_device
from sfd.seeding import seeded_initialisation
from sfd.training.semantic_vae import SemVaeTask

QUALITY_IMAGES = 1000
"""Stored images that the reconstruction quality is measured on."""

PCA_BATCH = 64
"""Stored images that are in memory at a time while components are fitted."""


def make_semantic(params: SemanticParams, shards: Path, data: Prepared, stage: Stage) -> None:
    """Writes the semantic encoder as ``semantic.kind`` says, and logs how well it reconstructs features; nothing for kind `none`."""
    if params.kind == "none":
        return
    dataset = FeatureDataset(ShardReader(shards))
    network: SemanticEncoder
    if params.kind == "pca":
        network = _fit(params, dataset)
        save_pca(stage.out / "model", network)
    else:
        network = train_semantic_vae(params, dataset, stage)
        save_semvae(stage.out / "model", network)
    stage.log(_quality(network, dataset))
    _picture(network, dataset, data, stage)


def _fit(params: SemanticParams, dataset: FeatureDataset) -> PcaSemantic:
    """Components of all stored tokens, every view."""

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(dataset), PCA_BATCH):
            indices = list(range(start, min(start + PCA_BATCH, len(dataset))))
            yield dataset.__getitems__(indices)[0].to(inference_device())

    return fit_pca(batches(), dataset.reader.index["feature_dim"], params.latent_channels)


@torch.no_grad()
def _quality(network: SemanticEncoder, dataset: FeatureDataset) -> dict[str, float]:
    # Evenly spaced, since images are stored class by class.
    measured = torch.linspace(0, len(dataset) - 1, min(QUALITY_IMAGES, len(dataset))).long().tolist()
    features = dataset.__getitems__(measured)[0]
    reconstruction = network.decode(network.encode(features))
    explained = 1.0 - mse_loss(reconstruction, features) / features.var(dim=(0, 1), unbiased=False).mean()
    quality = {
        "reconstruction_cosine": float(cosine_similarity(reconstruction, features, dim=-1).mean()),
        "explained_variance": float(explained),
    }
    if isinstance(network, SemVae):
        quality["kl_per_image"] = float(network.posterior(features).kl().mean())
    return quality


def _picture(network: SemanticEncoder, dataset: FeatureDataset, data: Prepared, stage: Stage) -> None:
    """Principal components of features and of their reconstruction, for some stored images, not mirrored."""
    reader = dataset.reader
    shown = torch.linspace(0, len(reader) - 1, min(NUM_PICTURES, len(reader))).long().tolist()
    side = math.isqrt(reader.index["tokens"])
    features = dataset.__getitems__([number * dataset.num_views for number in shown])[0]
    with torch.no_grad():
        reconstruction = network.decode(network.encode(features))
    images = data.images(TRAIN).__getitems__([reader.index["images"][number] for number in shown])[0]
    file = stage.out / "features.png"
    plot_pca_features(features.unflatten(1, (side, side)), reconstruction.unflatten(1, (side, side)), images, file)
    stage.log_artifacts(file)


def train_semantic_vae(params: SemanticParams, dataset: FeatureDataset, stage: Stage) -> SemVae:
    """SemVAE, trained on stored features."""
    facts = dataset.reader.index
    config = SemVaeConfig(facts["feature_dim"], params.width, params.num_heads, params.depth, params.latent_channels)
    with seeded_initialisation(stage.params.seed, "semantic_vae/initialisation"):
        network = SemVae(config)
    task = SemVaeTask(params, network, dataset, facts["tokens"], stage.params.seed)
    train_stage(task, params.training, stage).copy_to(network)
    return network
