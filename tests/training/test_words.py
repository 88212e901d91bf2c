"""Training with captions: what is dropped, exact resume, several processes, and starting from a model of classes. As a script, this file is
what the processes run."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_processes import assert_like_one, keep, torchrun

from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.models.conditions import ClassCondition, NoCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.text_condition import TextCondition
from sfd.models.tokens import TokenRouting
from sfd.models.words import Words
from sfd.params import DiffusionParams, DiffusionTrainingParams, LoraParams, LossParams, ScheduleParams, TrainingRuntime
from sfd.seeding import generator
from sfd.training.diffusion import DiffusionTask, told
from sfd.training.finetuning import start_from, transfer
from sfd.training.heldout import HeldoutLoss
from sfd.training.loop import Callback, Trained, log_nothing, train

WIDTH, LENGTH, NUM_IMAGES = 6, 4, 24
CONDITION = TextCondition(WIDTH, LENGTH, encoder="e" * 64)
CONFIG = LightningDiTConfig(
    4,
    6,
    hidden_size=32,
    depth=3,
    num_heads=2,
    condition=CONDITION,
    semantic_channels=2,
    two_times=True,
    repa_depth=1,
    repa_width=16,
    feature_dim=8,
)
KINDS = {
    "cross": CONFIG,
    "in_context": replace(CONFIG, text_attention="in_context"),
    "shared": replace(CONFIG, shared_modulation=True),
}
SHARED_BY_TWO = {"cross": "fsdp", "in_context": "fsdp", "shared": "ddp"}
"""How two processes share each kind."""
NULL = Words(torch.full((1, 1, WIDTH), 0.5).half(), torch.ones(1, 1, dtype=torch.bool))


class Captioned:
    """Latents of numbered images with a caption each, of one to three tokens, stored in fp16 and padded to the longest of the batch."""

    def __init__(self) -> None:
        random = generator(0, "test/captioned")
        self.latents = torch.randn(NUM_IMAGES, 6, 4, 4, generator=random)
        self.features = torch.randn(NUM_IMAGES, 16, 8, generator=random)
        self.tokens = torch.randn(NUM_IMAGES, 3, WIDTH, generator=random).half()
        self.statistics = ChannelStatistics(torch.zeros(6), torch.ones(6))
        self.index = SimpleNamespace(classes=["a"], networks={})

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        mask = torch.arange(3) < (torch.tensor(indices) % 3 + 1)[:, None]
        words = Words(torch.where(mask[:, :, None], self.tokens[indices], 0.0), mask)
        classes = torch.zeros(len(indices), dtype=torch.int64)
        return LatentBatch(self.latents[indices], classes, self.features[indices], words)


def network(config: LightningDiTConfig = CONFIG, seed: int = 0) -> LightningDiT:
    return LightningDiT(config).initialise(generator(seed, "test/initialisation"))


def task(config: LightningDiTConfig = CONFIG, dropout: float = 0.25) -> DiffusionTask:
    routing = TokenRouting(16, 0.5, 1, 1)
    return DiffusionTask(
        network(config), Captioned(), LossParams(), OffsetSchedule(0.3), dropout, 0, routing=routing, null_words=NULL
    )


class Interrupted(Exception):
    """Ends a training from outside."""


def run(made: DiffusionTask, folder: Path, stop_at: int | None = None, sharding: Any = "ddp", **more: Any) -> Trained:
    def stop(_network: nn.Module, step: int) -> None:
        if step == stop_at:
            raise Interrupted

    fields = {"num_steps": 8, "batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 2, "ema_decay": 0.5}
    params = DiffusionTrainingParams.model_validate(fields | {"precision": "fp32"} | more)
    folder.mkdir(parents=True, exist_ok=True)
    runtime = TrainingRuntime(checkpoint_every=2, log_every=2)
    return train(made, params, 0, folder, "a", log_nothing, runtime, [Callback(stop, 1)], sharding)


# --- what the network is told ---


def test_a_dropped_caption_becomes_the_empty_one_and_others_stay() -> None:
    data = Captioned().__getitems__([0, 1, 2])
    found = told(CONDITION, data, torch.tensor([False, True, False]), NULL)
    assert isinstance(found, Words) and found.tokens.shape == (3, LENGTH, WIDTH)
    assert found.mask.sum(dim=1).tolist() == [1, 1, 3] and found.tokens.dtype == torch.float32
    assert torch.equal(found.tokens[1, :1], NULL.tokens[0].float()) and not found.tokens[1, 1:].any()
    assert data.words is not None and torch.equal(found.tokens[2, :3], data.words.tokens[2].float())


def test_latents_without_captions_or_without_the_empty_one_are_refused() -> None:
    data = Captioned().__getitems__([0, 1])
    with pytest.raises(UserError, match="do not hold the empty caption"):
        told(CONDITION, data, torch.tensor([True, False]))
    with pytest.raises(UserError, match="come without captions"):
        told(CONDITION, data._replace(words=None), torch.tensor([True, False]), NULL)
    assert isinstance(told(NoCondition(), data, torch.tensor([True, False])), Tensor)


def test_the_share_of_dropped_captions_is_drawn_as_that_of_classes() -> None:
    """By the same generator, so that a model of words and one of classes drop the same images of a step."""
    classes = replace(CONFIG, condition=ClassCondition.numbered(3))
    of_classes = DiffusionTask(network(classes), Captioned(), LossParams(), OffsetSchedule(0.3), 0.25, 0)
    draws = (each.noise(5, 8, torch.device("cpu")) for each in (task(), of_classes))
    one, other = draws
    assert torch.equal(one.dropout, other.dropout) and torch.equal(one.x0, other.x0)


# --- the training ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_with_captions_resumes_with_the_same_bytes(kind: str, tmp_path: Path) -> None:
    whole = run(task(KINDS[kind]), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(task(KINDS[kind]), tmp_path / "resumed", stop_at=5)
    resumed = run(task(KINDS[kind]), tmp_path / "resumed")
    assert whole.curve == resumed.curve
    state = resumed.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.network.state_dict().items())


def test_captions_are_learnt_and_cross_attention_leaves_zero(tmp_path: Path) -> None:
    trained = run(task(), tmp_path).network
    assert trained.get_parameter("blocks.0.cross_attn.proj.weight").any()
    assert trained.get_parameter("y_embedder.proj.weight").any()


def test_the_loss_on_held_out_images_is_the_same_whenever_it_is_measured() -> None:
    made = task()
    measure = HeldoutLoss(made, Captioned(), 20)  # type: ignore[arg-type]  # what it uses of a LatentDataset
    assert measure(made.network, 1) == measure(made.network, 2)


def side_by_side(folder: Path) -> None:
    """Under torchrun: each kind, with micro-batches, whole or sharded."""
    for kind, sharding in SHARED_BY_TWO.items():
        made = task(KINDS[kind])
        made.network.checkpoint_activations("none" if sharding == "ddp" else "selective")
        keep(run(made, folder / kind, sharding=sharding, accumulation_steps=2), folder / kind)


@pytest.mark.long
def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    torchrun(__file__, str(tmp_path))
    for kind in SHARED_BY_TWO:
        alone = run(task(KINDS[kind]), tmp_path / "alone" / kind, accumulation_steps=2)
        assert_like_one(tmp_path / kind, alone, rtol=1e-3, atol=1e-4, rel=1e-4)


# --- starting from a model of classes ---


def of_classes(**changes: Any) -> DiffusionModel:
    """A model none of whose learnt weights is what an initialisation gives."""
    config = replace(CONFIG, condition=ClassCondition(("ape", "bee")), **changes)
    made, random = network(config), generator(0, "test/trained")
    for name, parameter in made.named_parameters():
        if name != "pos_embed":
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return DiffusionModel(
        made.eval().requires_grad_(False), ScheduleParams(), ChannelStatistics(torch.zeros(6), torch.ones(6)), {}
    )


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    random = generator(0, "test/inputs")
    x = torch.randn(2, 6, 4, 4, generator=random)
    return x, torch.tensor([0.3, 0.6]), torch.tensor([0.4, 0.8])


def some_words() -> Words:
    words = told(CONDITION, Captioned().__getitems__([4, 5]), torch.tensor([False, False]), NULL)
    assert isinstance(words, Words)
    return words


def test_a_model_of_classes_is_copied_but_for_its_table_and_starts_as_it_is_without_a_class() -> None:
    source, made = of_classes(), network()
    moved = transfer(source, made)
    assert set(moved.unused) == {"y_embedder.embedding_table.weight"} and not moved.in_part
    assert {
        name.split(".")[2] if name.startswith("blocks") else name.split(".")[0] for name in moved.reinitialised
    } == {
        "cross_attn",
        "text_embedder",
        "y_embedder",
    }
    assert moved.from_null == ("y_embedder.proj.bias",)
    null = source.network.config.condition.null(2)
    with torch.no_grad():
        before, after = source.network(*inputs(), null).velocity, made(*inputs(), some_words()).velocity
    assert torch.equal(before, after), "no word has an effect yet"
    assert "words in place of classes: y_embedder.proj.bias is the row of the null class" in moved.describe()[-1]


def test_a_source_without_a_null_class_or_a_class_leaves_nothing_to_start_from() -> None:
    without = of_classes()
    condition = replace(without.network.config.condition, has_null=False)  # type: ignore[type-var]
    without.network.config = replace(without.network.config, condition=condition)  # type: ignore[type-var]
    assert transfer(without, network()).from_null == ()
    assert transfer(of_classes(), network(replace(CONFIG, condition=NoCondition()))).from_null == ()


def options(**changes: Any) -> DiffusionParams:
    training = DiffusionTrainingParams(num_steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5)
    return DiffusionParams.model_validate(
        {"model": {"size": "tiny", "condition": "text"}, "loss": {}, "training": training, "init_from": "x"} | changes
    )


def test_adapters_go_to_old_layers_and_new_ones_are_trained_in_full() -> None:
    begun = start_from(of_classes(), network(), Captioned(), options(lora=LoraParams(rank=2)), 0)  # type: ignore[arg-type]
    trained = {name for name, weight in begun.network.named_parameters() if weight.requires_grad}
    assert "blocks.0.cross_attn.q.weight" in trained and "text_embedder.fc1.weight" in trained
    assert any("attn.qkv.lora_A" in name for name in trained) and not any(
        "cross_attn" in n and "lora" in n for n in trained
    )
    assert "blocks.0.attn.qkv.base_layer.weight" not in trained


def test_words_of_another_text_encoder_are_refused_and_accepted_as_told() -> None:
    source = replace(of_classes(), network=network(seed=3))
    ours = network(replace(CONFIG, condition=replace(CONDITION, encoder="f" * 64)))
    with pytest.raises(
        UserError, match=r"another text encoder \(eeeeeeeeeeee\) than results/text has \(ffffffffffff\)"
    ):
        start_from(source, ours, Captioned(), options(), 0)  # type: ignore[arg-type]
    assert start_from(source, ours, Captioned(), options(other_networks=True), 0).trainable > 0  # type: ignore[arg-type]
    assert not start_from(source, network(), Captioned(), options(), 0).transfer.unused  # type: ignore[arg-type,union-attr]


if __name__ == "__main__":
    import sfd.quiet  # noqa: F401

    side_by_side(Path(sys.argv[1]))
