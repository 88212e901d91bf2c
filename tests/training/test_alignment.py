"""Alignment of the texture latent with features: both losses by hand, their gradients, the adaptive weight, and trainings with and without."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from striped import Stripes
from support import environment
from torch import Tensor, nn

from sfd.encoders.texture_vae import TrainableAutoencoder
from sfd.params import TextureVaeParams, TrainingParams
from sfd.pixels import to_pixels
from sfd.training.alignment import (
    Alignment,
    gradient_ratio,
    marginal_cosine,
    marginal_distance_matrix,
    on_grid,
)
from sfd.training.loop import log_nothing, train
from sfd.training.texture_vae import TextureVaeTask

MAPPED = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
FEATURES = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
"""One image, two positions. The cosines of a position with its feature are 0 and 0.6; of the positions with one another 0.6 and 0."""

GOLDEN = 1528.7662382520284
"""The sum of all absolute weights after four steps, recorded before there was an alignment."""

TRAINING = {"num_steps": 40, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": 0.0}


def test_the_losses_of_two_positions_are_those_computed_by_hand() -> None:
    assert marginal_cosine(MAPPED, FEATURES, 0.0).item() == pytest.approx((1.0 + 0.4) / 2)
    assert marginal_cosine(MAPPED, FEATURES, 0.5).item() == pytest.approx((0.5 + 0.0) / 2)
    # Of the four pairs, two are of a position with itself and have no difference.
    assert marginal_distance_matrix(MAPPED, FEATURES, 0.0).item() == pytest.approx(2 * 0.6 / 4)
    assert marginal_distance_matrix(MAPPED, FEATURES, 0.25).item() == pytest.approx(2 * 0.35 / 4)
    both = torch.cat([MAPPED, FEATURES]), torch.cat([FEATURES, FEATURES])
    assert marginal_cosine(*both, 0.0).item() == pytest.approx(0.35), "the mean over the images"
    assert marginal_distance_matrix(*both, 0.0).item() == pytest.approx(0.15)


@pytest.mark.parametrize("loss", [marginal_cosine, marginal_distance_matrix])
def test_the_gradients_are_right_and_within_the_margin_there_is_none(loss: Any) -> None:
    mapped = MAPPED.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(values, FEATURES.double(), 0.1), mapped)
    assert not bool(torch.autograd.grad(loss(mapped, FEATURES.double(), 2.0), mapped)[0].any())


def test_features_are_resized_to_the_grid_of_the_latent_if_it_is_another_one() -> None:
    features = torch.randn(2, 16, 3)
    assert on_grid(features, 4) is features
    shrunk = on_grid(torch.ones(2, 16, 3), 2)
    assert shrunk.shape == (2, 4, 3) and torch.allclose(shrunk, torch.ones(2, 4, 3))
    corner = torch.zeros(1, 16, 1)
    corner[0, 0] = 1.0
    assert on_grid(corner, 2)[0, 0] > 0.1, "all features count where they shrink"
    assert on_grid(corner, 8).reshape(8, 8)[0, 0] == 1.0 and on_grid(corner, 8)[0, -1] == 0.0


def test_the_adaptive_weight_is_the_ratio_of_gradients_and_has_limits() -> None:
    layer = torch.tensor([3.0, 4.0]).requires_grad_()
    ratio = gradient_ratio((layer**2).sum(), 2.0 * layer[0], layer)
    assert ratio.item() == pytest.approx(10.0 / (2.0 + 1e-4)) and not ratio.requires_grad
    assert gradient_ratio(1e9 * layer.sum(), 0.0 * layer.sum(), layer).item() == 1e8


TWO_PROCESSES = """
import torch
from sfd.processes import form_group, rank
from sfd.training.alignment import gradient_ratio

form_group()
layer = torch.tensor([1.0, 2.0]).requires_grad_()
rows = torch.tensor([[1.0, 0.5], [-0.5, 3.0]])[rank()]
print("ratio", gradient_ratio((layer * rows).sum() ** 2, (layer.square() * rows).sum(), layer).item())
"""


@pytest.mark.long
def test_several_processes_have_the_ratio_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "ratio.py"
    script.write_text(TWO_PROCESSES)
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment(forked=False), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    layer, rows = torch.tensor([1.0, 2.0]).requires_grad_(), torch.tensor([[1.0, 0.5], [-0.5, 3.0]])
    of_batch = ((rows @ layer) ** 2).mean(), (rows @ layer.square()).mean()
    whole = gradient_ratio(*of_batch, layer).item()
    found = [float(value) for value in re.findall(r"ratio ([\d.]+)", done.stdout)]
    assert found == pytest.approx([whole, whole], rel=1e-5)


class Frozen:
    """Features of 16 positions, and how an aligned task is made of them."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Conv2d(3, 5, 4, stride=4).requires_grad_(False)

    def __call__(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.network(pixels).flatten(2).transpose(1, 2)
        return found


def vae_params(**alignment: Any) -> TextureVaeParams:
    fields = {"source": "train", "channels": (8, 8, 8), "layers_per_block": 1, "latent_channels": 6}
    return TextureVaeParams.model_validate(fields | {"alignment": alignment})


def make_task(fields: TextureVaeParams) -> TextureVaeTask:
    network = TrainableAutoencoder(fields, 0)
    if fields.alignment.weight == 0.0:
        return TextureVaeTask(fields, network, Stripes(), 16, 0)
    alignment = Alignment(fields.alignment, fields.latent_channels, 5, 0)
    return TextureVaeTask(fields, network, Stripes(), 16, 0, Frozen(), alignment)


def run(task: TextureVaeTask, work: Path, **changes: Any) -> list[dict[str, float]]:
    work.mkdir(exist_ok=True)
    trained = train(task, TrainingParams.model_validate(TRAINING | changes), 0, work, "f", log_nothing)
    trained.copy_to(task.network)
    return trained.curve


def distances(task: TextureVaeTask) -> tuple[float, float]:
    """Both losses without margins, on all images."""
    assert task.alignment is not None
    pixels = to_pixels(Stripes().images)
    strict = Alignment(vae_params(weight=1.0, cosine_margin=0.0, distance_margin=0.0).alignment, 6, 5, 0)
    strict.load_state_dict(task.alignment.state_dict())
    network: Any = task.network
    with torch.no_grad():
        latent = network.network.autoencoder.encode(pixels).latent_dist.mean
        cosine, distance = strict.terms(latent, Frozen()(pixels))
    return cosine.item(), distance.item()


@pytest.mark.parametrize("adaptive", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_training_brings_the_latent_nearer_to_the_features(tmp_path: Path, adaptive: bool) -> None:
    margins = {"cosine_margin": 0.0, "distance_margin": 0.0}
    task = make_task(vae_params(weight=0.5, adaptive=adaptive, **margins))
    before = distances(task)
    run(task, tmp_path)
    after = distances(task)
    assert after[0] < 0.7 * before[0] and after[1] < 0.9 * before[1], (before, after)


def test_the_terms_have_the_adaptive_weight_and_the_plain_ones_are_shown_beside() -> None:
    task = make_task(vae_params(weight=0.1, cosine_weight=2.0, cosine_margin=0.0))
    shown = {"alignment": 0.1, "alignment_cosine": 0.0, "alignment_distance": 0.0}
    assert task.weights == {"mse": 1.0, "l1": 1.0, "kl": 1e-6} | shown
    noise = task.noise(0, 4, torch.device("cpu"))
    losses = task.losses(task.network, Stripes().__getitems__([0, 1, 2, 3]), noise)
    plain = 2.0 * losses["alignment_cosine"] + losses["alignment_distance"]
    pixels = losses["mse"] + losses["l1"]
    ratio = (losses["alignment"] / plain).item()
    layer = task.last_layer.weight
    lengths = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (pixels, losses["alignment"])]
    assert ratio > 0.0 and lengths[1].item() == pytest.approx(lengths[0].item(), rel=1e-2), "as long as that of pixels"
    assert not losses["alignment_cosine"].requires_grad


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, halves = (make_task(vae_params(weight=0.1)) for _ in range(2))
    run(whole, tmp_path / "whole", num_steps=6)
    run(halves, tmp_path / "halves", num_steps=3)
    again = make_task(vae_params(weight=0.1))
    run(again, tmp_path / "halves", num_steps=6)
    found, wanted = again.network.state_dict(), whole.network.state_dict()
    assert "alignment.map.weight" in wanted
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_without_a_weight_the_training_is_that_of_before(tmp_path: Path) -> None:
    task = make_task(vae_params())
    run(task, tmp_path, num_steps=4)
    assert isinstance(task.network, TrainableAutoencoder) and task.alignment is None
    total = sum(value.double().abs().sum().item() for value in task.network.state_dict().values())
    assert total == pytest.approx(GOLDEN, rel=1e-5)
