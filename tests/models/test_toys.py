"""A backbone and a condition of one file and one entry each are trained and sampled; no other module knows them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from sfd import names
from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.schedule import OffsetSchedule
from sfd.encoders.texture_vae import KlVae
from sfd.generation.images import ImageGenerator, build_sampler
from sfd.generation.model import DiffusionModel
from sfd.models.backbone import Backbone, Facts, Output
from sfd.models.conditions import ClassCondition, Condition, TextFacts, Told
from sfd.models.words import Words
from sfd.params import DiffusionParams, SampleParams, ScheduleParams
from sfd.precision import Inference
from sfd.seeding import generator
from sfd.training.backbone import backbone_config, condition_of, initialised_backbone
from sfd.training.diffusion import DiffusionTask


@dataclass(frozen=True)
class ParityCondition(ClassCondition):
    """Whether the class index is odd."""

    kind: ClassVar[str] = "parity"

    @classmethod
    def from_data(
        cls,
        classes: Sequence[str],  # noqa: ARG003
        counts: Sequence[int] | None = None,  # noqa: ARG003
        text: TextFacts | None = None,  # noqa: ARG003
    ) -> Self:
        return cls(("even", "odd"))

    def of_images(self, class_indices: Tensor, words: Words | None = None) -> Tensor:  # noqa: ARG002
        return class_indices % 2


@dataclass(frozen=True)
class LinearConfig:
    input_size: int
    in_channels: int
    semantic_channels: int
    two_times: bool
    condition: Condition
    repa_depth: int = 0

    kind: ClassVar[str] = "linear"

    def to_dict(self) -> dict[str, Any]:
        keys = ("input_size", "in_channels", "semantic_channels", "two_times")
        return {key: getattr(self, key) for key in keys}

    @classmethod
    def from_dict(cls, values: dict[str, Any], condition: Condition) -> Self:
        return cls(**values, condition=condition)

    @classmethod
    def from_params(cls, params: Any, facts: Facts) -> Self:  # noqa: ARG003
        channels = facts.texture_channels + facts.semantic_channels
        return cls(facts.grid, channels, facts.semantic_channels, facts.two_times, facts.condition)


class LinearBackbone(Backbone):
    """One convolution, and one number per condition and channel."""

    config_type = LinearConfig

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Conv2d(config.in_channels, config.in_channels, 1)
        self.y_embedder = config.condition.embedding(config.in_channels)

    def forward(
        self, x: Tensor, t_tex: Tensor, t_sem: Tensor, condition: Told, with_projection: bool = False
    ) -> Output:
        velocity = self.layer(x) * (1.0 + t_tex + t_sem)[:, None, None, None]
        if self.y_embedder is not None:
            velocity = velocity + self.y_embedder(condition)[:, :, None, None]
        assert not with_projection
        return Output(velocity, None)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        nn.init.zeros_(self.layer.weight)
        return self

    def output_layer(self) -> nn.Conv2d:
        return self.layer


class Latents:
    """Eight random latents of three classes."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        raise NotImplementedError


class Pixels(KlVae):
    """Shows the first three channels of a latent."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def decode(self, latent: Tensor) -> Tensor:
        return (latent[:, :3].clamp(-1, 1) * 127 + 128).to(torch.uint8)


@pytest.fixture(autouse=True)
def _entries(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[__name__].__name__
    monkeypatch.setitem(names.BACKBONES, "linear", names.Entry(f"{module}:LinearBackbone", "a toy"))
    monkeypatch.setitem(names.CONDITIONS, "parity", names.Entry(f"{module}:ParityCondition", "a toy"))


@pytest.mark.parametrize(
    ("backbone", "condition"),
    [
        ("linear", "class"),
        ("linear", "none"),
        ("linear", "parity"),
        ("lightningdit", "parity"),
        ("flux2", "parity"),
        ("flux2", "none"),
    ],
)
def test_a_toy_is_trained_saved_loaded_and_sampled(backbone: str, condition: str, tmp_path: Path) -> None:
    dropout = 0.0 if condition == "none" else 0.5
    model = {"size": "tiny", "backbone": backbone, "condition": condition, "class_dropout": dropout}
    training = {"num_steps": 1, "batch_size": 4}
    params = DiffusionParams.model_validate({"model": model, "loss": {"repa_weight": 0.0}, "training": training})
    shape = {"grid": 4, "texture_channels": 4, "semantic_channels": 2, "feature_dim": 8}
    config = backbone_config(params, ScheduleParams(), condition_of(params, ["a", "b", "c"]), **shape)
    network = initialised_backbone(config, 0)
    task = DiffusionTask(network, Latents(), params.loss, OffsetSchedule(0.3), dropout, 0)
    data = LatentBatch(torch.randn(4, 6, 4, 4, generator=generator(0, "data")), torch.tensor([0, 1, 2, 1]))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    losses = [train_step(task, optimizer, data) for _ in range(5)]
    assert losses[-1] < losses[0]

    made = DiffusionModel(network, ScheduleParams(), ChannelStatistics(torch.zeros(6), torch.ones(6)))
    made.save(tmp_path)
    loaded = DiffusionModel.load(tmp_path)
    assert loaded.network.config == config and loaded.condition.kind == condition
    settings = SampleParams.model_validate({"sampler": "euler", "num_steps": 2, "guidance": {}})
    values = loaded.condition.plan(3)
    images = [
        ImageGenerator(each, Pixels(), inference=Inference(torch.device("cpu"))) for each in (replace(made), loaded)
    ]
    drawn = [each(values, [0, 1, 2], build_sampler(settings), GuidanceScales()) for each in images]
    assert drawn[0].shape == (3, 3, 4, 4) and torch.equal(*drawn)


def train_step(task: DiffusionTask, optimizer: torch.optim.Optimizer, data: LatentBatch) -> float:
    losses = task.losses(task.network, data, task.noise(0, 4, torch.device("cpu")))
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(total.detach())
