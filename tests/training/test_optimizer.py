"""Which optimizer trains which weights, and Muon's formula written out a second time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.params import DiffusionTrainingParams, TrainingParams
from sfd.training.optimizer import build_optimizers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def network(**changes: Any) -> LightningDiT:
    config = LightningDiTConfig(
        4, 6, 32, 2, 2, ClassCondition.numbered(3), semantic_channels=2, two_times=True, repa_depth=1, **changes
    )
    return LightningDiT(config).initialise(torch.Generator().manual_seed(0))


def options(**changes: Any) -> DiffusionTrainingParams:
    return DiffusionTrainingParams(num_steps=1, learning_rate=0.01, **changes)


def names(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    return {name for name, weight in model.named_parameters() if id(weight) in held}


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")),
        ({"use_swiglu": False, "repa_projector": "conv"}, ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    ],
)
def test_muon_trains_the_matrices_of_attention_and_mlps_and_adamw_all_other_weights(
    changes: dict[str, Any], layers: tuple[str, ...]
) -> None:
    model = network(**changes)
    muon, adamw = build_optimizers(model, options(optimizer="muon"))
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    assert names(model, muon) == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert names(model, muon) | names(model, adamw) == trained and not names(model, muon) & names(model, adamw)
    assert {"x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight", "final_layer.linear.weight"} <= names(
        model, adamw
    )


@pytest.mark.parametrize("params", [options(), TrainingParams(num_steps=1)])
def test_by_default_and_for_other_networks_adamw_trains_all(params: TrainingParams) -> None:
    model = network()
    (adamw,) = build_optimizers(model, params)
    assert isinstance(adamw, torch.optim.AdamW)
    assert names(model, adamw) == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_weight_that_is_frozen_is_in_no_optimizer() -> None:
    model = network()
    model.blocks[0].requires_grad_(False)
    for params in (options(), options(optimizer="muon")):
        held = set().union(*(names(model, optimizer) for optimizer in build_optimizers(model, params)))
        assert not any(name.startswith("blocks.0.") for name in held) and "blocks.1.attn.qkv.weight" in held


def test_a_backbone_that_names_no_matrices_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LightningDiT, "block_layers", "")
    with pytest.raises(
        UserError, match="`muon`.* the backbone `lightningdit` names none .*set the optimizer to `adamw`"
    ):
        build_optimizers(network(), options(optimizer="muon"))
    assert len(build_optimizers(network(), options())) == 1


def test_muon_is_refused_on_a_processor_that_dies_of_bf16_and_adamw_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfd.training.optimizer.dies_of_bf16", lambda _device: True)
    with pytest.raises(UserError, match="`muon`, which computes in bf16.* ONEDNN_MAX_CPU_ISA=.*`adamw`"):
        build_optimizers(network(), options(optimizer="muon"))
    assert len(build_optimizers(network(), options())) == 1


def orthogonalised(gradient: Tensor) -> Tensor:
    """Five Newton-Schulz iterations ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` in float64, of the matrix divided by its Frobenius norm."""
    a, b, c = COEFFICIENTS
    x = gradient.double() / gradient.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    return x


def test_muon_moves_a_matrix_by_its_formula_at_the_scale_of_adamw() -> None:
    model, rate, decay = network(), 0.01, 0.1
    muon, _ = build_optimizers(model, options(optimizer="muon", weight_decay=decay))
    weight, random = model.get_parameter("blocks.1.mlp.w3.weight"), torch.Generator().manual_seed(1)
    momentum = torch.zeros_like(weight)
    for _ in range(3):
        gradient, before = torch.randn(weight.shape, generator=random), weight.detach().clone()
        weight.grad = gradient
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        step = 0.2 * math.sqrt(max(weight.shape)) * orthogonalised(0.05 * gradient + 0.95 * momentum)
        expected = (1.0 - rate * decay) * before.double() - rate * step
        moved = float((weight.detach() - before).square().mean().sqrt())
        # The iterations are in bf16, whose rounding the small singular values carry on; other shares of G and M would be off by 0.3 and more.
        assert float((weight.detach() - expected).square().mean().sqrt()) < 0.04 * moved
        assert 0.7 * 0.2 * rate < moved < 1.2 * 0.2 * rate, "AdamW moves an entry by 0.2 to 0.4 of the learning rate"


def test_what_muon_adds_is_nearly_orthogonal_whatever_the_gradients_singular_values() -> None:
    model = network()
    muon, _ = build_optimizers(model, options(optimizer="muon"))
    weight, random = model.get_parameter("blocks.0.attn.proj.weight"), torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(32, 32, generator=random))[0] for _ in range(2))
    weight.grad = left @ torch.diag(torch.logspace(0, -2, 32)) @ right
    before = weight.detach().clone()
    muon.step()
    values = torch.linalg.svdvals((before - weight.detach()) / (0.01 * 0.2 * math.sqrt(32)))
    assert 0.3 < float(values.min()) and float(values.max()) < 1.3
