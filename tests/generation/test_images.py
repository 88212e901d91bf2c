"""Classes and seeds to images, with and without guidance, on untrained networks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfd.data.latents import ChannelStatistics
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.samplers.heun import Heun
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.solver import Steps
from sfd.encoders.texture_vae import KlVae, TextureVae, TrainableAutoencoder
from sfd.errors import UserError
from sfd.generation.images import ImageGenerator
from sfd.generation.model import DiffusionModel
from sfd.models.conditions import ClassCondition, Condition, NoCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.network_files import network_digest
from sfd.params import SampleParams, ScheduleParams, TextureVaeParams
from sfd.precision import Inference

SAMPLER = Sampler(Heun, num_steps=4)
CLASSES, SEEDS = [0, 1, 1], [5, 6, 7]


def network(seed: int, depth: int = 2, **parts: Any) -> LightningDiT:
    """Random weights that are not zero anywhere, so that every input matters."""
    parts = {"condition": ClassCondition(("a", "b"))} | parts
    config = LightningDiTConfig(4, 6, 32, depth, 2, semantic_channels=2, two_times=True, **parts)
    made, random = LightningDiT(config), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return made.eval().requires_grad_(False)


def model(seed: int = 0) -> DiffusionModel:
    statistics = ChannelStatistics(torch.arange(6.0) / 10, torch.full((6,), 0.5))
    return DiffusionModel(network(seed), ScheduleParams.model_validate({"tau": 0.3}), statistics)


@pytest.fixture(scope="module")
def decoder() -> TextureVae:
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    return KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), seed=0).autoencoder).eval()


def draw(images: ImageGenerator, scales: GuidanceScales = GuidanceScales()) -> Tensor:  # noqa: B008  # frozen
    return images(CLASSES, SEEDS, SAMPLER, scales)


def test_the_same_class_and_seed_give_the_same_image_and_others_do_not(decoder: TextureVae) -> None:
    images = ImageGenerator(model(), decoder)
    first = draw(images)
    assert first.shape == (3, 3, 8, 8) and first.dtype == torch.uint8
    assert torch.equal(first, draw(images))
    assert not torch.equal(images([0], [5], SAMPLER, GuidanceScales()), images([0], [6], SAMPLER, GuidanceScales()))
    assert not torch.equal(images([0], [5], SAMPLER, GuidanceScales()), images([1], [5], SAMPLER, GuidanceScales()))


def test_guidance_changes_images_and_a_scale_of_one_does_not(decoder: TextureVae) -> None:
    plain = draw(ImageGenerator(model(), decoder))
    weak = ImageGenerator(model(), decoder, weak=network(seed=9, depth=1))
    assert torch.equal(draw(weak), plain), "unguided, the weak model plays no part"
    by_null_class = draw(ImageGenerator(model(), decoder), GuidanceScales(2.0, 2.0))
    by_weak_model = draw(weak, GuidanceScales(2.0, 2.0))
    assert not torch.equal(by_null_class, plain)
    assert not torch.equal(by_weak_model, plain) and not torch.equal(by_weak_model, by_null_class)


@pytest.mark.parametrize("condition", [ClassCondition(("a", "b")), NoCondition()], ids=["classes", "none"])
def test_path_drop_guides_away_from_the_null_class_without_the_deep_path(
    condition: Condition, decoder: TextureVae
) -> None:
    made = replace(model(), network=network(0, depth=3, condition=condition, first_blocks=1, last_blocks=1))
    images, scales = ImageGenerator(made, decoder), GuidanceScales(2.0, 2.0)
    values: list[int | None] = [0, 1, 1] if condition.has_null else [None] * 3
    asked: list[tuple[bool, list[int]]] = []

    def note(_module: object, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        asked.append((options.get("skip_deep", False), arguments[3].flatten().tolist()))

    made.network.register_forward_pre_hook(note, with_kwargs=True)
    guided = images(values, SEEDS, SAMPLER, scales, path_drop=True)
    assert not torch.equal(guided, images(values, SEEDS, SAMPLER, GuidanceScales(), path_drop=True))
    strong, weak = asked[:2]
    told = condition.batch(values).flatten().tolist()
    assert strong == (False, told) and weak == (True, [2, 2, 2] if condition.has_null else told)
    deep: list[None] = []
    made.network.blocks[1].register_forward_hook(lambda *_call: deep.append(None))
    asked.clear()
    images(values, SEEDS, SAMPLER, scales, path_drop=True)
    assert len(deep) == len(asked) / 2, "the weak half of the evaluations does not run the middle block"


def test_path_drop_of_a_model_with_one_path_is_refused(decoder: TextureVae) -> None:
    params = SampleParams.model_validate(
        {"sampler": "euler", "num_steps": 2, "guidance": {"kind": "path_drop", "scale_texture": 2.0}}
    )
    with pytest.raises(UserError, match="the model has no path that could be dropped: train one with diffusion.sparse"):
        next(ImageGenerator(model(), decoder).sample([0], [5], params, 1))
    both = replace(model(), network=network(0, depth=3, first_blocks=1, last_blocks=1))
    assert next(ImageGenerator(both, decoder).sample([0], [5], params, 1)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_networks_compute_in_the_type_and_the_sampler_in_float32(decoder: TextureVae, dtype: torch.dtype) -> None:
    seen: dict[str, set[torch.dtype]] = {"products": set(), "inputs": set(), "states": set()}

    class Watched(Heun):
        def step(self, steps: Steps, n: int, x: Tensor) -> Tensor:
            after = super().step(steps, n, x)
            seen["states"] |= {x.dtype, after.dtype, steps.velocity(n, x).dtype}
            return after

    made, weak = model(), network(seed=9, depth=1)
    for backbone in (made.network, weak):
        backbone.register_forward_pre_hook(lambda _, inputs: seen["inputs"].update(each.dtype for each in inputs[:3]))
    layers = [
        layer
        for whole in (made.network, weak, decoder)
        for layer in whole.modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    hooks = [layer.register_forward_hook(lambda _, __, found: seen["products"].add(found.dtype)) for layer in layers]
    images = ImageGenerator(made, decoder, weak, Inference(torch.device("cpu"), dtype))
    sampler, scales = Sampler(Watched, num_steps=4), GuidanceScales(2.0, 2.0)
    first, again = (images(CLASSES, SEEDS, sampler, scales) for _ in range(2))
    for hook in hooks:
        hook.remove()
    assert torch.equal(first, again) and first.dtype == torch.uint8, "the same bytes each time"
    assert seen == {"products": {dtype}, "inputs": {torch.float32}, "states": {torch.float32}}


def test_a_class_that_does_not_exist_is_refused_and_no_class_is_allowed(decoder: TextureVae) -> None:
    images = ImageGenerator(model(), decoder)
    with pytest.raises(UserError, match="class index 3 is not in 0..1"):
        images([3], [0], SAMPLER, GuidanceScales())
    assert len(images([None], [0], SAMPLER, GuidanceScales())) == 1


def test_a_saved_model_draws_the_same_images(decoder: TextureVae, tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path)
    assert torch.equal(
        draw(ImageGenerator(DiffusionModel.load(tmp_path), decoder)), draw(ImageGenerator(made, decoder))
    )


def test_a_folder_that_holds_another_model_is_named(tmp_path: Path) -> None:
    model().save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"width": 3}}))
    with pytest.raises(UserError, match="does not describe a diffusion model"):
        DiffusionModel.load(tmp_path)


# --- the networks that the latents came from ---

OTHER = {"texture_vae": "0" * 64, "encoder": "1" * 64, "semantic": "2" * 64}


@pytest.fixture
def folders(decoder: TextureVae, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model whose latents came from the decoder's autoencoder, that decoder, and a weak model of the same latents."""
    decoder.save(tmp_path / "vae")
    networks = OTHER | {"texture_vae": network_digest(tmp_path / "vae")}
    replace(model(), networks=networks).save(tmp_path / "model")
    replace(model(seed=9), networks=networks).save(tmp_path / "weak")
    return tmp_path / "model", tmp_path / "vae", tmp_path / "weak"


def test_a_model_with_its_decoder_and_a_weak_model_of_the_same_latents_load_in_silence(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images = ImageGenerator.load(*folders)
    assert images.weak is not None and images.model.networks == DiffusionModel.load(folders[2]).networks
    assert capsys.readouterr().err == ""


def test_another_decoder_is_refused_by_both_digests_and_used_as_told(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), seed=1).autoencoder).save(folders[1])
    there, here = DiffusionModel.load(folders[0]).networks["texture_vae"] or "", network_digest(folders[1])
    reason = f"other networks than {folders[1]}: texture VAE {there[:12]} there and {here[:12]} here; decode with the"
    with pytest.raises(UserError, match=reason):
        ImageGenerator.load(folders[0], folders[1])
    draw(ImageGenerator.load(folders[0], folders[1], other_networks=True))
    assert capsys.readouterr().err.startswith("goes on as told, although the model was trained on latents of other")


@pytest.mark.parametrize(
    ("name", "words"),
    [("texture_vae", "texture VAE"), ("encoder", "vision encoder"), ("semantic", "semantic encoder")],
)
def test_a_weak_model_of_other_latents_is_refused_by_what_differs_and_used_as_told(
    folders: tuple[Path, Path, Path], name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = DiffusionModel.load(folders[2])
    replace(weak, networks={**weak.networks, name: "f" * 64}).save(folders[2])
    with pytest.raises(UserError, match=f"the weak model in {folders[2]} was trained .*: {words} ffffffffffff there"):
        ImageGenerator.load(*folders)
    assert ImageGenerator.load(*folders, other_networks=True).weak is not None
    assert f"although the weak model in {folders[2]}" in capsys.readouterr().err


def test_a_weak_model_of_other_channel_statistics_is_refused_and_used_as_told(folders: tuple[Path, Path, Path]) -> None:
    weak = DiffusionModel.load(folders[2])
    near, far = (ChannelStatistics(weak.statistics.mean + shift, weak.statistics.std) for shift in (0.001, 0.1))
    replace(weak, statistics=near).save(folders[2])
    assert ImageGenerator.load(*folders).weak is not None
    replace(weak, statistics=far).save(folders[2])
    with pytest.raises(UserError, match="normalises latents by other channel statistics than the model that it guides"):
        ImageGenerator.load(*folders)
    assert ImageGenerator.load(*folders, other_networks=True).weak is not None


def test_a_model_of_an_older_version_loads_with_a_line_that_nothing_can_be_compared(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (folders[0], folders[2]):
        config = json.loads((folder / "config.json").read_text())
        del config["networks"]
        (folder / "config.json").write_text(json.dumps(config))
    draw(ImageGenerator.load(*folders))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("so nothing can be compared" in line for line in lines)
    assert lines[0].startswith("the model does not say which texture VAE its latents came from")
    assert lines[1].startswith(f"the weak model in {folders[2]} does not say which texture VAE and vision encoder and")


@pytest.mark.parametrize("sampler", ["heun", "ab2"])
def test_in_filled_batches_an_image_has_the_same_bytes_in_whatever_company(decoder: TextureVae, sampler: str) -> None:
    images = ImageGenerator(model(), decoder)
    params = SampleParams.model_validate({"sampler": sampler, "num_steps": 4, "guidance": {}})

    def drawn(classes: list[int], seeds: list[int]) -> Tensor:
        return torch.cat(list(images.sample(classes, seeds, params, 4, fill=True)))

    alone, among = drawn([1], [7]), drawn([0, 1, 0, 0, 1, 1], [3, 4, 5, 6, 7, 8])
    assert len(alone) == 1 and len(among) == 6, "the filling is dropped"
    assert torch.equal(alone[0], among[4]) and not torch.equal(alone[0], among[5])
