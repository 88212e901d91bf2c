"""The open place of semantic encoders: a new kind is a class and an entry of the table, and stage `semantic` makes it."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from sfd import names
from sfd.data.images import ImageBatch
from sfd.data.shards import shard_bounds, write_index, write_shards
from sfd.encoders.semantic.encoder import SemanticEncoder, load_semantic, save_semantic
from sfd.encoders.semantic.features import FeaturesIndex
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.errors import UserError
from sfd.names import Entry
from sfd.network_files import network_digest
from sfd.params import QualityParams, RuntimeParams, SemanticParams
from sfd.pipeline import semantic
from sfd.pipeline.semantic import make_semantic
from sfd.workspace import Workspace

DIM, TOKENS, NUM_IMAGES = 6, 4, 12


class FirstChannels(SemanticEncoder):
    """Keeps the first channels of the centred features."""

    kind = "first"
    is_trained = False
    mean: Tensor

    def __init__(self, input_dim: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.zeros(input_dim))

    @property
    def latent_channels(self) -> int:
        return self.channels

    def encode(self, features: Tensor) -> Tensor:
        return (features - self.mean)[..., : self.channels]

    def decode(self, latent: Tensor) -> Tensor:
        return nn.functional.pad(latent, (0, len(self.mean) - self.channels)) + self.mean

    @classmethod
    def build(cls, params: SemanticParams, feature_dim: int, _seed: int) -> Self:
        return cls(feature_dim, params.latent_channels)

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.mean.copy_(torch.cat(list(batches)).mean(dim=(0, 1)))

    def config(self) -> dict[str, Any]:
        return {"input_dim": len(self.mean), "channels": self.channels}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


class LearntScale(FirstChannels):
    """The same, trained: one factor of the reconstruction."""

    kind = "scale"
    is_trained = True

    def __init__(self, input_dim: int, channels: int) -> None:
        super().__init__(input_dim, channels)
        self.scale = nn.Parameter(torch.zeros(1))

    def decode(self, latent: Tensor) -> Tensor:
        return self.scale * super().decode(latent)

    def forward(self, features: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return {"error": (self.decode(self.encode(features) + 0.0 * noise) - features).square().mean()}

    @staticmethod
    def loss_weights(_params: SemanticParams) -> dict[str, float]:
        return {"error": 2.0}


class Images:
    def __getitems__(self, rows: list[int]) -> ImageBatch:
        pixels = torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)
        return ImageBatch(pixels, torch.zeros(len(rows), dtype=torch.int64))


@pytest.fixture
def features(tmp_path: Path) -> Tensor:
    """Stored by stage `features` in ``tmp_path / "shards"``, with one view per image."""
    values = torch.randn(NUM_IMAGES, 1, TOKENS, DIM, generator=torch.Generator().manual_seed(0)).half() + 3.0
    bounds = shard_bounds(NUM_IMAGES, 5)
    write_shards(
        tmp_path / "shards", bounds, lambda start, end: {"features": values[start:end].clone()}, range(len(bounds))
    )
    write_index(tmp_path / "shards", bounds, FeaturesIndex(1, TOKENS, DIM, list(range(NUM_IMAGES)), None))
    return values[:, 0].float()


def run_stage(params: SemanticParams, folder: Path) -> tuple[SemanticEncoder, dict[str, float]]:
    """The encoder that stage `semantic` leaves, and what it logs."""
    logged: dict[str, float] = {}
    (folder / "out").mkdir()
    stage: Any = SimpleNamespace(
        name="semantic",
        params=SimpleNamespace(seed=0, runtime=RuntimeParams(), quality=QualityParams(explained_variance=None)),
        work=folder,
        out=folder / "out",
        finished=folder / "finished",
        workspace=Workspace(folder),
        facts={"stage": "semantic", "params": {"semantic": params.model_dump(mode="json")}},
        fingerprint="",
        mark="",
        log=lambda metrics, *_: logged.update(metrics),
        log_artifacts=lambda *_: None,
    )
    data: Any = SimpleNamespace(images=lambda _split, _centre: Images())
    make_semantic(params, folder / "shards", data, stage)
    return load_semantic(folder / "out" / "model"), logged


def test_a_new_kind_that_is_fitted_needs_no_other_module(
    features: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(names.SEMANTIC_ENCODERS, "first", Entry(f"{__name__}:FirstChannels", "the first channels"))
    made, logged = run_stage(SemanticParams(kind="first", latent_channels=2), tmp_path)
    assert type(made).__name__ == "FirstChannels" and made.latent_channels == 2 and not made.training
    torch.testing.assert_close(made.encode(features), (features - features.mean(dim=(0, 1)))[..., :2])
    assert logged.keys() == {"reconstruction_cosine", "explained_variance"}
    assert 0.1 < logged["explained_variance"] < 0.6


def test_a_new_kind_that_is_trained_needs_no_other_module(
    features: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(names.SEMANTIC_ENCODERS, "scale", Entry(f"{__name__}:LearntScale", "a factor"))
    training = {"num_steps": 30, "batch_size": 4, "learning_rate": 0.1, "ema_decay": 0.0}
    made, logged = run_stage(
        SemanticParams.model_validate({"kind": "scale", "latent_channels": 5, "training": training}), tmp_path
    )
    assert float(made.scale.detach()) == pytest.approx(1.0, abs=0.2)  # type: ignore[arg-type]
    assert logged["reconstruction_cosine"] > 0.85 and features.shape == (NUM_IMAGES, TOKENS, DIM)


# --- from a file ---


def test_a_semantic_encoder_from_a_folder_is_taken_as_it_is_and_measured(features: Tensor, tmp_path: Path) -> None:
    fitted, by_fit = run_stage(SemanticParams(kind="pca", latent_channels=2), tmp_path)
    given = tmp_path / "given"
    (tmp_path / "out" / "model").rename(given)
    shutil.rmtree(tmp_path / "out")
    params = SemanticParams(kind="pca", latent_channels=2, source="file", file=Path("given"))
    made, measured = run_stage(params, tmp_path)
    assert torch.equal(made.encode(features), fitted.encode(features)) and measured == by_fit
    assert network_digest(tmp_path / "out" / "model") == network_digest(given)
    assert not (tmp_path / "out" / "curves.csv").exists()


def test_a_trained_kind_from_a_folder_needs_no_training(features: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_semantic(tmp_path / "given", SemVae(SemVaeConfig(DIM, 8, 2, 1, 3)))
    widths = {"latent_channels": 3, "width": 8, "num_heads": 2, "depth": 1}
    params = SemanticParams.model_validate(widths | {"source": "file", "file": "given", "training": None})
    made, measured = run_stage(params, tmp_path)
    assert made.encode(features).shape == (NUM_IMAGES, TOKENS, 3)
    assert measured.keys() == {"reconstruction_cosine", "explained_variance", "kl_per_image"}
    with pytest.raises(UserError, match="semantic.width is 16, but its own is 8"):
        run_stage(params.model_copy(update={"width": 16}), fresh_work(tmp_path))


def fresh_work(folder: Path) -> Path:
    shutil.rmtree(folder / "out")
    return folder


@pytest.mark.parametrize("batch", [5, 64])
def test_the_quality_is_that_of_all_samples_at_once_whatever_the_batches(
    features: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(semantic, "BATCH", batch)
    made, measured = run_stage(SemanticParams(kind="pca", latent_channels=2), tmp_path)
    reconstruction = made.decode(made.encode(features))
    error = (reconstruction - features).square().mean() / features.var(dim=(0, 1), unbiased=False).mean()
    assert measured["explained_variance"] == pytest.approx(1.0 - float(error), abs=1e-5)
    cosine = torch.nn.functional.cosine_similarity(reconstruction, features, dim=-1).mean()
    assert measured["reconstruction_cosine"] == pytest.approx(float(cosine), abs=1e-6)
