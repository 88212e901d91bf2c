"""SemVAE: published size, posterior, losses, files."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sfd.encoders.semantic.encoder import load_semantic, save_semantic
from sfd.encoders.semantic.semvae import Posterior, SemVae, SemVaeConfig
from sfd.errors import UserError
from sfd.params import SemanticParams

SMALL = SemVaeConfig(input_dim=12, hidden_dim=16, heads=2, blocks=2, latent_dim=3)


@pytest.fixture
def network() -> SemVae:
    torch.manual_seed(0)
    return SemVae(SMALL).eval()


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(1))


def test_the_published_size_has_57_9_million_parameters() -> None:
    with torch.device("meta"):
        model = SemVae(SemVaeConfig(input_dim=768, hidden_dim=768, heads=12, blocks=4, latent_dim=16))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 57.9


def test_encoder_and_decoder_mirror_each_other_under_the_published_names(network: SemVae) -> None:
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["encoder.0.weight"] == (16, 12) and shapes["encoder.4.weight"] == (6, 16)
    assert shapes["decoder.0.weight"] == (16, 3) and shapes["decoder.4.weight"] == (12, 16)
    assert shapes["encoder.1.attn.in_proj_weight"] == shapes["decoder.2.attn.in_proj_weight"] == (48, 16)


def test_tokens_go_in_and_tokens_come_out(network: SemVae, features: torch.Tensor) -> None:
    posterior = network.posterior(features)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 9, 3)
    assert network.decode(posterior.mean).shape == features.shape


def test_there_is_no_position_embedding(network: SemVae, features: torch.Tensor) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    mean = network.encode(features)
    assert torch.allclose(network.encode(features[:, order]), mean[:, order], atol=1e-6)
    assert not torch.allclose(mean[:, order], mean, atol=1e-3)


def test_the_log_variance_is_clamped(network: SemVae, features: torch.Tensor) -> None:
    with torch.no_grad():
        network.encoder[-1].bias[3:] = torch.tensor([-100.0, 0.0, 100.0])
    logvar = network.posterior(features).logvar
    assert bool((logvar[..., 0] == -30).all()) and bool((logvar[..., 2] == 20).all())
    assert bool((logvar[..., 1].abs() < 20).all())


def test_kl_is_zero_for_the_standard_normal_and_a_sum_over_tokens_and_channels_otherwise() -> None:
    zeros = torch.zeros(2, 4, 3)
    assert Posterior(zeros, zeros).kl().tolist() == [0.0, 0.0]
    mean = zeros.clone()
    mean[1] = 2.0
    assert Posterior(mean, zeros).kl().tolist() == pytest.approx([0.0, 0.5 * 4 * 12])
    wide = Posterior(zeros, torch.full_like(zeros, 1.0)).kl()
    assert wide.tolist() == pytest.approx([0.5 * (torch.e - 2) * 12] * 2)


def test_a_sample_is_mean_plus_deviation_times_noise() -> None:
    posterior = Posterior(torch.full((1, 1, 2), 3.0), torch.full((1, 1, 2), 2 * torch.tensor(5.0).log().item()))
    assert posterior.sample(torch.tensor([[[0.0, -1.0]]])).tolist() == [[pytest.approx([3.0, -2.0])]]


@torch.no_grad()
def test_the_loss_terms_are_those_of_the_reconstruction_of_a_sample(network: SemVae, features: torch.Tensor) -> None:
    noise = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(3))
    losses = network(features, noise)
    posterior = network.posterior(features)
    rebuilt = network.decode(posterior.sample(noise))
    cosine = (rebuilt * features).sum(-1) / rebuilt.norm(dim=-1) / features.norm(dim=-1)
    assert float(losses["mse"]) == pytest.approx(float((rebuilt - features).square().mean()), rel=1e-5)
    assert float(losses["cosine"]) == pytest.approx(1 - float(cosine.mean()), rel=1e-5)
    assert float(losses["kl"]) == pytest.approx(float(posterior.kl().mean()), rel=1e-5)


@torch.no_grad()
def test_the_cosine_term_compares_along_channels_or_as_published_along_tokens(
    network: SemVae, features: torch.Tensor
) -> None:
    noise = torch.zeros(2, 9, 3)
    published = SemVae(network.shape, "tokens")
    published.load_state_dict(network.state_dict())
    rebuilt = network.decode(network.encode(features))
    channels, tokens = (
        1 - float(torch.nn.functional.cosine_similarity(rebuilt, features, dim=axis).mean()) for axis in (2, 1)
    )
    assert float(network(features, noise)["cosine"]) == pytest.approx(channels, rel=1e-4)
    assert float(published(features, noise)["cosine"]) == pytest.approx(tokens, rel=1e-4)
    assert abs(channels - tokens) > 1e-3
    for axis in ("channels", "tokens"):
        built = SemVae.build(SemanticParams.model_validate({"cosine_over": axis}), 16, 0)
        assert built.cosine_over == axis and "cosine_over" not in built.config()


def test_a_saved_network_loads_frozen_and_computes_the_same(
    network: SemVae, features: torch.Tensor, tmp_path: Path
) -> None:
    save_semantic(tmp_path, network)
    loaded = load_semantic(tmp_path)
    assert isinstance(loaded, SemVae) and loaded.shape == SMALL and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.allclose(loaded.encode(features), network.encode(features), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_dim": 8}, "does not fit its config.json"),
        ({"width": 8}, "config.json does not describe a semantic encoder of kind `semvae`: .*width"),
        ({"heads": 3}, "config.json does not describe a semantic encoder of kind `semvae`: .*divisible"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    network: SemVae, tmp_path: Path, changes: dict[str, int], named: str
) -> None:
    save_semantic(tmp_path, network)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "semvae"} | asdict(SMALL) | changes))
    with pytest.raises(UserError, match=named):
        load_semantic(tmp_path)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no network: config.json is missing"):
        load_semantic(tmp_path)
