"""A semantic encoder from a folder is the one that the parameters describe, or it is refused by what differs."""

from pathlib import Path
from typing import Any

import pytest

from sfd.encoders.semantic.encoder import save_semantic
from sfd.encoders.semantic.given import check_given
from sfd.encoders.semantic.pca import PcaSemantic
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.errors import UserError
from sfd.params import SemanticParams

VAE = SemVaeConfig(input_dim=6, hidden_dim=8, heads=2, blocks=1, latent_dim=3)
DESCRIBED = {"latent_channels": 3, "width": 8, "num_heads": 2, "depth": 1}


def described(**changes: Any) -> SemanticParams:
    return SemanticParams.model_validate(DESCRIBED | {"source": "file", "file": "given"} | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_semantic(tmp_path, SemVae(VAE))
    return tmp_path


def test_what_the_parameters_describe_is_accepted_whatever_the_training(folder: Path, tmp_path: Path) -> None:
    check_given(folder, described(), 6)
    check_given(folder, described(training={"num_steps": 3}, kl_weight=1.0), 6)
    save_semantic(tmp_path / "pca", PcaSemantic(6, 3))
    check_given(tmp_path / "pca", described(kind="pca", width=99), 6)


@pytest.mark.parametrize(
    ("option", "value", "own"), [("latent_channels", 4, 3), ("width", 16, 8), ("num_heads", 4, 2), ("depth", 2, 1)]
)
def test_each_width_that_differs_is_refused_by_name_with_the_right_one(
    folder: Path, option: str, value: int, own: int
) -> None:
    with pytest.raises(UserError) as refused:
        check_given(folder, described(**{option: value}), 6)
    said = str(refused.value)
    assert f"semantic.{option} is {value}, but its own is {own}: write its own into params.yaml" in said
    assert said.count("but its own is") == 1 and "\n" not in said


def test_all_widths_that_differ_are_named_at_once(folder: Path) -> None:
    with pytest.raises(
        UserError, match="semantic.width is 16, but its own is 8; semantic.depth is 9, but its own is 1"
    ):
        check_given(folder, described(width=16, depth=9), 6)


def test_features_of_another_width_are_those_of_another_encoder(folder: Path) -> None:
    with pytest.raises(UserError, match="takes features of 6 channels, but the vision encoder gives 7: set encoder"):
        check_given(folder, described(), 7)


def test_another_kind_and_a_folder_without_a_network_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of kind 'semvae', but semantic.kind is `pca`: give a folder of"):
        check_given(folder, described(kind="pca"), 6)
    with pytest.raises(UserError, match=r"holds no network: config\.json is missing"):
        check_given(tmp_path / "nothing", described(), 6)
