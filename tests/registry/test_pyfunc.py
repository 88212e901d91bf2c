"""Requests to the registered model: its own settings, a request's values in their place, and what it refuses."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sfd.data.latents import ChannelStatistics
from sfd.encoders.texture_vae import KlVae, TrainableAutoencoder
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.generation.settings import Settings
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.network_files import network_digest
from sfd.params import ScheduleParams, TextureVaeParams
from sfd.registry.pyfunc import SfdModel
from sfd.registry.register import log_model
from sfd.workspace import Workspace

ROWS = pd.DataFrame({"label": ["a", "b"], "seed": [1, 2]})
SAMPLE = {"batch_size": 4, "sampler": "heun", "num_steps": 4, "guidance": {}}


def save_diffusion(
    folder: Path, schedule: dict[str, Any], width: int = 32, num_classes: int = 2, vae: str | None = None
) -> None:
    """A model with random weights that are zero nowhere. ``vae``: digest of the texture VAE of its latents, if it records that."""
    condition = ClassCondition(("a", "b", "c")[:num_classes])
    config = LightningDiTConfig(4, 6, width, 2, 2, condition, semantic_channels=2, two_times=True)
    network, random = LightningDiT(config), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    statistics = ChannelStatistics(torch.zeros(6), torch.ones(6))
    networks = {} if vae is None else {"texture_vae": vae}
    DiffusionModel(network, ScheduleParams.model_validate(schedule), statistics, networks).save(folder)


def load(folder: Path, schedule: dict[str, Any], sample: dict[str, Any], vae: str | None = None) -> SfdModel:
    """A model loaded from its artifacts, with a weaker one if ``folder`` holds it."""
    save_diffusion(folder / "diffusion", schedule, vae=vae)
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    decoder = KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), seed=0).autoencoder)
    decoder.save(folder / "texture_vae")
    (folder / "sample.json").write_text(Settings.model_validate(SAMPLE | sample).model_dump_json())
    artifacts = {name: str(folder / name) for name in ("diffusion", "texture_vae")} | {
        "sample": str(folder / "sample.json")
    }
    if (folder / "weak_model").is_dir():
        artifacts["weak_model"] = str(folder / "weak_model")
    made = SfdModel()
    made.load_context(SimpleNamespace(artifacts=artifacts))
    return made


@pytest.fixture(scope="module")
def for_a_range(tmp_path_factory: pytest.TempPathFactory) -> SfdModel:
    """Trained for offsets from 0.1 to 0.9, registered with 0.5."""
    schedule = {"tau": {"low": 0.1, "high": 0.9}}
    return load(tmp_path_factory.mktemp("range"), schedule, {"schedule": {"tau": 0.5}})


@pytest.fixture(scope="module")
def for_one(tmp_path_factory: pytest.TempPathFactory) -> SfdModel:
    """Trained for an offset of 0.3."""
    return load(tmp_path_factory.mktemp("one"), {"tau": 0.3}, {})


def ask(model: SfdModel, **params: float) -> Any:
    answer = model.predict(None, ROWS, params)
    return np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in answer["png"]])


def test_a_model_for_a_range_of_offsets_takes_one_by_request_and_else_its_own(for_a_range: SfdModel) -> None:
    own = ask(for_a_range)
    assert own.shape == (2, 8, 8, 3)
    assert (ask(for_a_range, tau=-1.0) == own).all() and (ask(for_a_range, tau=0.5) == own).all()
    assert (ask(for_a_range, tau=0.2) != own).any()


def test_a_model_registered_with_the_multistep_sampler_draws_with_it(for_one: SfdModel, tmp_path: Path) -> None:
    multistep, heun = ask(load(tmp_path, {"tau": 0.3}, {"sampler": "ab2"})), ask(for_one)
    assert (multistep != heun).any() and np.abs(multistep.astype(int) - heun.astype(int)).mean() < 16.0


def test_a_version_with_another_decoder_than_its_model_knows_is_refused_unless_it_was_registered_so(
    for_one: SfdModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="texture VAE ffffffffffff there and .* here; decode with the texture VAE"):
        load(tmp_path, {"tau": 0.3}, {}, vae="f" * 64)
    told = load(tmp_path, {"tau": 0.3}, {"other_networks": True}, vae="f" * 64)
    assert (ask(told) == ask(for_one)).all() and "goes on as told, although the model" in capsys.readouterr().err
    known = load(tmp_path, {"tau": 0.3}, {}, vae=network_digest(tmp_path / "texture_vae"))
    assert (ask(known) == ask(for_one)).all() and capsys.readouterr().err == ""


def test_who_loads_and_asks_a_model_can_still_train(for_one: SfdModel) -> None:
    ask(for_one)
    assert torch.is_grad_enabled()


def test_a_model_for_one_offset_takes_none_by_request(for_one: SfdModel) -> None:
    assert (ask(for_one, tau=-1.0) == ask(for_one)).all()
    with pytest.raises(mlflow.MlflowException, match="tau cannot be chosen"):
        ask(for_one, tau=0.4)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"tau": 0.95}, "schedule.tau covers 0.1 to 0.9"),
        ({"tau": 0.0}, "schedule.tau covers 0.1 to 0.9"),
        ({"tau": 1.5}, "less than or equal to 1"),
        ({"tau": -0.5}, "greater than or equal to 0"),
        ({"tau": float("nan")}, "finite number"),
        ({"num_steps": -3}, "greater than or equal to 1"),
        ({"scale_texture": 0.5}, "greater than or equal to 1"),
    ],
)
def test_an_impossible_request_is_refused_with_its_rule(
    for_a_range: SfdModel, params: dict[str, float], reason: str
) -> None:
    with pytest.raises(mlflow.MlflowException, match=reason) as refused:
        ask(for_a_range, **params)
    assert refused.value.get_http_status_code() == 400


AUTOGUIDANCE = {"kind": "autoguidance", "weak_model": "elsewhere", "scale_texture": 2.0, "scale_semantic": 2.0}


def test_a_model_with_autoguidance_is_guided_by_the_weak_model_of_its_artifacts(
    tmp_path: Path, for_one: SfdModel
) -> None:
    save_diffusion(tmp_path / "weak_model", {"tau": 0.3}, width=16)
    model = load(tmp_path, {"tau": 0.3}, {"guidance": AUTOGUIDANCE})
    unguided = ask(for_one)
    assert (ask(model) != unguided).any() and (ask(model) != ask(for_one, scale_texture=2.0, scale_semantic=2.0)).any()
    assert (ask(model, scale_texture=1.0, scale_semantic=1.0) == unguided).all()


def test_a_weak_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_diffusion(tmp_path / "weak_model", {"tau": 0.3}, num_classes=3)
    with pytest.raises(UserError, match="does not match the model that it guides: 3 classes instead of 2"):
        load(tmp_path, {"tau": 0.3}, {"guidance": AUTOGUIDANCE})


@pytest.mark.parametrize(("guidance", "has_weak"), [(AUTOGUIDANCE, False), ({"kind": "cfg"}, True)])
def test_a_version_carries_a_weak_model_if_and_only_if_it_is_guided_by_one(
    tmp_path: Path, guidance: dict[str, Any], has_weak: bool
) -> None:
    sample = Settings.model_validate(SAMPLE | {"guidance": guidance})
    folders = {name: tmp_path / name for name in ("diffusion", "texture_vae", *(["weak_model"] if has_weak else []))}
    with pytest.raises(UserError, match="a weak model goes into the version with `autoguidance`, and only then"):
        log_model(Workspace(tmp_path), sample, folders, "run", "digest")
    assert not list(tmp_path.iterdir())
