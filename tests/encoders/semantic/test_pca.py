"""Principal components as semantic latents: against scikit-learn's, their sign, their files."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from sfd.encoders.semantic.encoder import load_semantic, save_semantic
from sfd.encoders.semantic.pca import PcaSemantic
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.errors import UserError
from sfd.params import SemanticParams

DIM = 12


@pytest.fixture
def features() -> Tensor:
    """Correlated features of 60 images, far from the origin."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(60, 9, DIM, generator=random) @ torch.randn(DIM, DIM, generator=random) + 30.0


def fitted(features: Tensor, channels: int = 4, batch: int = 16) -> PcaSemantic:
    network = PcaSemantic.build(SemanticParams(kind="pca", latent_channels=channels), DIM, 0)
    network.fit(features.split(batch))
    return network.eval()


def test_components_are_those_of_scikit_learn_up_to_sign(features: Tensor) -> None:
    expected, found = PCA(4, svd_solver="full").fit(features.flatten(0, 1).double().numpy()), fitted(features)
    torch.testing.assert_close(found.mean.double(), torch.from_numpy(expected.mean_), rtol=1e-6, atol=1e-6)
    products = found.components.double() @ torch.from_numpy(expected.components_).T
    torch.testing.assert_close(products.abs(), torch.eye(4).double(), rtol=0.0, atol=1e-5)


def test_the_largest_entry_of_each_component_is_positive_whatever_the_sign_of_the_data(features: Tensor) -> None:
    for network in (fitted(features), fitted(-features)):
        largest = network.components.gather(1, network.components.abs().argmax(1, keepdim=True))
        assert bool((largest > 0).all())
    torch.testing.assert_close(fitted(-features).components, fitted(features).components, rtol=0.0, atol=1e-5)


def test_the_fit_does_not_depend_on_batches_and_repeats_bit_by_bit(features: Tensor) -> None:
    assert torch.equal(fitted(features).components, fitted(features).components)
    torch.testing.assert_close(fitted(features, batch=7).components, fitted(features).components, rtol=0.0, atol=1e-6)


def test_all_components_give_the_features_back_and_fewer_a_nearest_point(features: Tensor) -> None:
    whole, some = fitted(features, DIM), fitted(features)
    latent = whole.encode(features)
    assert latent.shape == features.shape
    torch.testing.assert_close(whole.decode(latent), features, rtol=1e-4, atol=1e-3)
    assert some.encode(features).shape == (60, 9, 4) and some.decode(some.encode(features)).shape == features.shape
    again = some.encode(some.decode(some.encode(features)))
    torch.testing.assert_close(again, some.encode(features), rtol=1e-3, atol=1e-3)
    spread = latent.flatten(0, 1).std(dim=0)
    assert bool((spread.diff() < 0).all()), "the first component varies most"


def test_more_components_than_features_and_features_that_are_not_finite_are_refused(features: Tensor) -> None:
    with pytest.raises(UserError, match="latent_channels is 13, but the encoder's features have 12 channels; lower it"):
        fitted(features, DIM + 1)
    features[3, 4, 5] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        fitted(features)


def test_a_folder_says_which_kind_it_holds(features: Tensor, tmp_path: Path) -> None:
    network = fitted(features)
    save_semantic(tmp_path / "pca", network)
    loaded = load_semantic(tmp_path / "pca")
    assert isinstance(loaded, PcaSemantic) and not loaded.training and loaded.latent_channels == 4
    assert torch.equal(loaded.encode(features), network.encode(features))
    save_semantic(tmp_path / "vae", SemVae(SemVaeConfig(input_dim=DIM, hidden_dim=8, heads=2, blocks=1, latent_dim=3)))
    vae = load_semantic(tmp_path / "vae")
    assert isinstance(vae, SemVae) and vae.latent_channels == 3 and vae.encode(features).shape == (60, 9, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_channels": 5}, "does not fit its config.json"),
        ({"width": 8}, "does not describe a semantic encoder of kind `pca`: .*width"),
        ({"kind": "ica"}, "kind is 'ica'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    features: Tensor, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    save_semantic(tmp_path, fitted(features))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=named):
        load_semantic(tmp_path)
