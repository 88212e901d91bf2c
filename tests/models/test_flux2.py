"""Flux2: what diffusers computes in the conventions of SeFi-Image, its sizes, its text, its initialisation."""

import copy
import math
import re
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from support import small_params
from torch import Tensor, nn
from torch.nn.functional import silu

from sfd.bench.networks import latent_shape
from sfd.models.backbone import build_backbone, config_from_dict
from sfd.models.checkpointing import Checkpointing
from sfd.models.conditions import ClassCondition, NoCondition
from sfd.models.flux2 import Flux2
from sfd.models.flux2_config import Flux2Config
from sfd.models.text_condition import TextCondition
from sfd.models.words import Words, stack_words
from sfd.params import LoraParams, parse_params
from sfd.planning.flops import evaluation, train_step
from sfd.seeding import generator
from sfd.sizes import FLUX2_DOUBLE_BLOCKS, FLUX2_HEAD_WIDTH, SIZES
from sfd.training.finetuning import Transfer, add_adapters

KINDS: tuple[Checkpointing, ...] = get_args(Checkpointing)


SMALL = Flux2Config(
    input_size=3,
    in_channels=5,
    num_heads=2,
    double_blocks=2,
    single_blocks=2,
    condition=TextCondition(7, 5),
    head_width=16,
    semantic_channels=2,
    two_times=True,
)
REPA = {"repa_depth": 2, "repa_width": 8, "feature_dim": 6}


def randomised(config: Flux2Config) -> Flux2:
    """Every weight non-zero, so that every path counts."""
    model, random = Flux2(config), generator(3, "test/weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def inputs(config: Flux2Config, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(4, "test/inputs")
    x = torch.randn(count, config.in_channels, config.input_size, config.input_size, generator=random)
    t_tex, t_sem = torch.rand(2, count, generator=random)
    return x, t_tex, t_sem


def words(*lengths: int) -> Words:
    random = generator(5, "test/words")
    return stack_words([torch.randn(length, 7, generator=random) for length in lengths])


class Given(nn.Module):
    """Stands for the embedding of the times, which the test computes."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _timestep: Tensor, _guidance: None) -> Tensor:
        return self.value


def published_velocity(
    state: dict[str, Tensor], c: Flux2Config, x: Tensor, t_tex: Tensor, t_sem: Tensor, text: Tensor
) -> Tensor:
    """The facts of SeFi-Image around the whole forward pass of diffusers, in our channels, times and sign."""

    def time(name: str, noise: Tensor) -> Tensor:
        # In float32, as everywhere: an angle of 1,000 has no more than four digits behind the point.
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        angles = (1000 * noise)[:, None] * frequencies
        first = torch.cat([angles.cos(), angles.sin()], dim=-1) @ state[f"dual_time_embed.{name}.linear_1.weight"].T
        return silu(first) @ state[f"dual_time_embed.{name}.linear_2.weight"].T

    inner = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    network = Flux2Transformer2DModel(
        in_channels=c.in_channels,
        num_layers=c.double_blocks,
        num_single_layers=c.single_blocks,
        attention_head_dim=c.head_width,
        num_attention_heads=c.num_heads,
        joint_attention_dim=text.shape[-1],
        axes_dims_rope=(c.head_width // 4,) * 4,
        guidance_embeds=False,
    )
    network.time_guidance_embed = Given(
        torch.cat([time("semantic_embedder", 1 - t_sem), time("texture_embedder", 1 - t_tex)], dim=-1)
    )
    network.load_state_dict(inner, strict=True)
    texture = c.in_channels - c.semantic_channels
    latent = torch.cat([x[:, texture:], x[:, :texture]], dim=1)
    zero, side, place = torch.arange(1), torch.arange(c.input_size), torch.arange(text.shape[1])
    predicted = network(
        hidden_states=latent.permute(0, 2, 3, 1).reshape(len(x), -1, c.in_channels),
        encoder_hidden_states=text,
        timestep=torch.zeros(len(x)),
        img_ids=torch.cartesian_prod(zero, side, side, zero),
        txt_ids=torch.cartesian_prod(zero, zero, zero, place),
    ).sample
    noise_minus_data = predicted.reshape(len(x), c.input_size, c.input_size, c.in_channels).permute(0, 3, 1, 2)
    semantic = noise_minus_data[:, : c.semantic_channels]
    return -torch.cat([noise_minus_data[:, c.semantic_channels :], semantic], dim=1)


@torch.no_grad()
def test_the_velocity_is_that_of_diffusers_with_semantics_first_noise_levels_and_the_other_sign() -> None:
    model, (x, t_tex, t_sem) = randomised(SMALL), inputs(SMALL)
    text = words(4, 4, 4)
    expected = published_velocity(model.state_dict(), SMALL, x, t_tex, t_sem, text.tokens)
    found = model(x, t_tex, t_sem, text).velocity
    assert found.shape == x.shape and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for wrong in ((x.roll(2, 1), t_tex, t_sem), (x, t_sem, t_tex), (x, 1 - t_tex, 1 - t_sem)):
        assert (model(*wrong, text).velocity - expected).abs().max() > 1e-2


@torch.no_grad()
def test_padding_of_a_text_changes_nothing_and_every_real_token_counts() -> None:
    model, (x, t_tex, t_sem) = randomised(SMALL), inputs(SMALL)
    text = words(4, 2, 1)
    found = model(x, t_tex, t_sem, text).velocity
    noise = torch.randn(text.tokens.shape, generator=generator(0, "test/padding"))
    padded = Words(torch.where(text.mask[:, :, None], text.tokens, noise), text.mask)
    torch.testing.assert_close(model(x, t_tex, t_sem, padded.padded(5)).velocity, found, rtol=1e-5, atol=1e-5)
    for image, length in enumerate((4, 2, 1)):
        alone = text.select(slice(image, image + 1))
        short = Words(alone.tokens[:, :length], alone.mask[:, :length])
        one = slice(image, image + 1)
        torch.testing.assert_close(
            model(x[one], t_tex[one], t_sem[one], short).velocity, found[one], rtol=1e-5, atol=1e-5
        )
        changed = Words(short.tokens + torch.eye(length)[-1][None, :, None], short.mask)
        assert (model(x[one], t_tex[one], t_sem[one], changed).velocity - found[one]).abs().max() > 1e-3


@torch.no_grad()
def test_a_class_is_a_text_of_one_token_and_no_condition_is_an_empty_one() -> None:
    x, t_tex, t_sem = inputs(SMALL)
    model = randomised(replace(SMALL, condition=ClassCondition.numbered(3)))
    assert "backbone.context_embedder.weight" not in model.state_dict()
    first, second = (model(x, t_tex, t_sem, torch.tensor(classes)).velocity for classes in ([0, 1, 2], [0, 1, 1]))
    assert torch.equal(first[:2], second[:2]) and not torch.allclose(first[2], second[2])
    plain = randomised(replace(SMALL, condition=NoCondition()))
    assert plain(x, t_tex, t_sem, torch.zeros(3)).velocity.std() > 0


@torch.no_grad()
def test_a_model_of_one_time_reads_that_of_texture() -> None:
    x, t_tex, t_sem = inputs(SMALL)
    model, text = randomised(replace(SMALL, two_times=False)), words(2, 2, 2)
    assert torch.equal(model(x, t_tex, t_sem, text).velocity, model(x, t_tex, t_tex, text).velocity)
    two = randomised(SMALL)
    assert torch.equal(two(x, t_tex, t_tex, text).velocity, model(x, t_tex, t_sem, text).velocity)


def parameters(size: str, channels: int, text: int) -> int:
    """Written out: attention and MLPs of both kinds of blocks with the norms of heads, modulations, times, first and last layers."""
    width, depth, _ = SIZES[size]
    double = FLUX2_DOUBLE_BLOCKS[size]
    blocks = double * (26 * width**2 + 4 * 128) + (depth - double) * (13 * width**2 + 2 * 128)
    modulations, times = (6 + 6 + 3 + 2) * width**2, 256 * width + 2 * (width // 2) ** 2
    return blocks + modulations + times + width * (2 * channels + text)


@pytest.mark.parametrize(
    ("size", "text", "count"),
    [("1b", 6144, 1_177_621_504), ("2b", 6144, 2_176_538_624), ("5b", 7680, 4_972_626_176)],
)
def test_the_published_sizes_have_so_many_parameters(size: str, text: int, count: int) -> None:
    width, depth, heads = SIZES[size]
    assert width == heads * FLUX2_HEAD_WIDTH
    double, told = FLUX2_DOUBLE_BLOCKS[size], TextCondition(text, 512)
    with torch.device("meta"):
        network = Flux2(Flux2Config(64, 144, heads, double, depth - double, told, semantic_channels=16, two_times=True))
    assert sum(p.numel() for p in network.parameters()) == parameters(size, 144, text) == count


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_hidden_states_of_any_block_can_be_aligned_and_the_projection_changes_no_velocity(depth: int) -> None:
    config, text = replace(SMALL, **REPA | {"repa_depth": depth}), words(4, 2, 1)
    model, x = randomised(config), inputs(config)
    output = model(*x, text, with_projection=True)
    assert output.projection.shape == (3, 9, 6)
    assert torch.equal(output.velocity, model(*x, text).velocity) and model(*x, text).projection is None
    gradients = torch.autograd.grad(
        output.projection.sum(), model.backbone.single_transformer_blocks[1].attn.to_out.weight, allow_unused=True
    )
    assert (gradients[0] is not None) == (depth == 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_have_the_same_bytes_whatever_is_kept(dtype: torch.dtype) -> None:
    config, text = replace(SMALL, **REPA), words(4, 2, 1)
    model, found = randomised(config), {}
    for kind in KINDS:
        model.checkpoint_activations(kind)
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(*inputs(config), text, with_projection=True)
        (output.velocity.float().square().mean() + output.projection.float().square().mean()).backward()
        found[kind] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found["none"]) == len(list(model.parameters()))
    for kind in KINDS[1:]:
        assert all(torch.equal(value, found["none"][name]) for name, value in found[kind].items()), kind


def test_a_fresh_network_predicts_zero_and_is_the_same_for_the_same_seed() -> None:
    made = [Flux2(replace(SMALL, **REPA)).initialise(generator(seed, "test/init")) for seed in (0, 0, 1)]
    states = [network.state_dict() for network in made]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["backbone.x_embedder.weight"], states[2]["backbone.x_embedder.weight"])
    assert all(bool(value.isfinite().all()) for value in states[0].values())
    assert made[0](*inputs(SMALL), words(1, 2, 3)).velocity.abs().max() == 0
    assert made[0].output_layer().weight.abs().max() == 0


def test_adapters_and_muon_get_the_layers_inside_the_blocks_and_no_others() -> None:
    model = Flux2(replace(SMALL, **REPA))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {name for name in linear if re.fullmatch(Flux2.block_layers, name)}
    assert found == {name for name in linear if "transformer_blocks." in name}


def test_adapters_are_merged_into_ordinary_weights() -> None:
    model, x, text = randomised(SMALL), inputs(SMALL), words(4, 2, 1)
    names, expected = list(model.state_dict()), model(*x, text).velocity
    tuner = add_adapters(model, LoraParams(rank=2), Transfer((), {}, (), (), ()), 0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert torch.equal(model(*x, text).velocity, expected), "an adapter is zero at first"
    with torch.no_grad():
        for value in trained.values():
            value += 0.1
    adapted = model(*x, text).velocity
    copied: Any = copy.deepcopy(tuner)
    copied.merge_and_unload()
    assert list(copied.model.state_dict()) == names and not torch.allclose(adapted, expected, atol=1e-2)
    torch.testing.assert_close(copied.model(*x, text).velocity, adapted, rtol=1e-4, atol=1e-4)


def test_operations_are_counted_from_shapes_alone() -> None:
    params = parse_params(with_model(backbone="flux2", size="tiny"))
    shape = latent_shape(params)
    assert evaluation(params, shape) > 0 and train_step(params, shape) > 2 * evaluation(params, shape)


def test_channels_are_named_in_the_order_of_the_weights() -> None:
    axes = Flux2(SMALL).named_axes()
    names = ["semantic 0 of 2", "semantic 1 of 2", "texture 0", "texture 1", "texture 2"]
    assert [list(axis.names) for axis in axes.values()] == [names, names]
    assert axes["backbone.x_embedder.weight"].tensor.shape[1] == axes["backbone.proj_out.weight"].tensor.shape[0] == 5
    rows = Flux2(replace(SMALL, condition=ClassCondition(("a", "b")))).named_axes()
    assert rows["y_embedder.embedding_table.weight"].names == ["a", "b", "no class"]


def test_a_configuration_survives_its_record_and_a_wrong_one_is_refused() -> None:
    config = replace(SMALL, condition=ClassCondition.numbered(2), **REPA)
    assert config_from_dict("flux2", config.to_dict(), config.condition) == config
    assert isinstance(build_backbone(config), Flux2)
    with pytest.raises(ValueError, match="unknown keys in the model's configuration: depth"):
        Flux2Config.from_dict(config.to_dict() | {"depth": 4}, config.condition)
    with pytest.raises(ValueError, match="head_width is 12, but must be a multiple of 8"):
        replace(config, head_width=12)
    with pytest.raises(ValueError, match="double_blocks is 0"):
        replace(config, double_blocks=0)


def with_model(**changes: Any) -> dict[str, Any]:
    tree = small_params()
    tree["diffusion"]["model"] |= changes
    return tree


def test_the_parameters_take_a_size_that_the_backbone_has() -> None:
    assert parse_params(with_model(backbone="flux2", size="tiny")).diffusion.model.backbone == "flux2"
    assert parse_params(with_model(backbone="flux2", size="1b")).diffusion.model.size == "1b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "flux2", "size": "XL"}, "size is `XL`, but backbone `flux2` has the sizes tiny, 0p5b, 1b"),
        (
            {"backbone": "lightningdit", "size": "1b"},
            "size is `1b`, but backbone `lightningdit` has the sizes tiny, XS",
        ),
        (
            {"backbone": "flux2", "size": "tiny", "patch_size": 2},
            "one token per position: set diffusion.model.patch_size 2 to 1",
        ),
        ({"backbone": "flux2", "size": "tiny", "use_rope": False}, "set diffusion.model.use_rope to true"),
    ],
)
def test_the_parameters_refuse_what_the_backbone_does_not_have(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)):
        parse_params(with_model(**changes))
