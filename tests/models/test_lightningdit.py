"""The backbone: names and sizes of the published weights, its arithmetic written out a second time, its initialisation."""

import itertools
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu

from sfd.models.conditions import ClassCondition
from sfd.models.embeddings import RotaryEmbedding
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig, product_type
from sfd.sizes import SIZES

RELEASED = json.loads((Path(__file__).parents[1] / "data/conformance/released_checkpoint_shapes.json").read_text())
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
PLAIN = {"use_qknorm": False, "use_swiglu": False, "use_rope": False, "use_rmsnorm": False, "use_shift": False}


def sized(name: str, **changes: Any) -> LightningDiTConfig:
    """The configuration of the published ImageNet models at a size."""
    width, depth, heads = SIZES[name]
    base = LightningDiTConfig(
        input_size=16,
        in_channels=48,
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        condition=ClassCondition.numbered(1000),
        semantic_channels=16,
        two_times=True,
        repa_depth=2,
    )
    return replace(base, **changes)


def on_meta(config: LightningDiTConfig) -> LightningDiT:
    with torch.device("meta"):
        return LightningDiT(config)


def randomised(config: LightningDiTConfig) -> LightningDiT:
    """Every trainable weight non-zero, so that every path counts."""
    model, random = LightningDiT(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def batch(config: LightningDiTConfig, size: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    x = torch.randn(size, config.in_channels, config.input_size, config.input_size, generator=random)
    t_tex, t_sem = torch.rand(2, size, generator=random)
    return x, t_tex, t_sem, config.condition.batch([0, 2, None])[:size]


@pytest.mark.parametrize(("name", "size"), [("sfd_xl", "XL"), ("sfd_1p0", "1p0B"), ("sfd_autoguidance_b", "B")])
def test_names_shapes_and_counts_are_those_of_the_published_weights(name: str, size: str) -> None:
    released = RELEASED[name]
    repa_depth = 2 if "repa_projector.0.weight" in released["state_dict"] else 0
    model = on_meta(sized(size, repa_depth=repa_depth))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == released["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == released["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == released["trainable_parameters"]


@pytest.mark.parametrize(
    ("size", "millions"),
    [("S", 33), ("B", 130), ("L", 458), ("XL", 675), ("1p0B", 1029), ("1p6B", 1634)],
)
def test_every_size_has_about_the_parameters_that_are_published(size: str, millions: int) -> None:
    model = on_meta(sized(size, repa_depth=0))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


def test_the_dit_baseline_has_neither_norm_weights_nor_gated_units_nor_rotation() -> None:
    keys = on_meta(sized("XL", two_times=False, repa_depth=0, patch_size=2, **PLAIN)).state_dict()
    assert not any("norm" in key or "rope" in key or "w12" in key or "_sem" in key for key in keys)
    assert keys["blocks.0.mlp.fc1.weight"].shape == (4 * 1152, 1152)
    assert keys["blocks.0.adaLN_modulation.1.weight"].shape == (4 * 1152, 1152)
    assert keys["x_embedder.proj.weight"].shape == (1152, 48, 2, 2)
    assert keys["final_layer.linear.weight"].shape == (4 * 48, 1152)
    assert keys["pos_embed"].shape == (1, 64, 1152)


def expected_velocity(
    state: dict[str, Tensor], c: LightningDiTConfig, x: Tensor, t_tex: Tensor, t_sem: Tensor, y: Tensor
) -> Tensor:
    """The forward pass from the written facts, position by position and without any module."""
    heads, head_dim, patch, grid = c.num_heads, c.hidden_size // c.num_heads, c.patch_size, c.input_size // c.patch_size

    def fc(name: str, value: Tensor) -> Tensor:
        return linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def rms(name: str, value: Tensor) -> Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def token_norm(name: str, value: Tensor) -> Tensor:
        return rms(name, value) if c.use_rmsnorm else layer_norm(value, value.shape[-1:], eps=1e-6)

    def head_norm(name: str, value: Tensor) -> Tensor:
        if not c.use_qknorm:
            return value
        if c.use_rmsnorm:
            return rms(name, value)
        return layer_norm(value, (head_dim,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def time(name: str, t: Tensor) -> Tensor:
        angles = torch.stack([t * 10_000 ** (-i / 128) for i in range(128)], dim=-1)
        return fc(f"{name}.mlp.2", silu(fc(f"{name}.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=-1))))

    def rotate(value: Tensor) -> Tensor:
        if not c.use_rope:
            return value
        turned, half = value.clone(), head_dim // 2
        for token, pair in itertools.product(range(grid * grid), range(head_dim // 2)):
            row, column = divmod(token, grid)
            k = pair % (half // 2)
            angle = (row if pair < half // 2 else column) * 10_000 ** (-2 * k / half)
            a, b = value[..., token, 2 * pair], value[..., token, 2 * pair + 1]
            turned[..., token, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[..., token, 2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    def attention(name: str, value: Tensor) -> Tensor:
        parts = fc(f"{name}.qkv", value).unflatten(-1, (3, heads, head_dim))
        q, k, v = (parts[:, :, n].transpose(1, 2) for n in range(3))
        q, k = rotate(head_norm(f"{name}.q_norm", q)), rotate(head_norm(f"{name}.k_norm", k))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(head_dim)).softmax(-1)
        return fc(f"{name}.proj", (weights @ v).transpose(1, 2).flatten(2))

    def mlp(name: str, value: Tensor) -> Tensor:
        if not c.use_swiglu:
            return fc(f"{name}.fc2", gelu(fc(f"{name}.fc1", value), approximate="tanh"))
        both = fc(f"{name}.w12", value)
        half = both.shape[-1] // 2
        return fc(f"{name}.w3", silu(both[..., :half]) * both[..., half:])

    tokens = torch.nn.functional.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=patch)
    h = tokens.flatten(2).transpose(1, 2) + state["pos_embed"]
    times = (
        torch.cat([time("t_embedder_sem", t_sem), time("t_embedder_tex", t_tex)], dim=-1)
        if c.two_times
        else time("t_embedder", t_tex)
    )
    condition = silu(times + state["y_embedder.embedding_table.weight"][y])
    for n in range(c.depth):
        block, width = f"blocks.{n}", c.hidden_size
        m = fc(f"{block}.adaLN_modulation.1", condition)[:, None]
        zero = torch.zeros_like(m[..., :width])
        order = ("shift1", "scale1", "gate1", "shift2", "scale2", "gate2")
        order = order if c.use_shift else tuple(name for name in order if "shift" not in name)
        part = {"shift1": zero, "shift2": zero} | dict(zip(order, m.split(width, dim=-1), strict=True))
        normed = token_norm(f"{block}.norm1", h) * (1 + part["scale1"]) + part["shift1"]
        h = h + part["gate1"] * attention(f"{block}.attn", normed)
        normed = token_norm(f"{block}.norm2", h) * (1 + part["scale2"]) + part["shift2"]
        h = h + part["gate2"] * mlp(f"{block}.mlp", normed)
    shift, scale = fc("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, dim=-1)
    out = fc("final_layer.linear", token_norm("final_layer.norm_final", h) * (1 + scale) + shift)
    velocity = torch.zeros_like(x)
    for token, dy, dx in itertools.product(range(grid * grid), range(patch), range(patch)):
        row, column = divmod(token, grid)
        first = (dy * patch + dx) * c.in_channels
        velocity[:, :, row * patch + dy, column * patch + dx] = out[:, token, first : first + c.in_channels]
    return velocity


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({name: value} for name, value in PLAIN.items()),
        PLAIN,
        PLAIN | {"patch_size": 2, "two_times": False},
        {"patch_size": 2},
        {"two_times": False},
        {"use_rmsnorm": False, "use_qknorm": False},
    ],
    ids=lambda changes: "+".join(f"{name}={value}" for name, value in changes.items()) or "full",
)
def test_the_forward_pass_is_what_the_facts_say(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    model, inputs = randomised(config), batch(config)
    with torch.no_grad():
        velocity = model(*inputs).velocity
        expected = expected_velocity(dict(model.state_dict()), config, *inputs)
    assert float(velocity.std()) > 0.1
    assert torch.allclose(
        velocity, expected, rtol=1e-5, atol=1e-3
    )  # values reach 16, and one thread rounds otherwise than two


def test_the_fixed_embedding_has_columns_first_and_then_rows() -> None:
    table = LightningDiT(SMALL).pos_embed[0].reshape(4, 4, 32)
    assert not LightningDiT(SMALL).pos_embed.requires_grad
    row, column, i = 1, 3, 2
    frequency = 10_000 ** (-i / 8)
    assert float(table[row, column, i]) == pytest.approx(math.sin(column * frequency))
    assert float(table[row, column, 8 + i]) == pytest.approx(math.cos(column * frequency))
    assert float(table[row, column, 16 + i]) == pytest.approx(math.sin(row * frequency))
    assert float(table[row, column, 24 + i]) == pytest.approx(math.cos(row * frequency))


def test_with_two_times_each_one_counts_and_with_one_only_the_texture_time() -> None:
    for two_times in (True, False):
        model = randomised(replace(SMALL, two_times=two_times))
        x, t_tex, t_sem, y = batch(SMALL)
        base = model(x, t_tex, t_sem, y).velocity
        assert not torch.equal(model(x, t_tex + 0.1, t_sem, y).velocity, base)
        assert torch.equal(model(x, t_tex, t_sem + 0.1, y).velocity, base) == (not two_times)


def test_the_projection_reads_the_tokens_after_its_block_and_comes_only_when_asked_for() -> None:
    model, inputs = randomised(SMALL), batch(SMALL)
    tokens: list[Tensor] = []
    model.blocks[SMALL.repa_depth - 1].register_forward_hook(lambda *call: tokens.append(call[-1]))
    output = model(*inputs, with_projection=True)
    assert output.projection is not None and output.projection.shape == (3, 16, 6)
    assert torch.equal(output.projection, model.repa_projector(tokens[0]))
    plain = model(*inputs)
    assert plain.projection is None and torch.equal(plain.velocity, output.velocity)


def test_the_convolution_projects_each_token_with_its_eight_neighbours_and_zeros_beyond_the_edge() -> None:
    config = replace(SMALL, repa_projector="conv")
    model, inputs = randomised(config), batch(config)
    tokens: list[Tensor] = []
    model.blocks[config.repa_depth - 1].register_forward_hook(lambda *call: tokens.append(call[-1]))
    projection = model(*inputs, with_projection=True).projection
    weight, bias = model.repa_projector.proj.weight, model.repa_projector.proj.bias
    expected = bias.expand(3, 16, 6).clone()
    for (row, column), dy, dx in itertools.product(itertools.product(range(4), range(4)), (-1, 0, 1), (-1, 0, 1)):
        y, x = row + dy, column + dx
        if 0 <= y < 4 and 0 <= x < 4:
            expected[:, 4 * row + column] += linear(tokens[0][:, 4 * y + x], weight[:, :, dy + 1, dx + 1])
    assert projection.shape == (3, 16, 6)
    torch.testing.assert_close(projection, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_kind_of_the_projector_changes_no_other_trunk_weight_and_no_velocity() -> None:
    mlp, conv = (
        LightningDiT(replace(SMALL, repa_projector=kind)).initialise(torch.Generator().manual_seed(0))
        for kind in ("mlp", "conv")
    )
    for name, value in mlp.blocks.state_dict().items():
        assert torch.equal(value, conv.blocks.state_dict()[name]), name
    kernel = conv.repa_projector.proj
    assert 0.0 < float(kernel.weight.abs().max()) <= math.sqrt(6 / (6 + 9 * 32)) and not bool(kernel.bias.any())
    plain, projected = (conv(*batch(SMALL), with_projection=asked) for asked in (False, True))
    assert plain.projection is None and torch.equal(plain.velocity, projected.velocity)


def test_a_projector_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="repa_projector is 'cnn', but must be mlp or conv"):
        replace(SMALL, repa_projector="cnn")


def test_the_null_class_is_the_last_row_and_can_be_left_out() -> None:
    assert LightningDiT(SMALL).y_embedder.embedding_table.num_embeddings == 4
    assert (
        LightningDiT(
            replace(SMALL, condition=ClassCondition.numbered(3, has_null=False))
        ).y_embedder.embedding_table.num_embeddings
        == 3
    )
    assert SMALL.condition.null(2).tolist() == [3, 3]


@pytest.mark.parametrize("changes", [{}, PLAIN | {"patch_size": 2}], ids=["full", "dit"])
def test_a_fresh_model_says_zero_and_its_blocks_let_tokens_through(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    model = LightningDiT(config).initialise(torch.Generator().manual_seed(0))
    x, t_tex, t_sem, y = batch(config)
    assert torch.equal(model(x, t_tex, t_sem, y).velocity, torch.zeros_like(x))
    tokens = torch.randn(3, config.grid**2, config.hidden_size)
    rotation = None if model.feat_rope is None else model.feat_rope(torch.float32)
    assert torch.equal(model.blocks[0](tokens, torch.randn(3, config.hidden_size), rotation), tokens)


@torch.no_grad()
def test_initialisation_is_the_published_one() -> None:
    model = LightningDiT(replace(SMALL, hidden_size=128, condition=ClassCondition.numbered(500))).initialise(
        torch.Generator().manual_seed(0)
    )
    qkv, patch = model.blocks[0].attn.qkv, model.x_embedder.proj
    assert float(qkv.weight.abs().max()) == pytest.approx(math.sqrt(6 / (128 + 384)), rel=0.01)
    assert float(patch.weight.abs().max()) == pytest.approx(math.sqrt(6 / (5 + 128)), rel=0.05)
    assert float(model.y_embedder.embedding_table.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.t_embedder_sem.mlp[0].weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.t_embedder_tex.mlp[2].weight.std()) == pytest.approx(0.02, rel=0.05)
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert biases and not any(bool(bias.any()) for bias in biases)


def test_initialisation_depends_on_its_generator_and_on_nothing_else() -> None:
    def weights(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        model = LightningDiT(SMALL).initialise(torch.Generator().manual_seed(seed))
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_a_configuration_survives_its_dictionary_and_json() -> None:
    for config in (SMALL, sized("XL", **PLAIN)):
        assert LightningDiTConfig.from_dict(json.loads(json.dumps(config.to_dict())), config.condition) == config


def test_an_unknown_key_in_a_configuration_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="unknown keys .*: use_swigluu"):
        LightningDiTConfig.from_dict(SMALL.to_dict() | {"use_swigluu": True}, SMALL.condition)


@pytest.fixture
def every_warning() -> Iterator[None]:
    """torch warns of some things once per process; here, each time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("every_warning")
def test_under_autocast_norms_take_the_fused_kernel_and_forward_and_backward_say_nothing() -> None:
    model, inputs = randomised(SMALL), batch(SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", torch.bfloat16):
            model(*inputs, with_projection=True).velocity.float().square().mean().backward()


@pytest.mark.usefixtures("every_warning")
def test_torchs_own_norm_warns_under_autocast_so_the_one_here_is_still_needed() -> None:
    queries = torch.randn(1, 2, 4, 16, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="Cannot dispatch to fused implementation"):
        torch.nn.RMSNorm(16, eps=1e-6)(queries)


def test_under_autocast_queries_and_keys_are_normed_and_turned_in_bf16_and_the_velocity_is_near_that_of_float32() -> (
    None
):
    model, inputs = randomised(SMALL), batch(SMALL)
    types: list[torch.dtype] = []
    model.blocks[1].attn.q_norm.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    with torch.no_grad():
        expected = model(*inputs).velocity
        with torch.autocast("cpu", torch.bfloat16):
            found = model(*inputs).velocity
    assert types == [torch.float32, torch.bfloat16]
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_the_rotation_is_given_in_the_type_of_the_products() -> None:
    rope, tokens = RotaryEmbedding(8, 2), torch.randn(1, 4, 8)
    assert rope(product_type(tokens)).cos.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        rotation = rope(product_type(tokens))
        assert product_type(tokens.to("meta")) == torch.float32
    assert (rotation.cos.dtype, rotation.sin.dtype) == (torch.bfloat16, torch.bfloat16)
    assert rope(product_type(tokens.bfloat16())).sin.dtype == torch.bfloat16


def test_operations_can_be_counted_on_the_meta_device() -> None:
    model = on_meta(SMALL)
    inputs = [value.to("meta") for value in batch(SMALL)]
    assert model(*inputs, with_projection=True).velocity.shape == (3, 5, 4, 4)


def test_the_rotation_at_some_positions_is_that_of_all_positions_there() -> None:
    rotation = RotaryEmbedding(8, 3)(torch.float32)
    queries, positions = torch.randn(2, 4, 9, 8), torch.tensor([[0, 4, 8], [7, 1, 2]])
    kept = torch.stack([queries[n, :, positions[n]] for n in range(2)])
    turned = torch.stack([rotation.turn(queries)[n, :, positions[n]] for n in range(2)])
    assert torch.equal(rotation.at(positions).turn(kept), turned)
