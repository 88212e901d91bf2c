"""Digests of networks, and the comparison of those that two sets of latents came from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfd.data.networks import TEXTURE_VAE, WORDS, check_networks, compared_at_start, read_networks
from sfd.encoders.semantic.encoder import load_semantic, save_semantic
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.encoders.texture_vae import KlVae, TrainableAutoencoder, load_texture_vae
from sfd.encoders.vision import TrainableEncoder, freeze, save_encoder
from sfd.errors import UserError
from sfd.network_files import network_digest, save_network
from sfd.params import EncoderParams, TextureVaeParams

# --- digests ---


def vae(folder: Path, heads: int = 2, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_semantic(folder, SemVae(SemVaeConfig(input_dim=6, hidden_dim=8, heads=heads, blocks=1, latent_dim=3)))
    return folder


def test_equal_networks_have_equal_digests_and_any_other_weight_or_number_of_heads_another_one(tmp_path: Path) -> None:
    first = network_digest(vae(tmp_path / "first"))
    assert len(first) == 64 and network_digest(vae(tmp_path / "again")) == first
    assert network_digest(vae(tmp_path / "heads", heads=4)) != first, "its weights have the same shapes"
    network = load_semantic(vae(tmp_path / "weights"))
    next(network.parameters()).view(-1)[0] += 1e-6
    save_semantic(tmp_path / "changed", network)
    assert network_digest(tmp_path / "changed") != first


def test_how_a_file_was_written_and_where_its_weights_came_from_do_not_count(tmp_path: Path) -> None:
    first = vae(tmp_path / "first")
    digest = network_digest(first)
    weights = load_file(first / "model.safetensors")
    save_file(dict(reversed(weights.items())), first / "model.safetensors", metadata={"format": "pt", "by": "others"})
    assert network_digest(first) == digest
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"weights": {"source": "file"}, "name": "mine"}))
    assert network_digest(first) == digest
    (first / "config.json").write_text(json.dumps(config | {"input_size": 448}))
    assert network_digest(first) != digest


def test_an_autoencoder_keeps_its_digest_when_it_is_read_and_written_again(tmp_path: Path) -> None:
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), seed=0).autoencoder).save(tmp_path / "a")
    load_texture_vae(tmp_path / "a").save(tmp_path / "b")
    digest = network_digest(tmp_path / "a")
    assert network_digest(tmp_path / "b") == digest
    file = tmp_path / "b" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_diffusers_version": "9.9", "scaling_factor": 0.3}))
    assert network_digest(tmp_path / "b") == digest


def test_an_encoders_table_of_positions_may_be_rounded_otherwise_but_its_size_counts(tmp_path: Path) -> None:
    def saved(name: str, size: int = 8, changed: str | None = None) -> str:
        sizes = {"input_size": size, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2}
        params = EncoderParams.model_validate({"source": "train"} | sizes)
        encoder = freeze(params, TrainableEncoder(params, 2, 0))
        if changed is not None:
            encoder.network.get_parameter(changed).data += 1e-6
        save_encoder(tmp_path / name, encoder)
        return network_digest(tmp_path / name)

    digest = saved("first")
    assert saved("rounded", changed="pos_embed") == digest
    assert saved("weights", changed="norm.weight") != digest and saved("larger", size=16) != digest


def test_types_shapes_and_numbers_of_no_dimension_count(tmp_path: Path) -> None:
    digests = set()
    for name, value in {
        "vector": torch.zeros(4),
        "matrix": torch.zeros(2, 2),
        "half": torch.zeros(4, dtype=torch.bfloat16),
        "scalar": torch.zeros(()),
    }.items():
        module = torch.nn.Module()
        module.register_buffer("value", value)
        save_network(tmp_path / name, module, {"kind": "own"})
        digests.add(network_digest(tmp_path / name))
    assert len(digests) == 4


def test_a_folder_without_weights_or_configuration_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no network: there is no .*safetensors; rerun the stage that makes it"):
        network_digest(tmp_path)
    (vae(tmp_path / "first") / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        network_digest(tmp_path / "first")


# --- comparisons ---

OURS = {"texture_vae": "a" * 64, "encoder": "b" * 64, "semantic": "c" * 64}


def compare(theirs: Any, ours: Any = None, compared: tuple[str, ...] = tuple(WORDS), accepted: bool = False) -> str:
    return check_networks(
        "the model", theirs, "results/latents", OURS if ours is None else ours, compared, "mend it", accepted
    )


def test_the_same_networks_and_parts_that_only_one_has_pass_in_silence() -> None:
    assert compare(OURS) == ""
    assert compare(OURS | {"encoder": None, "semantic": None}) == ""
    assert compare(OURS, OURS | {"semantic": None}) == ""


@pytest.mark.parametrize("name", WORDS)
def test_each_network_that_differs_is_refused_by_name_and_accepted_as_told(name: str) -> None:
    theirs = OURS | {name: "0123456789abcdef"}
    others = [words for other, words in WORDS.items() if other != name]
    with pytest.raises(UserError) as refused:
        compare(theirs)
    said = str(refused.value)
    assert said.startswith(
        "the model was trained on latents of other networks than results/latents: "
    ) and said.endswith("; mend it")
    assert f"{WORDS[name]} 0123456789ab there and {OURS[name][:12]} here" in said
    assert not any(words in said for words in others)
    assert compare(theirs, accepted=True).startswith("goes on as told, although the model was trained on latents of")
    assert compare(theirs, compared=tuple(other for other in WORDS if other != name)) == ""


def test_all_that_differ_are_named_at_once() -> None:
    with pytest.raises(UserError, match="texture VAE 1 there and aaaaaaaaaaaa here, semantic encoder 3 there"):
        compare({"texture_vae": "1", "encoder": "b" * 64, "semantic": "3"})


def test_what_is_not_known_is_said_and_not_refused() -> None:
    words = "texture VAE and vision encoder and semantic encoder"
    assert compare({}) == f"the model does not say which {words} its latents came from, so nothing can be compared"
    assert "which vision encoder its latents came from, so that is not compared" in compare(
        {"texture_vae": "a" * 64, "semantic": "c" * 64}
    )
    assert compare(OURS, {}).startswith("results/latents does not say")
    with pytest.raises(UserError, match="texture VAE 1 there"):
        compare({"texture_vae": "1"})


def test_semantic_channels_of_another_number_are_learnt_anew_so_their_networks_may_differ() -> None:
    assert compared_at_start(16, 16) == tuple(WORDS)
    assert compared_at_start(16, 8) == compared_at_start(0, 16) == (TEXTURE_VAE,)


@pytest.mark.parametrize(("content", "expected"), [({}, {}), ({"networks": OURS}, OURS)])
def test_a_model_without_a_record_is_older_and_knows_nothing(tmp_path: Path, content: Any, expected: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_networks(tmp_path) == expected


@pytest.mark.parametrize("networks", [3, ["a"], {"vae": "a"}, {"encoder": 3}])
def test_another_record_is_refused(tmp_path: Path, networks: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"networks": networks}))
    with pytest.raises(UserError, match="networks must map texture_vae, encoder, semantic to digests, but is"):
        read_networks(tmp_path)
