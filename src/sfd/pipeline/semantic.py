"""Stage ``semantic``: a semantic encoder, fitted or trained, or nothing; and how well it reconstructs features."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.semantic.encoder import SemanticEncoder, save_semantic, semantic_class
from sfd.encoders.semantic.features import FeatureDataset
from sfd.params import SemanticParams
from sfd.pictures import NUM_PAIRS, plot_pca_features
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.processes import inference_device
from sfd.training.semantic_vae import SemanticTask

QUALITY_IMAGES = 1000
"""Stored images that the reconstruction quality is measured on."""

FIT_BATCH = 64
"""Stored images that are in memory at a time while an encoder is fitted."""


def make_semantic(params: SemanticParams, shards: Path, data: Prepared, stage: Stage) -> None:
    """Writes the semantic encoder as ``semantic.kind`` says, and how well it reconstructs features; nothing for kind `none`."""
    if params.kind == "none":
        return
    dataset = FeatureDataset(shards)
    network = semantic_class(params.kind).build(params, dataset.index.feature_dim, stage.params.seed)
    if network.is_trained:
        task = SemanticTask(params, network, dataset, dataset.index.tokens, stage.params.seed)
        train_stage(task, params.training, stage.params.runtime.semantic, stage).copy_to(network)
    else:
        network.fit(_batches(dataset))
    save_semantic(stage.out / "model", network)
    _picture(network, dataset, data, stage)
    record_quality(stage, _quality(network, dataset))


def _batches(dataset: FeatureDataset) -> Iterator[Tensor]:
    """All stored features, every view."""
    for start in range(0, len(dataset), FIT_BATCH):
        indices = list(range(start, min(start + FIT_BATCH, len(dataset))))
        yield dataset.__getitems__(indices).features.to(inference_device())


@torch.no_grad()
def _quality(network: SemanticEncoder, dataset: FeatureDataset) -> dict[str, float]:
    # Evenly spaced, since images are stored class by class.
    measured = torch.linspace(0, len(dataset) - 1, min(QUALITY_IMAGES, len(dataset))).long().tolist()
    features = dataset.__getitems__(measured).features
    reconstruction = network.decode(network.encode(features))
    explained = 1.0 - mse_loss(reconstruction, features) / features.var(dim=(0, 1), unbiased=False).mean()
    quality = {
        "reconstruction_cosine": float(cosine_similarity(reconstruction, features, dim=-1).mean()),
        "explained_variance": float(explained),
    }
    return quality | network.quality(features)


def _picture(network: SemanticEncoder, dataset: FeatureDataset, data: Prepared, stage: Stage) -> None:
    """Principal components of features and of their reconstruction, for some stored images, not mirrored."""
    index, stored = dataset.index, dataset.index.images
    shown = torch.linspace(0, len(stored) - 1, min(NUM_PAIRS, len(stored))).long().tolist()
    side = math.isqrt(index.tokens)
    features = dataset.__getitems__([number * index.num_views for number in shown]).features
    with torch.no_grad():
        reconstruction = network.decode(network.encode(features))
    images = data.images(TRAIN).__getitems__([stored[number] for number in shown]).images
    file = stage.out / "features.png"
    plot_pca_features(features.unflatten(1, (side, side)), reconstruction.unflatten(1, (side, side)), images, file)
    stage.log_artifacts(file)
