"""The losses of texture VAEs: which terms there are, whom each one teaches, and that the network on a tokenizer learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from striped import Stripes
from torch import Tensor, nn

from sfd.encoders.texture_vae import TrainableAutoencoder, load_texture_vae
from sfd.encoders.tokenizers.pca import PcaTokenizer
from sfd.encoders.tokenizers.residual import ResidualDecoder
from sfd.evaluation.reconstruction import psnr
from sfd.params import TextureVaeParams, TrainingParams
from sfd.pixels import to_pixels
from sfd.training.loop import log_nothing, train
from sfd.training.texture_vae import Discriminator, ResidualTask, TextureVaeTask

TRAINING = {"num_steps": 80, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": 0.0}


def params(**changes: Any) -> TextureVaeParams:
    fields = {"source": "pca", "block_size": 4, "latent_channels": 6, "residual_width": 16, "training": TRAINING}
    return TextureVaeParams.model_validate(fields | changes)


def tokenizer() -> PcaTokenizer:
    made = PcaTokenizer.build(params())
    made.fit([Stripes().images])
    return made.eval()


def round_trip(made: PcaTokenizer, images: Tensor) -> Tensor:
    return made.decode(made.encode(images, torch.empty(0)))


def test_the_network_on_a_tokenizer_changes_nothing_at_first_learns_and_is_saved_with_it(tmp_path: Path) -> None:
    data, made = Stripes(), tokenizer()
    plain = round_trip(made, data.images)
    network = ResidualDecoder.initialised(4, 16, seed=0)
    made.residual = network
    assert torch.equal(round_trip(made, data.images), plain)
    task = ResidualTask(params(), network, tokenizer(), data, seed=0)
    train(task, TrainingParams.model_validate(TRAINING), 0, tmp_path, "f", log_nothing).copy_to(task.network)
    better = round_trip(made, data.images)
    assert psnr(data.images, better).mean() > psnr(data.images, plain).mean() + 1.0
    made.save(tmp_path / "model")
    assert torch.equal(load_texture_vae(tmp_path / "model").decode(made.encode(data.images, torch.empty(0))), better)


def test_the_default_terms_are_the_errors_of_pixels_and_kl() -> None:
    fields = params(source="train", channels=(8, 8, 8), layers_per_block=1)
    task = TextureVaeTask(fields, TrainableAutoencoder(fields, 0), Stripes(), 16, 0)
    assert task.weights == {"mse": 1.0, "l1": 1.0, "kl": 1e-6}
    noise = task.noise(0, 2, torch.device("cpu"))
    losses = task.losses(task.network, Stripes().__getitems__([0, 1]), noise)
    assert set(losses) == set(task.weights) and all(bool(term.isfinite()) for term in losses.values())


def test_the_perceptual_term_is_zero_for_equal_features_and_teaches_through_them() -> None:
    torch.manual_seed(0)
    frozen = nn.Conv2d(3, 5, 4, stride=4)

    def features(pixels: Tensor) -> Tensor:
        return frozen(pixels).flatten(2).transpose(1, 2)

    task = ResidualTask(params(perceptual_weight=0.5), ResidualDecoder(4, 16), tokenizer(), Stripes(), 0, features)
    assert task.weights == {"mse": 1.0, "l1": 1.0, "perceptual": 0.5}
    pixels = to_pixels(Stripes().images[:4])
    assert task.terms(pixels, pixels, task.wanted(pixels))["perceptual"].item() == pytest.approx(0.0, abs=1e-6)
    other = torch.randn(pixels.shape).requires_grad_()
    term = task.terms(pixels, other, task.wanted(pixels))["perceptual"]
    assert 0.0 < term.item() < 2.0 and bool(torch.autograd.grad(term, other)[0].any())


def test_each_side_of_the_hinge_loss_teaches_its_own_network_alone() -> None:
    judge = Discriminator(seed=0)
    pixels, fake = torch.randn(2, 2, 3, 16, 16).unbind()
    fake.requires_grad_()
    terms = judge.terms(pixels, fake)
    weights = list(judge.parameters())
    assert bool(torch.autograd.grad(terms["adversarial"], fake, retain_graph=True)[0].any())
    assert torch.autograd.grad(terms["adversarial"], weights, allow_unused=True, retain_graph=True) == (None,) * 8
    assert torch.autograd.grad(terms["discriminator"], [fake], allow_unused=True, retain_graph=True) == (None,)
    gradients = torch.autograd.grad(terms["discriminator"], weights)
    assert all(bool(each.any()) for each in gradients[:-1]), "real and fake patches move the last bias in opposite ways"
    assert judge(pixels).shape == (2, 1, 4, 4)


def test_a_discriminator_is_trained_beside_and_is_no_part_of_the_result(tmp_path: Path) -> None:
    network = ResidualDecoder.initialised(4, 16, seed=0)
    task = ResidualTask(params(adversarial_weight=0.1), network, tokenizer(), Stripes(), seed=0)
    assert task.discriminator is not None and list(task.weights) == ["mse", "l1", "adversarial", "discriminator"]
    before = {name: value.clone() for name, value in task.discriminator.state_dict().items()}
    short = TrainingParams.model_validate(TRAINING | {"num_steps": 3})
    train(task, short, 0, tmp_path, "f", log_nothing).copy_to(task.network)
    assert not any(torch.equal(value, before[name]) for name, value in task.discriminator.state_dict().items())
    assert bool(network.out.weight.any()) and not any("discriminator" in name for name in network.state_dict())
