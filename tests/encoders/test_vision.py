"""The frozen encoder, from timm weights in a file and trained; no hub is reached."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sfd.encoders.vision import TrainableEncoder, freeze, load_encoder, load_pretrained, save_encoder
from sfd.errors import UserError
from sfd.params import EncoderParams

NAME = "vit_tiny_patch16_224"
IMAGES = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def small_params(**changes: object) -> EncoderParams:
    fields = {"source": "train", "input_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2}
    return EncoderParams.model_validate(fields | changes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in timm's layout, with random weights."""
    file = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(timm.create_model(NAME, pretrained=False).state_dict(), file)
    return file


def test_a_trained_encoder_gives_the_same_features_after_saving_and_loading(tmp_path: Path) -> None:
    encoder = freeze(small_params(), TrainableEncoder(small_params(), 10, seed=0).eval())
    save_encoder(tmp_path, encoder)
    assert torch.equal(encoder(IMAGES), load_encoder(tmp_path)(IMAGES))
    assert encoder(IMAGES).shape == (2, 4, 16)


def test_the_seed_decides_the_first_weights() -> None:
    first, same, other = (TrainableEncoder(small_params(), 10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_timm_weights_in_a_file_give_patch_tokens_without_prefix_tokens(weights: Path, tmp_path: Path) -> None:
    params = small_params(source="file", file=str(weights), name=NAME, input_size=48, patch_size=16)
    encoder = load_pretrained(params)
    features = encoder(IMAGES)
    assert features.shape == (2, 9, 192)
    pixels = (IMAGES.float() / 255 - encoder.mean) / encoder.std
    resized = torch.nn.functional.interpolate(pixels, size=(48, 48), mode="bicubic", align_corners=False)
    assert torch.equal(features, encoder.vit.forward_features(resized)[:, 1:])
    save_encoder(tmp_path, encoder)
    assert torch.equal(load_encoder(tmp_path)(IMAGES), features)


def test_weights_of_another_model_are_refused_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"something": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"encoder.file .*other.safetensors.*weights that belong to encoder.name"):
        load_pretrained(small_params(source="file", file=str(file), name=NAME, input_size=48, patch_size=16))


def test_a_wrong_patch_size_is_refused_with_the_right_one(weights: Path) -> None:
    with pytest.raises(UserError, match="write 16"):
        load_pretrained(small_params(source="file", file=str(weights), name=NAME, input_size=48, patch_size=8))


def test_an_unreachable_hub_names_the_file_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    params = small_params(
        source="pretrained", name="vit_base_patch14_reg4_dinov2.lvd142m", input_size=28, patch_size=14
    )
    with pytest.raises(UserError, match=r"encoder.source: file and encoder.file"):
        load_pretrained(params)


def test_a_folder_without_weights_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        load_encoder(tmp_path)
