"""The diffusion task: its network, its draws and the terms of its loss."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.data.latents import LatentBatch
from sfd.diffusion.schedule import OffsetRange, OffsetSchedule
from sfd.diffusion.terms.cosine import cosine_loss
from sfd.diffusion.terms.velocity import velocity_loss
from sfd.errors import UserError
from sfd.models.backbone import Output
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.params import DiffusionParams, LossParams, ScheduleParams
from sfd.sizes import SIZES
from sfd.training.backbone import backbone_config
from sfd.training.diffusion import DiffusionTask

CPU = torch.device("cpu")
NUM_CLASSES = 3
CONDITION = ClassCondition.numbered(NUM_CLASSES)
DRAWN = ("x0", "t_tex", "t_sem", "weight_tex", "weight_sem", "dropout")
"""What every step draws; the rest belongs to options that are off."""


class NoData:
    def __len__(self) -> int:
        return 1

    def __getitems__(self, _indices: list[int]) -> LatentBatch:
        raise NotImplementedError


class Recorder(nn.Module):
    """Answers with a fixed output and keeps what it was asked."""

    def __init__(self, velocity: Tensor, projection: Tensor | None = None) -> None:
        super().__init__()
        self.velocity, self.projection = velocity, projection
        self.asked: list[Any] = []

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, y: Tensor, with_projection: bool = False) -> Output:
        self.asked.append((x, t_tex, t_sem, y, with_projection))
        return Output(self.velocity, self.projection if with_projection else None)


def make(seed: int = 0, class_dropout: float = 0.1, tau: float = 0.3, **loss: Any) -> DiffusionTask:
    config = LightningDiTConfig(4, 6, 32, 2, 2, CONDITION, semantic_channels=2, two_times=True, feature_dim=8)
    return DiffusionTask(
        LightningDiT(config), NoData(), LossParams.model_validate(loss), OffsetSchedule(tau), class_dropout, seed
    )


def batch(size: int = 16) -> tuple[LatentBatch, Tensor]:
    """A batch with features; and a velocity that is wrong."""
    random = torch.Generator().manual_seed(1)
    x1, features = torch.randn(size, 6, 4, 4, generator=random), torch.randn(size, 16, 8, generator=random)
    return LatentBatch(x1, torch.arange(size) % NUM_CLASSES, features), torch.randn(size, 6, 4, 4, generator=random)


def config_for(size: str = "tiny", patch_size: int = 1, grid: int = 4, **loss: Any) -> LightningDiTConfig:
    params = DiffusionParams.model_validate(
        {"model": {"size": size, "patch_size": patch_size}, "loss": loss, "training": {"num_steps": 1, "batch_size": 1}}
    )
    config = backbone_config(
        params, ScheduleParams(), CONDITION, grid=grid, texture_channels=8, semantic_channels=4, feature_dim=96
    )
    assert isinstance(config, LightningDiTConfig)
    return config


def test_the_network_takes_its_shape_from_size_latents_and_loss() -> None:
    config = config_for()
    assert (config.hidden_size, config.depth, config.num_heads) == SIZES["tiny"]
    assert (config.in_channels, config.semantic_channels, config.two_times) == (12, 4, True)
    assert (config.repa_depth, config.feature_dim) == (2, 96)
    assert config_for(repa_weight=0.0).repa_depth == 0
    assert (config_for().repa_projector, config_for(repa_projector="conv").repa_projector) == ("mlp", "conv")


def test_a_patch_that_does_not_tile_the_latents_is_refused() -> None:
    with pytest.raises(
        UserError,
        match="the latents' grid 5 .that of the stored latents. must be a multiple of diffusion.model.patch_size 2",
    ):
        config_for(patch_size=2, grid=5, repa_weight=0.0)
    assert config_for(patch_size=2, grid=4, repa_weight=0.0).grid == 2


def test_draws_depend_on_seed_and_step_alone() -> None:
    first, again = make().noise(3, 8, CPU), make().noise(3, 8, CPU)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in DRAWN)
    for other in (make().noise(4, 8, CPU), make(seed=1).noise(3, 8, CPU)):
        assert not any(torch.equal(getattr(first, n), getattr(other, n)) for n in ("x0", "t_tex", "t_sem", "dropout"))
    assert [tuple(getattr(first, name).shape) for name in DRAWN] == [(8, 6, 4, 4), *[(8,)] * 5]
    assert all(value is None for name, value in first._asdict().items() if name not in DRAWN)


def test_progress_is_logit_normal_with_the_given_mean_and_deviation() -> None:
    logits = torch.logit(make(tau=0.0, time_mean=0.5, time_std=2.0).noise(0, 20_000, CPU).t_tex)
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(logits.std()) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (2.0, 0.0, 0.0), (0.0, 0.0, 3.0)]
)
def test_each_term_is_on_exactly_when_its_weight_is_positive(weights: tuple[float, float, float]) -> None:
    names = ("velocity", "cosine", "repa")
    task = make(**{f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)})
    data, velocity = batch()
    network = Recorder(velocity, projection=torch.ones(16, 16, 8))
    terms = task.losses(network, data, task.noise(0, 16, CPU))
    wanted = {name: weight for name, weight in zip(names, weights, strict=True) if weight > 0.0}
    assert dict(task.weights) == wanted
    assert set(terms) == set(wanted)
    assert network.asked[0][-1] == ("repa" in wanted)


def test_without_repa_no_features_are_needed() -> None:
    task = make(repa_weight=0.0)
    data, velocity = batch()
    assert set(task.losses(Recorder(velocity), data._replace(features=None), task.noise(0, 16, CPU))) == {
        "velocity",
        "cosine",
    }


def test_the_terms_are_batch_means_against_data_minus_noise() -> None:
    task = make(semantic_weight=2.0)
    data, velocity = batch()
    noise = task.noise(0, 16, CPU)
    terms = task.losses(Recorder(velocity, data.features), data, noise)
    target = data.latents - noise.x0
    torch.testing.assert_close(terms["velocity"], velocity_loss(velocity, target, 2, 2.0).mean())
    torch.testing.assert_close(terms["cosine"], cosine_loss(velocity, target).mean())
    assert float(terms["repa"]) == pytest.approx(0.0, abs=1e-6)


def test_the_right_velocity_and_projection_have_no_loss() -> None:
    task = make()
    data, _ = batch()
    noise = task.noise(0, 16, CPU)
    terms = task.losses(Recorder(data.latents - noise.x0, 5.0 * data.features), data, noise)
    assert all(float(value) == pytest.approx(0.0, abs=1e-6) for value in terms.values())


def test_the_network_sees_each_part_at_its_own_time() -> None:
    task = make(tau=0.3)
    data, velocity = batch()
    noise = task.noise(0, 16, CPU)
    x0, u = noise.x0, make(tau=0.0).noise(0, 16, CPU).t_tex
    network = Recorder(velocity, data.features)
    task.losses(network, data, noise)
    x, t_tex, t_sem, _, _ = network.asked[0]
    torch.testing.assert_close(t_sem, (1.3 * u).clamp(max=1.0))
    torch.testing.assert_close(t_tex, (1.3 * u - 0.3).clamp(min=0.0))
    t = torch.cat([t_tex[:, None].expand(-1, 4), t_sem[:, None].expand(-1, 2)], dim=1)[:, :, None, None]
    torch.testing.assert_close(x, t * data.latents + (1 - t) * x0)


def test_with_a_range_every_image_has_an_offset_of_its_own() -> None:
    task = make()
    task.schedule = OffsetRange(0.0, 1.0)
    draws = task.noise(0, 4000, CPU)
    both = (draws.t_tex > 0.0) & (draws.t_sem < 1.0)
    leads = (draws.t_sem - draws.t_tex)[both]
    assert float(leads.min()) < 0.05 and float(leads.max()) > 0.8


def test_times_of_parts_come_with_weights_and_times_of_progress_without() -> None:
    per_part, joint = make(timestep_sampling="per_part").noise(0, 64, CPU), make().noise(0, 64, CPU)
    assert bool((joint.weight_tex == 1.0).all()) and bool((joint.weight_sem == 1.0).all())
    assert float(per_part.weight_tex.std()) > 0.1
    torch.testing.assert_close(per_part.weight_tex + per_part.weight_sem, torch.full((64,), 2.0))


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_classes_are_dropped_as_often_as_asked_and_else_kept(dropout: float, share: float) -> None:
    task = make(class_dropout=dropout)
    data, velocity = batch(4000)
    network = Recorder(velocity, data.features)
    task.losses(network, data, task.noise(0, 4000, CPU))
    labels = network.asked[0][3]
    dropped = labels == NUM_CLASSES
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.03)
    assert torch.equal(labels[~dropped], data.class_indices[~dropped])


@pytest.mark.parametrize(("projector", "norm"), [("mlp", "none"), ("conv", "tokens")])
def test_every_weight_of_the_network_gets_a_gradient(projector: str, norm: str) -> None:
    config = LightningDiTConfig(
        4,
        6,
        32,
        2,
        2,
        CONDITION,
        semantic_channels=2,
        two_times=True,
        repa_depth=1,
        repa_width=16,
        feature_dim=8,
        repa_projector=projector,
    )
    loss = LossParams.model_validate({"repa_target_norm": norm})
    task = DiffusionTask(LightningDiT(config), NoData(), loss, OffsetSchedule(0.3), 0.1, 0)
    data, _ = batch()
    sum(task.losses(task.network, data, task.noise(0, 16, CPU)).values()).backward()  # type: ignore[union-attr]
    missing = [name for name, p in task.network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
