"""Stage ``semantic``: a semantic encoder, fitted, trained or from a file, or nothing; and how well it reconstructs features."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.semantic.encoder import SemanticEncoder, load_semantic, save_semantic, semantic_class
from sfd.encoders.semantic.features import REPORT_IMAGES, FeatureDataset
from sfd.encoders.semantic.given import check_given
from sfd.params import SemanticParams
from sfd.pictures import NUM_PAIRS, plot_pca_features
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import check_shards, train_stage
from sfd.precision import Inference
from sfd.processes import inference_device
from sfd.training.semantic_vae import SemanticTask

BATCH = 64
"""Stored images that are in memory at a time while an encoder is fitted or measured."""


def make_semantic(params: SemanticParams, shards: Path, data: Prepared, stage: Stage) -> None:
    """Writes the semantic encoder as ``semantic.kind`` says, and how well it reconstructs features; nothing for kind `none`."""
    if params.kind == "none":
        return
    dataset = FeatureDataset(shards)
    network = _make(params, dataset, stage)
    save_semantic(stage.out / "model", network)
    _picture(network, dataset, data, stage)
    record_quality(stage, _quality(network, dataset))


def _make(params: SemanticParams, dataset: FeatureDataset, stage: Stage) -> SemanticEncoder:
    check = partial(check_shards, stage.workspace, "features", [dataset.reader])
    if params.file is not None:
        check()
        folder = stage.workspace.resolve(params.file)
        check_given(folder, params, dataset.index.feature_dim)
        return load_semantic(folder)
    network = semantic_class(params.kind).build(params, dataset.index.feature_dim, stage.params.seed)
    if network.is_trained:
        task = SemanticTask(params, network, dataset, dataset.index.tokens, stage.params.seed)
        train_stage(task, params.training, stage.params.runtime.semantic, stage, check).copy_to(network)
    else:
        check()
        network.fit(_batches(dataset, range(len(dataset))))
    return network


def _batches(dataset: FeatureDataset, chosen: Sequence[int]) -> Iterator[Tensor]:
    """The stored features of these samples (image and view)."""
    for start in range(0, len(chosen), BATCH):
        yield dataset.__getitems__(list(chosen[start : start + BATCH])).features.to(inference_device()).float()


@torch.no_grad()
def _quality(network: SemanticEncoder, dataset: FeatureDataset) -> dict[str, float]:
    """How well the network gives the features back: means over samples, and the explained share of the features' variance."""
    # Evenly spaced, since images are stored class by class.
    chosen = torch.linspace(0, len(dataset) - 1, min(REPORT_IMAGES, len(dataset))).long().tolist()
    network = network.to(inference_device())
    sums: dict[str, float] = defaultdict(float)
    total, squares = torch.zeros(dataset.index.feature_dim).double(), torch.zeros(dataset.index.feature_dim).double()
    error = torch.zeros(()).double()
    for features in _batches(dataset, chosen):
        with Inference.float32().arithmetic():
            reconstruction = network.decode(network.encode(features))
        cosine = float(cosine_similarity(reconstruction, features, dim=-1).mean())
        for name, mean in {"reconstruction_cosine": cosine, **network.quality(features)}.items():
            sums[name] += mean * len(features)
        error += (reconstruction - features).double().square().sum().cpu()
        rows = features.double().flatten(0, 1)
        total, squares = total + rows.sum(0).cpu(), squares + rows.square().sum(0).cpu()
    network.cpu()
    count = len(chosen) * dataset.index.tokens
    variance = count * (squares / count - (total / count).square()).sum()
    means = {name: value / len(chosen) for name, value in sums.items()}
    return {
        "reconstruction_cosine": means.pop("reconstruction_cosine"),
        "explained_variance": float(1.0 - error / variance),
        **means,
    }


def _picture(network: SemanticEncoder, dataset: FeatureDataset, data: Prepared, stage: Stage) -> None:
    """Principal components of features and of their reconstruction, for some stored images, not mirrored."""
    index, stored = dataset.index, dataset.index.images
    shown = torch.linspace(0, len(stored) - 1, min(NUM_PAIRS, len(stored))).long().tolist()
    side = math.isqrt(index.tokens)
    features = dataset.__getitems__([number * index.num_views for number in shown]).features.float()
    with torch.no_grad():
        reconstruction = network.decode(network.encode(features))
    images = data.images(TRAIN, index.centre).__getitems__([stored[number] for number in shown]).images
    file = stage.out / "features.png"
    plot_pca_features(features.unflatten(1, (side, side)), reconstruction.unflatten(1, (side, side)), images, file)
    stage.log_artifacts(file)
