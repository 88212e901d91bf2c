"""Captions that are encoded as batches come, in place of stored tokens: the same training, in the process that trains, without waiting."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from two_processes import assert_like_one, keep, torchrun

from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.data.text_tokens import PADDING
from sfd.diffusion.learnt import LearntCurve
from sfd.diffusion.schedule import OffsetSchedule
from sfd.encoders.text.small import SmallTextEncoder, train_tokenizer
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.text_condition import TextCondition
from sfd.models.words import Words, stack_words
from sfd.params import DiffusionTrainingParams, LossParams, TrainingRuntime
from sfd.seeding import generator
from sfd.training.captions import BATCH, CaptionReader, with_words
from sfd.training.diffusion import DiffusionTask
from sfd.training.heldout import HeldoutLoss
from sfd.training.loop import Callback, Trained, train
from sfd.training.probe import Probe, ProbeTask

NUM_IMAGES, WIDTH = 24, 6
TEXTS = ["a red bar", "blue", "stripes, lying", "ein Ährenfeld", "a bar beside a tree"]


class LetterEncoder:
    """A token per word, whose numbers are the shares of some letters in it. It does not depend on the other texts."""

    kind, width, max_tokens = "letters", WIDTH, 5

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def encode(self, texts: Sequence[str]) -> Words:
        split = [text.split() or ["-"] for text in texts]
        shares = [[[word.count(letter) / len(word) for letter in "aerltb"] for word in words] for words in split]
        return stack_words([self.scale * torch.tensor(each) for each in shares])

    def num_tokens(self, text: str) -> int:
        return len(text.split())

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> "LetterEncoder":
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "LetterEncoder":  # noqa: ARG002
        return self


NULL = Words(LetterEncoder().encode([""]).tokens.half(), torch.ones(1, 1, dtype=torch.bool))
CONFIG = LightningDiTConfig(
    4,
    6,
    hidden_size=32,
    depth=2,
    num_heads=2,
    semantic_channels=2,
    two_times=True,
    repa_depth=None,
    condition=TextCondition(WIDTH, 5, "e" * 64),
    text_attention="cross",
)
LOSS = LossParams(repa_weight=0.0)


def padded(texts: Sequence[str]) -> torch.Tensor:
    rows = [text.encode() for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (longest - len(row))] for row in rows], dtype=torch.uint8)


class Captioned:
    """Latents with captions: their words in fp16 as they would be stored, or their texts."""

    counts_epochs = True

    def __init__(self, is_stored: bool) -> None:
        self.is_stored = is_stored
        self.latents = torch.randn(NUM_IMAGES, 6, 4, 4, generator=generator(0, "test/captioned"))
        self.statistics = ChannelStatistics(torch.zeros(6), torch.ones(6))

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitems__(self, numbers: list[int]) -> LatentBatch:
        rows = [number % NUM_IMAGES for number in numbers]
        texts = [TEXTS[number % len(TEXTS)] for number in numbers]
        batch = LatentBatch(self.latents[rows], torch.zeros(len(rows), dtype=torch.int64))
        if not self.is_stored:
            return batch._replace(texts=padded(texts))
        one_by_one = [LetterEncoder().encode([text]).tokens[0].half() for text in texts]
        return batch._replace(words=stack_words(one_by_one))


class Watched(LetterEncoder):
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, bool, bool]] = []

    def encode(self, texts: Sequence[str]) -> Words:
        self.calls.append((os.getpid(), len(texts), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return super().encode(texts)


def network() -> LightningDiT:
    return LightningDiT(CONFIG).initialise(generator(0, "test/initialisation"))


def task(is_stored: bool, encoder: LetterEncoder | None = None) -> DiffusionTask:
    reader = None if is_stored else CaptionReader(encoder or LetterEncoder())
    return DiffusionTask(
        network(), Captioned(is_stored), LOSS, OffsetSchedule(0.3), 0.25, 0, null_words=NULL, words_of=reader
    )


class Interrupted(Exception):
    """Ends a training from outside."""


def run(made: Any, folder: Path, stop_at: int | None = None, num_workers: int = 0, **more: Any) -> Trained:
    def stop(_network: nn.Module, step: int) -> None:
        if step == stop_at:
            raise Interrupted

    fields = {"num_steps": 8, "batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 2, "ema_decay": 0.5}
    params = DiffusionTrainingParams.model_validate(fields | {"precision": "fp32"} | more)
    folder.mkdir(parents=True, exist_ok=True)
    runtime = TrainingRuntime(checkpoint_every=2, log_every=2, num_workers=num_workers)
    return train(made, params, 0, folder, "a", lambda _metrics, _step: None, runtime, [Callback(stop, 1)])


def assert_equal(one: Trained, other: Trained) -> None:
    assert one.curve == other.curve
    state = other.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.network.state_dict().items())


# --- the same training ---


@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_ends_with_the_bytes_of_one_with_stored_tokens(parts: int, tmp_path: Path) -> None:
    """Of an encoder whose tokens do not depend on the other texts; else they do up to rounding."""
    stored = run(task(True), tmp_path / "stored", accumulation_steps=parts)
    read = run(task(False), tmp_path / "read", accumulation_steps=parts)
    assert_equal(stored, read)
    assert read.network.get_parameter("blocks.0.cross_attn.proj.weight").any()


def test_a_training_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run(task(False), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(task(False), tmp_path / "resumed", stop_at=5)
    assert_equal(whole, run(task(False), tmp_path / "resumed"))


def test_other_texts_give_another_training(tmp_path: Path) -> None:
    other = run(task(False, LetterEncoder(2.0)), tmp_path / "other")
    assert other.curve != run(task(True), tmp_path / "stored").curve


def test_the_loss_on_held_out_images_is_that_of_stored_tokens() -> None:
    found = [
        HeldoutLoss(made, made.dataset, 20)(made.network, 1)  # type: ignore[arg-type]  # what it uses of a LatentDataset
        for made in (task(True), task(False))
    ]
    assert found[0] == found[1]


def test_the_probe_of_a_learnt_schedule_reads_captions_too(tmp_path: Path) -> None:
    trained = []
    for is_stored in (True, False):
        reader = None if is_stored else CaptionReader(LetterEncoder())
        probe, data = Probe(network(), LearntCurve(4)), Captioned(is_stored)
        made = ProbeTask(probe, data, LOSS, 0.02, 0.1, 0, null_words=NULL, words_of=reader)
        trained.append(run(made, tmp_path / str(is_stored)))
    assert_equal(*trained)


# --- where and how the encoder is called ---


def test_the_encoder_is_called_once_per_step_in_the_training_process_without_gradients_or_autocast(
    tmp_path: Path,
) -> None:
    encoder = Watched()
    run(task(False, encoder), tmp_path, num_workers=2, accumulation_steps=2, precision="bf16")
    assert encoder.calls == [(os.getpid(), 8, False, False)] * 8


def test_a_large_batch_is_encoded_in_parts_and_gives_the_same_words() -> None:
    texts, encoder = [TEXTS[n % 5] for n in range(2 * BATCH + 3)], Watched()
    words = CaptionReader(encoder)(padded(texts))
    whole = LetterEncoder().encode(texts)
    assert [call[1] for call in encoder.calls] == [BATCH, BATCH, 3]
    assert words.tokens.dtype == torch.float16 and not words.tokens.requires_grad
    assert torch.equal(words.tokens, whole.tokens.half()) and torch.equal(words.mask, whole.mask)


def test_a_batch_with_words_stays_as_it_is_and_texts_need_a_reader() -> None:
    batch = Captioned(True).__getitems__([0, 1])
    assert with_words(batch, None) is batch
    with pytest.raises(AssertionError, match="the task reads none"):
        with_words(Captioned(False).__getitems__([0, 1]), None)


def test_what_the_small_encoder_reads_among_others_is_what_it_reads_alone_up_to_rounding() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    encoder = SmallTextEncoder.build(tokenizer, 12, 16, 2, 2, seed=0)
    words = CaptionReader(encoder)(padded(TEXTS))
    for text, tokens, mask in zip(TEXTS, words.tokens, words.mask, strict=True):
        alone = encoder.encode([text]).tokens[0].half()
        torch.testing.assert_close(tokens[mask], alone, rtol=2e-3, atol=1e-3)


# --- two processes ---


def side_by_side(folder: Path) -> None:
    """Under torchrun."""
    keep(run(task(False), folder / "both", accumulation_steps=2), folder)


@pytest.mark.long
def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    torchrun(__file__, str(tmp_path))
    alone = run(task(False), tmp_path / "alone", accumulation_steps=2)
    assert_like_one(tmp_path, alone, rtol=1e-3, atol=1e-4, rel=1e-4)


if __name__ == "__main__":
    side_by_side(Path(sys.argv[1]))
