"""`sfd import` of SeFi-Image: a folder in its public layout becomes a model that computes the same, and what does not fit is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd import cli
from sfd.encoders.texture_vae import load_texture_vae
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.importing.networks import DiffusionFacts, import_weights
from sfd.models.flux2 import Flux2
from sfd.models.flux2_config import Flux2Config
from sfd.models.text_condition import TextCondition
from sfd.models.words import Words
from sfd.network_files import network_digest
from sfd.seeding import generator

CONFIG = Flux2Config(
    input_size=4,
    in_channels=14,
    num_heads=2,
    double_blocks=1,
    single_blocks=2,
    condition=TextCondition(6, 3),
    head_width=16,
    semantic_channels=2,
    two_times=True,
)
SETTINGS = """
model:
  model_name: flux2-klein-base-1b-sefi
  semantic_channels: 2
  text_encoder: {model_name: qwen3vl_2b, max_length: 3, hidden_layers: [9, 18, 27]}
training:
  sefi: {delta_t_min: 0.1, delta_t_max: 0.1}
data: {resolution: 64}
"""


def weights() -> dict[str, Tensor]:
    """Of the transformer, in bf16 as published."""
    network, random = Flux2(CONFIG), generator(0, "test/weights")
    return {
        key: (0.2 * torch.randn(value.shape, generator=random)).bfloat16()
        for key, value in network.state_dict().items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model of two shards, its settings and its VAE."""
    state, inner = weights(), tmp_path / "sefi" / "transformer"
    inner.mkdir(parents=True)
    shards = {f"diffusion_pytorch_model-0000{n + 1}-of-00002.safetensors": list(state)[n::2] for n in range(2)}
    for file, keys in shards.items():
        save_file({key: state[key] for key in keys}, inner / file)
    places = {key: file for file, keys in shards.items() for key in keys}
    (inner / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    (inner.parent / "sefi_config.yaml").write_text(SETTINGS)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
    )
    vae.bn.running_mean += torch.arange(12)
    vae.bn.running_var += 3.0
    vae.save_pretrained(inner.parent / "vae")
    return inner.parent


@pytest.fixture
def facts(tmp_path: Path) -> DiffusionFacts:
    """With the published statistics of the semantic latent."""
    file = tmp_path / "latent_stats.pt"
    torch.save({"mean_broadcast": torch.tensor([[[7.0, 8.0]]]), "std_broadcast": torch.tensor([[[2.0, 3.0]]])}, file)
    return DiffusionFacts(statistics=(file,))


def test_a_folder_of_shards_becomes_a_model_with_the_same_weights_and_the_published_schedule(
    folder: Path, facts: DiffusionFacts, tmp_path: Path
) -> None:
    said = import_weights(folder, "diffusion", tmp_path / "out", facts)
    model = DiffusionModel.load(tmp_path / "out")
    assert model.network.config == CONFIG
    published = {key: value.float() for key, value in weights().items()}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == published.keys() and all(torch.equal(found[key], published[key]) for key in found)
    assert (model.schedule_params.kind, model.schedule_params.tau) == ("offset", 0.1)
    assert model.statistics.mean.tolist() == [*range(12), 7.0, 8.0]
    torch.testing.assert_close(model.statistics.std, torch.tensor([(4.0 + 1e-4) ** 0.5] * 12 + [2.0, 3.0]))
    for part in (
        "Flux2: 1 double and 2 single blocks, 32 wide, 2 heads",
        "latents 14 x 4 x 4, the last 2 semantic; two times, tau 0.1",
        "texts of 3 tokens, 6 numbers each",
        f"texture's statistics: those of {folder / 'vae'}",
    ):
        assert part in said


@torch.no_grad()
def test_the_imported_model_draws_a_velocity_for_words(folder: Path, facts: DiffusionFacts, tmp_path: Path) -> None:
    import_weights(folder, "diffusion", tmp_path / "out", facts)
    network = Flux2(CONFIG)
    network.load_state_dict({key: value.float() for key, value in weights().items()})
    random = generator(1, "test/inputs")
    x, times = torch.randn(2, 14, 4, 4, generator=random), torch.rand(2, 2, generator=random)
    text = Words(torch.randn(2, 3, 6, generator=random), torch.ones(2, 3, dtype=torch.bool))
    loaded = DiffusionModel.load(tmp_path / "out").network
    torch.testing.assert_close(loaded(x, *times, text).velocity, network(x, *times, text).velocity)


def test_its_vae_is_a_texture_vae_and_is_recorded_when_named(
    folder: Path, facts: DiffusionFacts, tmp_path: Path
) -> None:
    vae = folder / "vae"
    import_weights(folder, "diffusion", tmp_path / "out", replace(facts, texture_vae=vae))
    model = DiffusionModel.load(tmp_path / "out")
    assert model.networks["texture_vae"] == network_digest(vae)
    assert load_texture_vae(vae).latent_channels == 12


@pytest.mark.parametrize("form", ["folder of one file", "transformer", "file", "wrapped"])
def test_other_forms_of_the_same_weights_become_the_same_folder(
    form: str, folder: Path, facts: DiffusionFacts, tmp_path: Path
) -> None:
    import_weights(folder, "diffusion", tmp_path / "first", facts)
    inner = folder / "transformer"
    source = {
        "folder of one file": folder,
        "transformer": inner,
        "file": inner / "diffusion_pytorch_model.safetensors",
    }.get(form)
    if form != "transformer":
        for file in inner.iterdir():
            file.unlink()
        save_file(weights(), inner / "diffusion_pytorch_model.safetensors")
    if source is None:
        source = inner / "checkpoint.pt"
        torch.save({"ema": {f"module.{key}": value for key, value in weights().items()}}, source)
    import_weights(source, "diffusion", tmp_path / "second", facts)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


def test_without_settings_beside_it_the_published_facts_count_and_options_go_first(
    folder: Path, facts: DiffusionFacts, tmp_path: Path
) -> None:
    (folder / "sefi_config.yaml").unlink()
    said = import_weights(folder, "diffusion", tmp_path / "out", replace(facts, semantic_channels=2, tau=0.2))
    assert "latents 14 x 64 x 64, the last 2 semantic; two times, tau 0.2" in said and "texts of 512 tokens" in said


def test_a_range_of_offsets_stays_one(folder: Path, facts: DiffusionFacts, tmp_path: Path) -> None:
    settings = folder / "sefi_config.yaml"
    settings.write_text(SETTINGS.replace("delta_t_min: 0.1", "delta_t_min: 0.0"))
    assert "tau 0 to 0.1" in import_weights(folder, "diffusion", tmp_path / "out", facts)
    covered = DiffusionModel.load(tmp_path / "out").schedule_params.tau_range
    assert covered is not None and (covered.low, covered.high) == (0.0, 0.1)


def test_what_does_not_fit_is_refused_with_the_remedy(folder: Path, facts: DiffusionFacts, tmp_path: Path) -> None:
    out, inner = tmp_path / "out", folder / "transformer"

    def refused(said: str, source: Path = folder, given: DiffusionFacts = facts) -> None:
        with pytest.raises(UserError, match=said):
            import_weights(source, "diffusion", out, given)
        assert not out.exists()

    refused(
        "draws images for texts and not for classes: leave --classes out",
        given=replace(facts, classes=tmp_path / "names"),
    )
    refused("is a folder without transformer/diffusion_pytorch_model.safetensors", source=tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    refused("statistics are of 2 channels, but the model has 14: give those of texture and those of semantics")
    index = inner / "diffusion_pytorch_model.safetensors.index.json"
    whole = index.read_text()
    index.write_text(whole.replace("diffusion_pytorch_model-00001", "../diffusion_pytorch_model-00001"))
    refused("names .*, but must name files beside it")
    index.write_text("{}")
    refused("has no `weight_map` from weights to files; download it again")
    index.write_text(whole)
    first = inner / "diffusion_pytorch_model-00001-of-00002.safetensors"
    first.unlink()
    refused("00001-of-00002.safetensors is missing")
    some = dict(list(weights().items())[1::2])
    save_file({"dual_time_embed.semantic_embedder.linear_1.weight": torch.ones(1)} | some, first)
    refused("holds no SeFi-Image that is known here: .* is missing|missing")


def test_the_command_takes_the_folder_and_another_kind_is_refused(
    folder: Path,
    facts: DiffusionFacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["sfd", "import", *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return int(ending.value.code or 0)

    statistics = ["--statistics", str(facts.statistics[0])]
    assert run(str(folder), str(tmp_path / "out"), "--kind", "diffusion", *statistics) == 0
    assert "Flux2: 1 double" in capsys.readouterr().out
    file = folder / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    save_file(weights(), file)
    assert run(str(file), str(tmp_path / "other"), "--kind", "texture-vae") == 2
    assert "looks like a diffusion, not like a texture-vae" in capsys.readouterr().err
