"""What a block keeps for its backward pass changes memory and time, and no gradient."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from sfd.bench.measure import count_flops
from sfd.errors import UserError
from sfd.models.backbone import Backbone, Output
from sfd.models.checkpointing import Checkpointing
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.tokens import Route
from sfd.params.runtime import DiffusionRuntime
from sfd.seeding import generator

KINDS: tuple[Checkpointing, ...] = get_args(Checkpointing)
KEPT = torch.tensor([[0, 3, 5, 9], [1, 2, 10, 15], [4, 6, 7, 8]])


def network(**changes: Any) -> LightningDiT:
    parts = {"depth": 4, "semantic_channels": 2, "two_times": True, "repa_depth": 2, "repa_width": 16, "feature_dim": 8}
    config = LightningDiTConfig(
        4, 6, hidden_size=32, num_heads=2, condition=ClassCondition.numbered(3), **parts | changes
    )
    made, random = LightningDiT(config), generator(0, "test/initialisation")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return made


def loss(model: LightningDiT, **options: Any) -> Tensor:
    random = generator(1, "test/inputs")
    x, times = torch.randn(3, 6, 4, 4, generator=random), torch.rand(2, 3, generator=random)
    output = model(x, *times, torch.arange(3), with_projection=True, **options)
    assert output.projection is not None
    return output.velocity.float().square().mean() + output.projection.float().square().mean()


def gradients(model: LightningDiT, kind: Checkpointing, dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
    model.checkpoint_activations(kind)
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = loss(model, **options)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"use_rope": False, "use_swiglu": False, "use_rmsnorm": False, "use_shift": False}, {}),
        ({}, {"route": Route(KEPT, 1, 1)}),
        ({"first_blocks": 1, "last_blocks": 1}, {"route": Route(KEPT, 1, 1, torch.tensor([True, False, False]))}),
    ],
    ids=["full", "dit", "routed", "sparse"],
)
def test_gradients_have_the_same_bytes_whatever_is_kept(
    changes: dict[str, Any], options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = network(**changes)
    expected = gradients(model, "none", dtype, **options)
    assert len(expected) > 50
    for kind in ("block", "selective"):
        found = gradients(model, kind, dtype, **options)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), kind


def test_a_block_that_keeps_its_input_alone_computes_its_products_again_and_selective_does_not() -> None:
    model = network()
    flops = {}
    for kind in KINDS:
        model.checkpoint_activations(kind)
        flops[kind] = count_flops(lambda: loss(model).backward())
    assert flops["selective"] == flops["none"]
    assert 1.2 * flops["none"] < flops["block"] < 1.4 * flops["none"], "one more forward pass of three"


def test_less_is_kept_from_the_forward_to_the_backward_pass() -> None:
    model, kept = network(), dict.fromkeys(KINDS, 0)
    for kind in KINDS:
        model.checkpoint_activations(kind)

        def pack(value: Tensor, kind: Checkpointing = kind) -> Tensor:
            kept[kind] += value.nbytes
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss(model)
    assert kept["block"] < 0.5 * kept["none"]
    assert kept["selective"] == kept["block"], "what selective keeps itself is no tensor of the graph"


def test_without_gradients_and_in_copies_nothing_is_different() -> None:
    model = network()
    with torch.no_grad():
        expected = loss(model)
        model.checkpoint_activations("block")
        assert torch.equal(loss(model), expected)
    assert list(network().state_dict()) == list(model.state_dict())


def test_the_option_offers_what_there_is() -> None:
    field = DiffusionRuntime.model_fields["activation_checkpointing"]
    assert set(get_args(field.annotation)) == set(KINDS) and field.default == "none"


class Plain(Backbone):
    config = network().config

    def forward(self, *_arguments: Any) -> Output:
        raise NotImplementedError

    def initialise(self, _generator: torch.Generator) -> "Plain":
        return self

    def output_layer(self) -> torch.nn.Linear:
        raise NotImplementedError


def test_a_backbone_without_blocks_refuses_all_but_none() -> None:
    Plain().checkpoint_activations("none")
    with pytest.raises(UserError, match="activation_checkpointing is `block`, but backbone .* set it to `none`"):
        Plain().checkpoint_activations("block")


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_network_has_the_same_gradients_up_to_rounding(kind: Checkpointing) -> None:
    model = network(depth=3)
    expected = gradients(model, "none", torch.float32)
    torch.compiler.reset()
    model.compile()
    found = gradients(model, kind, torch.float32)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
