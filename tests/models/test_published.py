"""The published implementation's configuration keys."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.published import config_from_published, config_from_weights

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/conformance/sfd_tiny.json").read_text())[
    "model"
]
REQUIRED = ("input_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes")


def read(**changes: Any) -> LightningDiTConfig:
    return config_from_published(PUBLISHED | changes)


def test_a_published_configuration_is_read_whole() -> None:
    assert config_from_published(PUBLISHED) == LightningDiTConfig(
        input_size=8,
        in_channels=12,
        hidden_size=64,
        depth=3,
        num_heads=4,
        condition=ClassCondition.numbered(10),
        semantic_channels=4,
        two_times=True,
        repa_depth=2,
        repa_width=32,
        feature_dim=768,
    )


def test_old_keys_are_interpreted() -> None:
    assert not read(wo_shift=True).use_shift and read(wo_shift=False).use_shift and read().use_shift
    assert not read(class_dropout_prob=0.0).condition.has_null and read(class_dropout_prob=0.1).condition.has_null
    assert read(use_repa=False).repa_depth == 0 and read(use_repa=True).repa_depth == 2
    assert read(semantic_chans=6).semantic_channels == 6


def test_two_times_come_with_the_offset_and_not_with_semantic_channels() -> None:
    assert read(semfirst_delta_t=0.3).two_times
    without = read(semfirst_delta_t=0.0)
    assert not without.two_times and without.semantic_channels == 4


@pytest.mark.parametrize("key", ["use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm"])
def test_a_part_that_is_not_mentioned_is_off(key: str) -> None:
    assert getattr(read(), key) is True
    assert getattr(config_from_published({k: v for k, v in PUBLISHED.items() if k != key}), key) is False


def test_six_keys_are_enough() -> None:
    config = config_from_published({key: PUBLISHED[key] for key in REQUIRED})
    assert (config.patch_size, config.semantic_channels, config.repa_depth) == (1, 0, 0)
    assert config.use_shift and config.condition.has_null and not config.two_times


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(ValueError, match=f"missing keys .*{key}"):
        config_from_published({k: v for k, v in PUBLISHED.items() if k != key})


def test_a_key_of_unknown_meaning_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="unknown keys .*use_moe"):
        read(use_moe=True)


def test_keys_with_their_only_published_value_are_accepted_and_other_values_refused() -> None:
    assert read(mlp_ratio=4.0, learn_sigma=False, use_checkpoint=True) == read()
    with pytest.raises(ValueError, match="learn_sigma is True"):
        read(learn_sigma=True)


FULL = LightningDiTConfig(
    8, 12, 64, 3, 4, ClassCondition.numbered(10), semantic_channels=4, two_times=True, repa_depth=2, repa_width=32
)


def shapes_of(config: LightningDiTConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return LightningDiT(config).state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"two_times": False, "repa_depth": 0, "repa_width": 2048, "feature_dim": 768},
        {"patch_size": 2, "input_size": 16},
        {"use_qknorm": False},
        {"use_rope": False},
        {"use_swiglu": False, "use_rmsnorm": False},
        {"use_shift": False, "feature_dim": 100},
        {"repa_projector": "conv", "repa_width": 2048, "feature_dim": 100},
        {"condition": ClassCondition.numbered(11, has_null=False)},
    ],
)
def test_weights_say_every_width_and_part(changes: dict[str, Any]) -> None:
    config = replace(FULL, **changes)
    assert config_from_weights(shapes_of(config), 4, config.condition.has_null) == config


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("pos_embed", None, "pos_embed is missing"),
        ("pos_embed", (1, 65, 64), "65 tokens, which is not a square number"),
        ("x_embedder.proj.weight", (64, 12), "x_embedder.proj.weight has shape .64, 12., but should have 4"),
        ("feat_rope.freqs_cos", (64, 24), "width 64 is not a multiple of the width of a head, 24"),
    ],
)
def test_weights_that_contradict_each_other_or_lack_a_width_are_refused(key: str, value: Any, reason: str) -> None:
    state = {name: tensor for name, tensor in shapes_of(FULL).items() if name != key}
    if value is not None:
        state[key] = torch.empty(value, device="meta")
    with pytest.raises(ValueError, match=reason):
        config_from_weights(state, 4, True)


def test_weights_of_two_paths_are_refused_because_their_blocks_cannot_be_told_apart() -> None:
    with pytest.raises(ValueError, match="fusion.weight is of a model .*sparse_deep.* use its folder"):
        config_from_weights(shapes_of(replace(FULL, first_blocks=1, last_blocks=1)), 4, True)


def test_weights_that_do_not_say_how_wide_a_head_is_are_refused() -> None:
    with pytest.raises(ValueError, match="the width of a head is unknown"):
        config_from_weights(shapes_of(replace(FULL, use_rope=False, use_qknorm=False)), 4, True)
