"""Starting from a trained model: what is copied, resized, re-initialised and unused; adapters; the real stage and registry."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.params import DiffusionParams, DiffusionTrainingParams, LoraParams, LossParams, ScheduleParams, TrainingRuntime
from sfd.seeding import generator
from sfd.training.diffusion import DecodedFeatures, DiffusionTask
from sfd.training.finetuning import Start, add_adapters, start_from, transfer
from sfd.training.loop import Callback, log_nothing, train

CLASSES = ("ape", "bee", "cow")
CONFIG = LightningDiTConfig(
    4,
    6,
    hidden_size=32,
    depth=2,
    num_heads=2,
    condition=ClassCondition(CLASSES),
    semantic_channels=2,
    two_times=True,
    repa_depth=1,
    repa_width=16,
    feature_dim=8,
)
NETWORKS = {"texture_vae": "a" * 64, "encoder": "b" * 64, "semantic": "c" * 64}
PARTS = ["y_embedder.embedding_table.weight", "x_embedder.proj.weight", "final_layer.linear.weight"]
TIMES = [
    f"t_embedder_{part}.mlp.{layer}.{kind}"
    for part in ("sem", "tex")
    for layer in (0, 2)
    for kind in ("weight", "bias")
]


def fresh(config: LightningDiTConfig = CONFIG, seed: int = 1) -> LightningDiT:
    return LightningDiT(config).initialise(generator(seed, "test/initialisation"))


def trained_model(config: LightningDiTConfig = CONFIG) -> DiffusionModel:
    """A model none of whose learnt weights is what an initialisation gives."""
    network, random = fresh(config, seed=0), generator(0, "test/trained")
    for name, parameter in network.named_parameters():
        if name != "pos_embed":
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    statistics = ChannelStatistics(torch.full((config.in_channels,), 0.5), torch.full((config.in_channels,), 2.0))
    return DiffusionModel(network.eval().requires_grad_(False), ScheduleParams(), statistics, NETWORKS)


class Latents:
    """Random latents of three classes with features, as far as a training must know a data set."""

    def __init__(self, classes: tuple[str, ...] = CLASSES, channels: int = 6) -> None:
        random = generator(0, "test/latents")
        self.raw, self.features = (
            torch.randn(37, channels, 4, 4, generator=random),
            torch.randn(37, 16, 8, generator=random),
        )
        self.statistics = ChannelStatistics(torch.zeros(channels), torch.ones(channels))
        self.index = SimpleNamespace(classes=classes, networks=NETWORKS)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        latents = self.statistics.normalise(self.raw[indices])
        return LatentBatch(latents, torch.tensor(indices) % 3, self.features[indices])


def options(**changes: Any) -> DiffusionParams:
    training = DiffusionTrainingParams(
        num_steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5, precision="fp32"
    )
    return DiffusionParams.model_validate(
        {"model": {"size": "tiny"}, "loss": {}, "training": training, "init_from": "x"} | changes
    )


def start(seed: int = 0, source: DiffusionModel | None = None, **changes: Any) -> tuple[Start, Latents]:
    dataset = Latents(("bee", "dog", "emu"))
    network = fresh(replace(CONFIG, condition=ClassCondition(("bee", "dog", "emu"))))
    begun = start_from(source or trained_model(), network, dataset, options(**changes), seed)  # type: ignore[arg-type]
    return begun, dataset


def differing(network: LightningDiT, other: LightningDiT) -> set[str]:
    """Names of the tensors that are not equal in both."""
    theirs = other.state_dict()
    return {
        name
        for name, value in network.state_dict().items()
        if theirs[name].shape != value.shape or not torch.equal(theirs[name], value)
    }


# --- what becomes of the weights ---


def test_a_model_of_the_same_kind_and_classes_is_copied_whole() -> None:
    source, network = trained_model(), fresh()
    moved = transfer(source, network)
    assert set(moved.copied) == set(network.state_dict())
    assert not (moved.in_part or moved.resized or moved.reinitialised or moved.unused)
    assert not differing(network, source.network)


def test_rows_of_the_class_table_follow_the_names_of_classes_and_the_null_class_is_kept() -> None:
    source, network = trained_model(), fresh(replace(CONFIG, condition=ClassCondition(("dog", "cow", "emu", "ape"))))
    drawn = network.y_embedder.embedding_table.weight.clone()
    moved = transfer(source, network)
    table, old = network.y_embedder.embedding_table.weight, source.network.y_embedder.embedding_table.weight
    assert torch.equal(table[[1, 3, 4]], old[[2, 0, 3]])
    assert torch.equal(table[[0, 2]], drawn[[0, 2]])
    assert moved.in_part == {PARTS[0]: "2 of 5: dog, emu"}
    assert differing(network, source.network) == {PARTS[0]}


def test_a_source_without_null_class_leaves_that_row_to_be_drawn() -> None:
    source = trained_model(replace(CONFIG, condition=replace(CONFIG.condition, has_null=False)))
    assert transfer(source, fresh()).in_part == {PARTS[0]: "1 of 4: no class"}


def test_a_second_path_is_re_initialised_where_the_source_has_none_and_unused_where_the_network_has_none() -> None:
    two_paths = replace(CONFIG, depth=3, first_blocks=1, last_blocks=1)
    one_path = replace(CONFIG, depth=3)
    added = {"mask_token", "fusion.weight", "fusion.bias"}
    to_two = transfer(trained_model(one_path), fresh(two_paths))
    assert set(to_two.reinitialised) == added and not to_two.unused
    assert "re-initialised: mask_token (1 tensor), fusion (2 tensors)" in to_two.describe()
    to_one = transfer(trained_model(two_paths), fresh(one_path))
    assert set(to_one.unused) == added and not to_one.reinitialised
    source, network = trained_model(two_paths), fresh(two_paths)
    assert set(transfer(source, network).copied) == set(network.state_dict())
    assert not differing(network, source.network)


def test_another_grid_has_its_own_tables_and_the_rest_is_copied() -> None:
    source, network = trained_model(), fresh(replace(CONFIG, input_size=6))
    moved = transfer(source, network)
    assert set(moved.resized) == {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    assert differing(network, source.network) == set(moved.resized)
    assert torch.equal(network.pos_embed, LightningDiT(replace(CONFIG, input_size=6)).pos_embed)


@pytest.mark.parametrize("to_sync", [True, False])
def test_time_embedders_of_another_number_are_reinitialised_and_the_old_ones_unused(to_sync: bool) -> None:
    sync = replace(CONFIG, two_times=False)
    source, network = trained_model(CONFIG if to_sync else sync), fresh(sync if to_sync else CONFIG)
    moved = transfer(source, network)
    single = [f"t_embedder.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    assert set(moved.reinitialised) == set(single if to_sync else TIMES)
    assert set(moved.unused) == set(TIMES if to_sync else single)


def test_semantics_are_added_to_a_model_without_them_and_texture_channels_keep_their_weights() -> None:
    source, network = trained_model(replace(CONFIG, in_channels=4, semantic_channels=0)), fresh()
    moved = transfer(source, network)
    assert set(moved.in_part) == {*PARTS[1:], "final_layer.linear.bias"}
    assert moved.in_part[PARTS[1]] == "2 of 6: semantic 0 of 2, semantic 1 of 2"
    assert torch.equal(network.x_embedder.proj.weight[:, :4], source.network.x_embedder.proj.weight)
    assert torch.equal(network.final_layer.linear.weight[:4], source.network.final_layer.linear.weight)
    assert not network.final_layer.linear.weight[4:].any()  # as initialised


def test_with_larger_patches_the_output_keeps_its_channels_at_every_position_of_a_token() -> None:
    config = replace(CONFIG, patch_size=2, repa_depth=0)
    source = trained_model(replace(config, in_channels=4, semantic_channels=0))
    network = fresh(config)
    transfer(source, network)
    network.x_embedder.proj.weight.data[:, 4:] = 0.0  # so that both see the texture alone
    noise = torch.randn(2, 6, 4, 4)
    inputs = torch.tensor([0.3, 0.6]), torch.tensor([0.3, 0.6]), torch.tensor([0, 2])
    with torch.no_grad():
        both, alone = network(noise, *inputs).velocity, source.network(noise[:, :4], *inputs).velocity
    assert torch.allclose(both[:, :4], alone, atol=1e-5)


def test_the_projector_is_copied_only_where_it_sits_behind_the_same_block() -> None:
    source = trained_model()
    projector = {name for name in fresh().state_dict() if name.startswith("repa_projector")}
    assert projector <= set(transfer(source, fresh()).copied)
    assert set(transfer(source, fresh(replace(CONFIG, repa_depth=2))).reinitialised) == projector
    assert set(transfer(source, fresh(replace(CONFIG, repa_depth=0))).unused) == projector


def test_a_projector_of_another_kind_is_drawn_anew_and_said_so_and_one_of_the_same_kind_is_copied() -> None:
    conv = replace(CONFIG, repa_projector="conv")
    kernel = {"repa_projector.proj.weight", "repa_projector.proj.bias"}
    layers = {f"repa_projector.{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")}
    moved = transfer(trained_model(), fresh(conv))
    assert (set(moved.reinitialised), set(moved.unused)) == (kernel, layers)
    said = "\n".join(moved.describe())
    assert "re-initialised: repa_projector (2 tensors)" in said and "unused: repa_projector (6 tensors)" in said
    back = transfer(trained_model(conv), fresh())
    assert (set(back.reinitialised), set(back.unused)) == (layers, kernel)
    assert kernel <= set(transfer(trained_model(conv), fresh(conv)).copied)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"hidden_size": 64, "depth": 3},
            "hidden_size is 64 there and 32 here, depth is 3 there",
        ),
        ({"use_swiglu": False}, "use_swiglu is False there and True here.*set diffusion.model"),
        ({"in_channels": 10}, "texture latents of 8 channels, but results/latents has 4; set texture_vae"),
    ],
)
def test_another_backbone_is_refused_with_all_that_differs(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        transfer(trained_model(replace(CONFIG, **change)), fresh())


# --- statistics ---


@pytest.mark.parametrize(("which", "mean", "std"), [("source", 0.5, 2.0), ("new", 0.0, 1.0)])
def test_latents_are_normalised_by_the_chosen_statistics(which: str, mean: float, std: float) -> None:
    begun, dataset = start(init_statistics=which)
    assert torch.equal(dataset.statistics.mean, torch.full((6,), mean))
    assert torch.equal(dataset.statistics.std, torch.full((6,), std))
    assert torch.allclose(dataset.__getitems__([3]).latents, (dataset.raw[[3]] - mean) / std)
    shown = "within 0.25 of 0 and standard deviations from 0.50 to 0.50" if which == "source" else "within 0.00"
    assert f"statistics of the {which} data" in "\n".join(begun.report) and shown in "\n".join(begun.report)


def test_channels_that_the_source_does_not_have_are_normalised_by_the_new_statistics() -> None:
    dataset = Latents()
    source = trained_model(replace(CONFIG, in_channels=4, semantic_channels=0))
    start_from(source, fresh(), dataset, options(), 0)  # type: ignore[arg-type]
    assert dataset.statistics.mean.tolist() == [0.5] * 4 + [0.0] * 2
    assert dataset.statistics.std.tolist() == [2.0] * 4 + [1.0] * 2


# --- the networks that the latents came from ---


def test_a_model_of_the_same_networks_is_started_from_without_a_word() -> None:
    begun, _ = start()
    assert begun.report[0].startswith("copied")


@pytest.mark.parametrize(
    ("name", "words"),
    [("texture_vae", "texture VAE"), ("encoder", "vision encoder"), ("semantic", "semantic encoder")],
)
def test_a_model_of_other_networks_is_refused_by_what_differs_and_started_from_as_told(name: str, words: str) -> None:
    source = replace(trained_model(), networks=NETWORKS | {name: "f" * 64})
    with pytest.raises(UserError) as refused:
        start(source=source)
    said = str(refused.value)
    assert said.startswith(
        "the model of diffusion.init_from x was trained on latents of other networks than results/latents"
    )
    assert f"{words} ffffffffffff there and {NETWORKS[name][:12]} here" in said and "diffusion.other_networks" in said
    begun, _ = start(source=source, other_networks=True)
    assert begun.report[0].startswith("goes on as told, although") and "copied in part" in "\n".join(begun.report)


def test_another_number_of_semantic_channels_is_learnt_anew_with_any_semantic_encoder() -> None:
    dataset, network = Latents(channels=7), fresh(replace(CONFIG, in_channels=7, semantic_channels=3))
    source = replace(trained_model(), networks=NETWORKS | {"encoder": "1" * 64, "semantic": "2" * 64})
    begun = start_from(source, network, dataset, options(), 0)  # type: ignore[arg-type]
    assert begun.transfer is not None and PARTS[1] in begun.transfer.in_part
    other = replace(source, networks=NETWORKS | {"texture_vae": "1" * 64})
    with pytest.raises(UserError, match="texture VAE 1"):
        start_from(other, network, dataset, options(), 0)  # type: ignore[arg-type]


def test_a_model_that_does_not_know_its_networks_is_started_from_with_a_line_that_says_so() -> None:
    begun, _ = start(source=replace(trained_model(), networks={}))
    assert "so nothing can be compared" in begun.report[0]


# --- adapters ---


def task(begun: Start, dataset: Latents) -> DiffusionTask:
    return DiffusionTask(begun.network, dataset, LossParams(), OffsetSchedule(0.3), 0.1, seed=0)


def test_adapters_start_at_zero_train_only_what_is_new_and_end_in_ordinary_weights(tmp_path: Path) -> None:
    source = trained_model()
    begun, dataset = start(source=source, lora=LoraParams(rank=2, alpha=4))
    trainable = {name for name, value in begun.network.named_parameters() if value.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {PARTS[0]}
    assert len(trainable) == 1 + 2 * 2 * 4  # a pair for four layers of two blocks
    inputs = torch.randn(2, 6, 4, 4), torch.rand(2), torch.rand(2), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.allclose(begun.network(*inputs).velocity[1], source.network(*inputs).velocity[1], atol=1e-6)
    trained = train(task(begun, dataset), options().training, 0, tmp_path, "f", log_nothing)
    with torch.no_grad():
        adapted = trained.network(*inputs).velocity
        begun.finish(trained)
        assert torch.allclose(begun.network.eval()(*inputs).velocity, adapted, atol=1e-5)
    assert set(begun.network.state_dict()) == set(source.network.state_dict())
    changed = {name.removesuffix(".weight") for name in differing(begun.network, source.network)}
    layers = {f"blocks.{n}.{layer}" for n in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")}
    assert changed == {PARTS[0].removesuffix(".weight"), *layers}


def test_parts_that_are_reinitialised_are_trained_beside_adapters() -> None:
    source = trained_model(replace(CONFIG, two_times=False))
    begun, _ = start(source=source, lora=LoraParams(rank=2))
    trainable = {name for name, value in begun.network.named_parameters() if value.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {PARTS[0], *TIMES}


def test_beside_adapters_the_fusion_of_a_new_path_is_trained_and_its_mask_token_stays_as_it_was_drawn() -> None:
    one_path = replace(CONFIG, depth=3)
    network = fresh(replace(one_path, first_blocks=1, last_blocks=1))
    moved = transfer(trained_model(one_path), network)
    assert "mask_token" in moved.reinitialised
    add_adapters(network, LoraParams(rank=2), moved, 0)
    trainable = {name for name, value in network.named_parameters() if value.requires_grad and "lora_" not in name}
    assert trainable == {PARTS[0], "fusion.weight", "fusion.bias"}


def test_a_backbone_that_names_no_layers_for_adapters_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LightningDiT, "block_layers", "")
    with pytest.raises(UserError, match="diffusion.lora .* backbone `lightningdit` names none .* set lora to null"):
        start(lora=LoraParams(rank=2))
    start()


def test_without_adapters_all_weights_are_trained() -> None:
    begun, _ = start()
    assert begun.trainable == sum(p.numel() for name, p in begun.network.named_parameters() if name != "pos_embed")
    assert begun.report[-1].startswith(f"trained: {begun.trainable:,} of ")


class Interrupted(Exception):
    """Ends a training from outside."""


def test_adapters_resume_exactly_after_an_interruption(tmp_path: Path) -> None:
    runtime = TrainingRuntime(checkpoint_every=2)

    def run(folder: Path, stop_at: int | None = None) -> dict[str, Tensor]:
        folder.mkdir(exist_ok=True)
        begun, dataset = start(lora=LoraParams(rank=2))

        def preview(_network: Any, step: int) -> None:
            if step == stop_at:
                raise Interrupted

        params = options().training
        begun.finish(train(task(begun, dataset), params, 0, folder, "f", log_nothing, runtime, [Callback(preview, 1)]))
        return begun.network.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop_at=4)
    assert (tmp_path / "cut" / "checkpoint.pt").is_file()
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# --- REPA's target ---


class Doubler(torch.nn.Module):
    def decode(self, latent: Tensor) -> Tensor:
        return torch.cat([latent, 2 * latent, 3 * latent, 4 * latent], dim=-1)


def test_decoded_features_are_those_of_the_raw_semantic_latent_token_by_token() -> None:
    statistics = ChannelStatistics(torch.arange(6.0), torch.arange(1.0, 7.0))
    raw = torch.randn(2, 6, 4, 4)
    found = DecodedFeatures(Doubler(), statistics, 2)(statistics.normalise(raw))
    assert found.shape == (2, 16, 8) and not found.requires_grad
    for row, column in ((0, 0), (1, 3), (3, 2)):
        assert torch.allclose(found[1, 4 * row + column, :2], raw[1, 4:, row, column], atol=1e-5)
        assert torch.allclose(found[1, 4 * row + column, 6:], 4 * raw[1, 4:, row, column], atol=1e-4)


def test_features_of_quadrants_are_decoded_quadrant_by_quadrant() -> None:
    class Ordinal(torch.nn.Module):
        """Adds its place to each token, so that the order counts."""

        def decode(self, latent: Tensor) -> Tensor:
            return latent + torch.arange(latent.shape[1]).float()[:, None]

    statistics = ChannelStatistics(torch.zeros(6), torch.ones(6))
    latents = torch.zeros(2, 6, 4, 4)
    found = DecodedFeatures(Ordinal(), statistics, 2, tiles=2)(latents)
    expected = torch.tensor([[0, 1, 0, 1], [2, 3, 2, 3]] * 2).float()
    assert torch.equal(found[1, :, 0].reshape(4, 4), expected)


def test_the_loss_with_decoded_features_equals_that_with_the_same_features_stored() -> None:
    dataset = Latents()
    features_of = DecodedFeatures(Doubler(), dataset.statistics, 2)
    network = trained_model().network
    decoded = DiffusionTask(network, dataset, LossParams(), OffsetSchedule(0.3), 0.1, 0, features_of)
    stored = DiffusionTask(network, dataset, LossParams(), OffsetSchedule(0.3), 0.1, 0)
    batch = dataset.__getitems__(list(range(8)))
    noise = stored.noise(0, 8, torch.device("cpu"))
    terms = decoded.losses(network, batch._replace(features=None), noise)
    same = stored.losses(network, batch._replace(features=features_of(batch.latents)), noise)
    assert {name: float(value) for name, value in terms.items()} == {name: float(v) for name, v in same.items()}


def test_what_became_of_the_weights_is_written_down(tmp_path: Path) -> None:
    begun, _ = start()
    assert begun.transfer is not None
    begun.transfer.save(tmp_path / "start.json")
    written = json.loads((tmp_path / "start.json").read_text())
    assert written["in_part"] == {PARTS[0]: "2 of 4: dog, emu"}
    assert "copied in part: y_embedder.embedding_table.weight (re-initialised: 2 of 4: dog, emu)" in begun.report
