"""Does fine-tuning pay? Real handwritten digits, 8 x 8 pixels as latents: a model of 0 to 4 learns 5 to 9."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sfd.data.images import ImageBatch
from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.samplers.heun import Heun
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import OffsetSchedule
from sfd.encoders.judges.resnet import ResnetJudge
from sfd.generation.images import ImageGenerator, image_seed
from sfd.generation.model import DiffusionModel
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.params import DiffusionParams, JudgeParams, LossParams, ScheduleParams, TrainingParams
from sfd.seeding import generator
from sfd.training.classifier import ClassifierTask
from sfd.training.diffusion import DiffusionTask
from sfd.training.finetuning import Start, start_from
from sfd.training.loop import Callback, log_nothing, train

pytestmark = pytest.mark.long
GOAL, EVERY, MOST = 0.9, 100, 1200
SYNC = ScheduleParams(kind="sync")
TRAINING = {"batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 20, "beta2": 0.99, "ema_decay": 0.96}
DIGITS = load_digits()
PIXELS = torch.tensor(DIGITS.images, dtype=torch.float32)[:, None] / 8.0 - 1.0  # (n, 1, 8, 8) in [-1, 1]
LABELS = torch.tensor(DIGITS.target)


def as_images(pixels: Tensor) -> Tensor:
    """(B, 1, 8, 8) in [-1, 1] -> uint8 (B, 3, 16, 16)."""
    grey = ((pixels.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    return interpolate(grey, scale_factor=2).expand(-1, 3, -1, -1).contiguous()


class Digits:
    """Some of the digits as latents, or as images."""

    def __init__(self, digits: range, images: bool = False) -> None:
        chosen = (LABELS >= digits.start) & (LABELS < digits.stop)
        self.kind = ImageBatch if images else LatentBatch
        self.values = as_images(PIXELS[chosen]) if images else PIXELS[chosen]
        self.labels = LABELS[chosen] - digits.start
        self.statistics = ChannelStatistics(torch.zeros(1), torch.ones(1))
        self.index = SimpleNamespace(classes=[str(digit) for digit in digits], networks={})

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> ImageBatch | LatentBatch:
        return self.kind(self.values[indices], self.labels[indices])


class Decoder(nn.Module):
    """Latents are pixels already."""

    def decode(self, latent: Tensor) -> Tensor:
        return as_images(latent)


def options(steps: int) -> TrainingParams:
    return TrainingParams.model_validate(TRAINING | {"num_steps": steps})


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ResnetJudge:
    """The pipeline's small ResNet, trained on all digits."""
    params = JudgeParams.model_validate(
        {"kind": "resnet", "source": "train", "name": "small", "channels": [16, 32, 32, 32]}
    )
    network, data = ResnetJudge.trainable(params, 10, 0), Digits(range(10), images=True)
    task = ClassifierTask("judge", network, data, 10, False, 0)
    train(
        task, options(250).model_copy(update={"decay": "cosine"}), 0, tmp_path_factory.mktemp("judge"), "f", log_nothing
    ).copy_to(network)
    made = ResnetJudge("small", "", params.channels, 10, 10)
    made.resnet.load_state_dict(network.state_dict())
    made.eval()
    logits = made(data.values)[1]
    assert logits is not None and float((logits.argmax(dim=1) == data.labels).float().mean()) > 0.97
    return made


class Reached(Exception):
    """The goal is reached."""


def images_to_the_goal(
    source: DiffusionModel | None, digits: range, judge: ResnetJudge, folder: Path
) -> tuple[int, DiffusionModel]:
    """Trains until the averaged model draws nine in ten as asked; the images that it took, and the model."""
    data = Digits(digits)
    condition = ClassCondition(tuple(data.index.classes))
    config = LightningDiTConfig(8, 1, hidden_size=64, depth=3, num_heads=2, condition=condition, patch_size=2)
    network = LightningDiT(config).initialise(generator(0, "test/initialisation"))
    training = options(MOST).model_dump()
    diffusion = DiffusionParams.model_validate(
        {"model": {"size": "tiny"}, "loss": {"repa_weight": 0.0}, "training": training, "init_from": "the old one"}
    )
    start = Start(network) if source is None else start_from(source, network, data, diffusion, 0)  # type: ignore[arg-type]
    model = DiffusionModel(start.network, SYNC, data.statistics)
    task = DiffusionTask(start.network, data, LossParams(repa_weight=0.0), OffsetSchedule(0.0), 0.1, 0)
    wanted = torch.arange(200) % 5
    taken = 0

    def look(averaged: nn.Module, step: int) -> None:
        nonlocal taken
        assert isinstance(averaged, LightningDiT)
        model.network.load_state_dict(averaged.state_dict())
        seen = DiffusionModel(averaged.eval(), SYNC, model.statistics)
        images = ImageGenerator(seen, Decoder())(  # type: ignore[arg-type]
            wanted.tolist(),
            [image_seed(0, n) for n in range(len(wanted))],
            Sampler(Heun, num_steps=6),
            GuidanceScales(1.25, 1.25),
        )
        averaged.train()
        logits = judge(images)[1]
        assert logits is not None
        accuracy = float((logits.argmax(dim=1) == wanted + digits.start).double().mean())
        print(f"{digits}, {'tuned' if source else 'from nothing'}, step {step}: {accuracy:.3f}")
        taken = step * TRAINING["batch_size"]
        if accuracy >= GOAL:
            raise Reached

    folder.mkdir()
    with pytest.raises(Reached):
        train(task, diffusion.training, 0, folder, "f", log_nothing, None, [Callback(look, EVERY)])
    return taken, model


def test_new_digits_are_learnt_from_fewer_images_when_others_are_known(judge: ResnetJudge, tmp_path: Path) -> None:
    _, old = images_to_the_goal(None, range(5), judge, tmp_path / "old")
    scratch, _ = images_to_the_goal(None, range(5, 10), judge, tmp_path / "scratch")
    tuned, _ = images_to_the_goal(old, range(5, 10), judge, tmp_path / "tuned")
    assert tuned < scratch
