"""LightningDiT with words: where they enter, what they change at the start, and that padding and routes change nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.models.attention import AttentionSum
from sfd.models.blocks import CrossAttention
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.text_condition import TextCondition
from sfd.models.tokens import Route
from sfd.models.words import Words

LENGTH, WIDTH = 5, 12
SMALL = LightningDiTConfig(
    input_size=4,
    in_channels=5,
    hidden_size=32,
    depth=2,
    num_heads=2,
    condition=ClassCondition.numbered(3),
    semantic_channels=2,
    two_times=True,
    repa_depth=1,
    repa_width=8,
    feature_dim=6,
)
CROSS = replace(SMALL, condition=TextCondition(WIDTH, LENGTH), repa_depth=1)
IN_CONTEXT = replace(CROSS, text_attention="in_context")
SHARED = replace(CROSS, shared_modulation=True)
KINDS = [CROSS, IN_CONTEXT, SHARED, replace(IN_CONTEXT, shared_modulation=True, use_shift=False)]


def randomised(config: LightningDiTConfig) -> LightningDiT:
    """Every trainable weight non-zero, so that every path counts."""
    model, random = LightningDiT(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def words(*lengths: int, seed: int = 1, filler: float = 0.0) -> Words:
    tokens = torch.randn(len(lengths), LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    return Words(torch.where(mask[:, :, None], tokens, filler), mask)


def inputs(size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    x = torch.randn(size, 5, 4, 4, generator=random)
    t_tex, t_sem = torch.rand(2, size, generator=random)
    return x, t_tex, t_sem


@pytest.mark.parametrize("config", KINDS)
def test_every_word_changes_the_velocity_and_padding_does_not(config: LightningDiTConfig) -> None:
    model, given = randomised(config), words(2, 4)
    velocity = model(*inputs(), given).velocity
    assert torch.equal(model(*inputs(), words(2, 4, filler=9.0)).velocity, velocity)
    changed = given.tokens.clone()
    changed[0, 1] += 1.0
    other = model(*inputs(), given._replace(tokens=changed)).velocity
    assert not torch.allclose(other[0], velocity[0], atol=1e-3) and torch.allclose(other[1], velocity[1], atol=1e-5)


@pytest.mark.parametrize("config", KINDS)
def test_every_weight_is_trained_through_words(config: LightningDiTConfig) -> None:
    model = randomised(config).train()
    output = model(*inputs(), words(2, 4), with_projection=True)
    assert output.projection.shape == (2, 16, config.feature_dim)
    (output.velocity.square().sum() + output.projection.sum()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [name for name in idle if "k_norm" not in name and "kv.bias" not in name and "qkv.bias" not in name] == []


@pytest.mark.parametrize("config", [CROSS, SHARED])
def test_at_the_start_words_have_no_effect_so_that_a_model_without_can_be_the_start(config: LightningDiTConfig) -> None:
    model = LightningDiT(config).initialise(torch.Generator().manual_seed(0))
    nn.init.normal_(model.output_layer().weight, generator=torch.Generator().manual_seed(1))
    for name, weight in model.named_parameters():
        if "adaLN" in name or "t_block" in name:
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(model(*inputs(), words(1, 2)).velocity, model(*inputs(), words(5, 4, seed=3)).velocity)


def test_cross_attention_is_the_arithmetic_of_its_source_over_real_tokens() -> None:
    """Attention over the real tokens alone, head by head, for a layer without QK-norm."""
    layer, random = CrossAttention(replace(CROSS, use_qknorm=False)), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=random)
    x, told = torch.randn(1, 3, 32, generator=random), torch.randn(1, LENGTH, 32, generator=random)
    found = layer(x, Words(told, torch.tensor([[True, True, False, False, False]])))
    q = layer.q(x)[0]
    k, v = layer.kv(told[:, :2])[0].chunk(2, dim=-1)
    heads = []
    for head in (slice(0, 16), slice(16, 32)):
        weights = (q[:, head] @ k[:, head].T / 4.0).softmax(dim=-1)
        heads.append(weights @ v[:, head])
    assert torch.allclose(found[0], layer.proj(torch.cat(heads, dim=-1)), atol=1e-5)


def test_one_modulation_for_all_blocks_and_a_table_in_each_need_fewer_weights() -> None:
    own, shared = LightningDiT(CROSS), LightningDiT(SHARED)
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    width = CROSS.hidden_size
    assert count(own) - count(shared) == 2 * (width + 1) * 6 * width - ((width + 1) * 6 * width + 2 * 6 * width)
    assert {name for name in shared.state_dict() if "adaLN" in name} == {
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.bias",
    }


@pytest.mark.parametrize("config", [CROSS, IN_CONTEXT])
@pytest.mark.parametrize("kind", ["block", "selective"])
def test_activations_that_are_computed_again_give_the_same_gradients(config: LightningDiTConfig, kind: Any) -> None:
    gradients = []
    for checkpointing in ("none", kind):
        model = randomised(config).train()
        model.checkpoint_activations(checkpointing)
        model(*inputs(), words(2, 4)).velocity.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad and p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


DEEP = {"depth": 3, "repa_depth": 0}
KEPT = torch.tensor([[0, 3, 5, 10], [1, 2, 8, 15]])


@pytest.mark.parametrize("config", [replace(CROSS, **DEEP), replace(IN_CONTEXT, **DEEP)])
def test_a_route_of_all_tokens_is_no_route_and_tokens_that_leave_still_read_words(config: LightningDiTConfig) -> None:
    model, given = randomised(config), words(2, 4)
    whole = model(*inputs(), given).velocity
    everything = torch.arange(16).expand(2, 16)
    assert torch.allclose(model(*inputs(), given, route=Route(everything, 1, 1)).velocity, whole, atol=1e-4)
    routed = model(*inputs(), given, route=Route(KEPT, 1, 1)).velocity
    assert routed.shape == whole.shape and not torch.allclose(routed, whole, atol=1e-3)
    assert not torch.allclose(
        model(*inputs(), words(2, 4, seed=8), route=Route(KEPT, 1, 1)).velocity, routed, atol=1e-3
    )


@pytest.mark.parametrize("text_attention", ["cross", "in_context"])
def test_an_image_whose_deep_path_is_dropped_is_as_one_drawn_without_it(text_attention: Any) -> None:
    config = replace(CROSS, **DEEP, first_blocks=1, last_blocks=1, text_attention=text_attention)
    model, given = randomised(config), words(2, 4)
    route = Route(None, 1, 1, torch.tensor([True, False]))
    velocity = model(*inputs(), given, route=route).velocity
    assert torch.allclose(velocity[0], model(*inputs(), given, skip_deep=True).velocity[0], atol=1e-5)
    assert torch.allclose(velocity[1], model(*inputs(), given).velocity[1], atol=1e-5)


@pytest.mark.parametrize("config", KINDS)
def test_the_record_holds_what_is_in_use_and_old_records_have_none_of_it(config: LightningDiTConfig) -> None:
    record = json.loads(json.dumps(config.to_dict()))
    assert LightningDiTConfig.from_dict(record, config.condition) == config
    assert not {"text_attention", "shared_modulation"} & set(SMALL.to_dict())
    with pytest.raises(ValueError, match="text_attention is 'both', but must be cross or in_context"):
        replace(SMALL, text_attention="both")  # type: ignore[arg-type]


def test_adapters_and_muon_take_the_matrices_of_cross_attention() -> None:
    import re

    names = [name for name, _ in LightningDiT(CROSS).named_modules() if re.fullmatch(LightningDiT.block_layers, name)]
    assert {"blocks.0.cross_attn.q", "blocks.1.cross_attn.kv", "blocks.1.cross_attn.proj"} <= set(names)
    assert not any("cross" in name for name, _ in LightningDiT(SMALL).named_parameters())


def test_attention_is_summed_over_blocks_and_calls_and_changes_no_byte_of_the_velocity() -> None:
    model, given, noted = randomised(CROSS), words(2, 4), [None, AttentionSum()]
    expected, inputs_of_cross = [], []
    hooks = [
        block.cross_attn.register_forward_pre_hook(lambda _, given: inputs_of_cross.append(given))
        for block in model.blocks
    ]
    plain = model(*inputs(), given).velocity
    for hook in hooks:
        hook.remove()
    assert torch.equal(model(*inputs(), given, sums=noted).velocity, plain)
    for block, (x, seen, _) in zip(model.blocks, inputs_of_cross, strict=True):
        attention = block.cross_attn
        q = attention.q_norm(attention.q(x[1]).unflatten(-1, (2, 16)))
        k = attention.k_norm(attention.kv(seen.tokens[1, :4])[:, :32].unflatten(-1, (2, 16)))
        expected.append((torch.einsum("nhd,lhd->hnl", q, k) / 4.0).softmax(dim=-1).mean(dim=0))
    found = noted[1].mean()
    torch.testing.assert_close(found[:, :4], torch.stack(expected).mean(dim=0), atol=1e-5, rtol=1e-4)
    assert found.shape == (16, LENGTH) and not found[:, 4:].any(), "padding is not looked at"
    torch.testing.assert_close(found.sum(dim=1), torch.ones(16))
    model(*inputs(), given, sums=noted)
    torch.testing.assert_close(noted[1].mean(), found)


def test_only_cross_attention_says_where_it_looks_and_an_empty_sum_says_why_it_is_empty() -> None:
    assert randomised(CROSS).has_word_attention and randomised(SHARED).has_word_attention
    assert not randomised(IN_CONTEXT).has_word_attention and not randomised(SMALL).has_word_attention
    with pytest.raises(ValueError, match="no attention was added"):
        AttentionSum().mean()
