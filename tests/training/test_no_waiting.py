"""Neither a step of a training between two logs nor the encoding of images waits for the GPU: seen on a pretended one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_cuda import Seen, pretended_cuda
from torch import Tensor, nn
from torch.nn.functional import conv2d

from sfd.data.images import ImageBatch
from sfd.data.latents import ChannelStatistics, LatentBatch, write_latents
from sfd.data.text_tokens import PADDING
from sfd.data.transfer import send
from sfd.diffusion.learnt import LearntCurve
from sfd.diffusion.schedule import CurveSchedule, OffsetRange, OffsetSchedule, PowerSchedule, Schedule
from sfd.diffusion.terms.velocity import energy_weights
from sfd.encoders.semantic.features import FeatureBatch
from sfd.encoders.semantic.semvae import SemVae
from sfd.encoders.text.small import SmallTextEncoder, train_tokenizer
from sfd.encoders.texture_vae import TrainableAutoencoder
from sfd.models.conditions import ClassCondition, NoCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.text_condition import TextCondition
from sfd.params import (
    LatentsParams,
    LossParams,
    ReadingRuntime,
    SemanticParams,
    TextureVaeParams,
    TrainingParams,
    TrainingRuntime,
)
from sfd.seeding import generator
from sfd.training.alignment import Alignment
from sfd.training.captions import CaptionReader
from sfd.training.classifier import ClassifierTask
from sfd.training.diffusion import DecodedFeatures, DiffusionTask
from sfd.training.loop import log_nothing, train
from sfd.training.probe import Probe, ProbeTask
from sfd.training.semantic_vae import SemanticTask
from sfd.training.texture_vae import TextureVaeTask

NUM_STEPS = 5
"""The losses are logged after the last one. The first two may wait: states are made in them."""


class Rows:
    """The same batch of random values, as many rows as are asked for."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 37

    def __getitems__(self, indices: list[int]) -> Any:
        rows = [index % 8 for index in indices]
        return type(self.batch)(*(None if value is None else value[rows] for value in self.batch))


def waits(task: Any, work: Path, **changes: Any) -> list[str]:
    """What made the host wait from the beginning of the third step to that of the last."""
    fields = {"batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9, "num_steps": NUM_STEPS} | changes
    draw, begun = task.noise, []
    with pretended_cuda() as seen:

        def noise(step: int, batch_size: int, device: torch.device) -> Any:
            begun.append(seen.syncs.copy())
            return draw(step, batch_size, device)

        task.noise = noise
        runtime = TrainingRuntime(checkpoint_every=1000, log_every=NUM_STEPS)
        train(task, TrainingParams.model_validate(fields), 0, work, "a", log_nothing, runtime, more_decays=(0.5,))
    assert len(begun) == NUM_STEPS
    return sorted((begun[-1] - begun[2]).elements())


def images() -> Rows:
    random = generator(0, "test/images")
    pixels = torch.randint(0, 256, (8, 3, 16, 16), generator=random, dtype=torch.uint8)
    return Rows(ImageBatch(pixels, torch.arange(8) % 3))


def latents() -> Rows:
    random = generator(0, "test/latents")
    features = torch.randn(8, 16, 8, generator=random).half()
    return Rows(LatentBatch(torch.randn(8, 6, 4, 4, generator=random), torch.arange(8) % 3, features))


class Doubler(nn.Module):
    def decode(self, latent: Tensor) -> Tensor:
        return torch.cat([latent] * 4, dim=-1)


def diffusion_task(schedule: Schedule | OffsetRange, condition: Any = None, **loss: Any) -> DiffusionTask:
    parts = {"semantic_channels": 2, "two_times": True, "repa_depth": 1, "repa_width": 16, "feature_dim": 8}
    condition = condition or ClassCondition.numbered(3)
    config = LightningDiTConfig(4, 6, hidden_size=32, depth=2, num_heads=2, condition=condition, **parts)
    network = LightningDiT(config).initialise(generator(0, "test/initialisation"))
    return DiffusionTask(network, latents(), LossParams.model_validate(loss), schedule, 0.1, 0)


def of_one_device(tensors: list[list[Tensor]]) -> dict[Any, Any]:
    """Replaces torch's grouping."""
    first = tensors[0][0]
    return {(first.device, first.dtype): (tensors, list(range(len(tensors[0]))))}


SCHEDULES = [OffsetSchedule(0.3), PowerSchedule(2.0), CurveSchedule((1.0, 0.5, 0.2)), OffsetRange(0.0, 0.6)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("sampling", ["joint", "per_part"])
def test_no_step_of_the_diffusion_model_waits(tmp_path: Path, schedule: Any, sampling: str) -> None:
    assert waits(diffusion_task(schedule, timestep_sampling=sampling), tmp_path) == []


@pytest.mark.parametrize("changes", [{"max_grad_norm": 0.1}, {"accumulation_steps": 2}, {"precision": "fp32"}])
def test_neither_clipping_nor_micro_batches_wait(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torch's C++, which groups gradients by device, takes those of the pretended GPU for the CPU's.
    monkeypatch.setattr("torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype", of_one_device)
    assert waits(diffusion_task(OffsetSchedule(0.3), NoCondition()), tmp_path, **changes) == []


def test_neither_decoded_features_nor_weights_of_channels_wait(tmp_path: Path) -> None:
    task = diffusion_task(OffsetSchedule(0.3))
    with pretended_cuda():
        statistics = ChannelStatistics(torch.zeros(6), torch.ones(6)).to(torch.device("cuda"))
        task.features_of = DecodedFeatures(Doubler(), statistics, 2)
        task.channel_weights = energy_weights(torch.arange(1.0, 7.0), 2).to("cuda")
    assert waits(task, tmp_path) == []


def test_no_step_of_a_learnt_schedules_probe_waits(tmp_path: Path) -> None:
    backbone = diffusion_task(OffsetSchedule(0.3), repa_weight=0.0).network
    with pretended_cuda():
        weights = energy_weights(torch.arange(1.0, 7.0), 2).to("cuda")
    probe = Probe(backbone, LearntCurve(4))
    assert waits(ProbeTask(probe, latents(), LossParams(), 0.02, 0.1, 0, weights), tmp_path) == []


def test_no_step_that_encodes_captions_waits(tmp_path: Path) -> None:
    encoder = SmallTextEncoder.build(train_tokenizer(["a red bar", "blue"], 300), 8, 16, 1, 2, seed=0)
    task = diffusion_task(OffsetSchedule(0.3), TextCondition(16, 8, "e" * 64), repa_weight=0.0)
    task.null_words = encoder.encode([""]).to(dtype=torch.float16)
    texts = torch.tensor([list(b"a red bar"), [*b"blue", *[PADDING] * 5]] * 4, dtype=torch.uint8)
    task.dataset = Rows(latents().batch._replace(features=None, texts=texts))
    with pretended_cuda():
        task.words_of = CaptionReader(encoder)
    assert waits(task, tmp_path) == []


@pytest.mark.parametrize("num_classes", [1, 3])
def test_no_step_of_a_classifier_waits(tmp_path: Path, num_classes: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    assert waits(ClassifierTask("judge", network, images(), num_classes, True, 0), tmp_path) == []


def test_no_step_of_a_texture_vae_waits(tmp_path: Path) -> None:
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    params = TextureVaeParams.model_validate(fields)
    assert waits(TextureVaeTask(params, TrainableAutoencoder(params, 0), images(), 16, 0), tmp_path) == []


def test_no_step_of_an_aligned_texture_vae_waits_for_the_adaptive_weight(tmp_path: Path) -> None:
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    params = TextureVaeParams.model_validate(fields | {"alignment": {"weight": 0.1}})
    alignment = Alignment(params.alignment, 4, 3, 0)
    features = lambda pixels: pixels[:, :, ::4, ::4].flatten(2).transpose(1, 2)  # noqa: E731
    task = TextureVaeTask(params, TrainableAutoencoder(params, 0), images(), 16, 0, features, alignment)
    assert waits(task, tmp_path) == []


def test_no_step_of_a_semantic_vae_waits(tmp_path: Path) -> None:
    params = SemanticParams.model_validate(
        {"kind": "semvae", "latent_channels": 4, "width": 16, "depth": 1, "num_heads": 2}
    )
    features = torch.randn(8, 16, 8, generator=generator(0, "test/features")).half()
    task = SemanticTask(params, SemVae.build(params, 8, 0), Rows(FeatureBatch(features)), 16, 0)
    assert waits(task, tmp_path) == []


def test_a_wait_in_a_step_is_seen_with_its_line() -> None:
    with pretended_cuda() as seen:
        assert isinstance(seen, Seen)
        CurveSchedule((1.0, 0.5)).times(torch.zeros(3, device="cuda"))
        (found,) = seen.syncs
    assert found.startswith("copy of memory that is not pinned at diffusion/schedule.py:")


class Pictures:
    """Random images of class 0."""

    def __len__(self) -> int:
        return 23

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        random = [generator(0, "test/image", index) for index in indices]
        pixels = [torch.randint(0, 256, (3, 8, 8), generator=each, dtype=torch.uint8) for each in random]
        return ImageBatch(torch.stack(pixels), torch.zeros(len(indices), dtype=torch.int64))


def test_encoding_waits_for_nothing_but_the_batch_before_and_gives_the_latents_of_the_cpu(tmp_path: Path) -> None:
    def write(folder: Path, device: torch.device) -> None:
        kernel = send(torch.randn(6, 3, 2, 2, generator=generator(0, "kernel")), device)

        def encode(images: Tensor, draws: list[int]) -> tuple[Tensor, Tensor]:
            noise = [torch.randn(6, 4, 4, generator=generator(0, "draw", draw)) for draw in draws]
            latents = conv2d(images.float() / 255.0, kernel, stride=2) + send(torch.stack(noise), device)
            return latents, latents.flatten(2).transpose(1, 2)

        runtime = ReadingRuntime.model_validate({"batch_size": 2})
        write_latents(folder, Pictures(), range(23), encode, device, LatentsParams(shard_size=5), runtime, True, 0, 1)

    write(tmp_path / "cpu", torch.device("cpu"))
    with pretended_cuda() as seen:
        write(tmp_path / "gpu", torch.device("cuda"))
    (waited,) = seen.syncs
    assert waited.startswith("synchronize at data/transfer.py") and seen.bytes_to_host > 0
    for file in (tmp_path / "cpu").iterdir():
        assert file.read_bytes() == (tmp_path / "gpu" / file.name).read_bytes()
