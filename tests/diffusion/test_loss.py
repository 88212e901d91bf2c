"""The terms of the loss: by hand, against recorded numbers, and each without the others."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd.data.latents import LatentBatch
from sfd.diffusion.loss import Predicted, interpolate, per_part
from sfd.diffusion.schedule import OffsetSchedule
from sfd.diffusion.terms.cosine import CosineTerm, cosine_loss
from sfd.diffusion.terms.repa import RepaTerm, normalise_over_tokens, repa_loss, repa_loss_with_error
from sfd.diffusion.terms.velocity import energy_weights, velocity_loss
from sfd.models.lightningdit import LightningDiT
from sfd.models.published import config_from_published
from sfd.params import LossParams
from sfd.training.diffusion import DiffusionDraws, DiffusionTask

VECTOR = Path(__file__).parents[1] / "data/conformance/sfd_tiny"
TERMS = ("velocity", "cosine", "repa")
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(TERMS, size)]


def test_the_squared_velocity_error_counts_semantic_channels_by_their_weight() -> None:
    target = torch.tensor([1.0, 1.0, 2.0])[None, :, None, None].expand(1, 3, 2, 2)
    prediction = torch.zeros_like(target)
    assert velocity_loss(prediction, target, 1, 2.0).tolist() == pytest.approx([(1 + 1 + 2 * 4) / 3])
    assert velocity_loss(prediction, target, 1, 1.0).tolist() == pytest.approx([(1 + 1 + 4) / 3])
    assert velocity_loss(prediction, target, 1, 0.0).tolist() == pytest.approx([2 / 3])


def test_channels_weigh_by_the_square_root_of_their_share_of_the_energy_within_limits() -> None:
    std = torch.tensor([8.0, 2.0, 1.0, 0.1, 3.0])
    # The mean energy of the four texture channels is 17.2525. The least share is raised to 0.05.
    expected = [(64 / 17.2525) ** 0.5, (4 / 17.2525) ** 0.5, (1 / 17.2525) ** 0.5, 0.05**0.5, 1.0]
    assert energy_weights(std, 1).tolist() == pytest.approx(expected)
    assert energy_weights(torch.tensor([9.0, *[0.1] * 20]), 0)[0].item() == pytest.approx(6**0.5)
    assert energy_weights(torch.full((4,), 0.7), 2).tolist() == pytest.approx([1.0] * 4)


def test_the_squared_velocity_error_counts_channels_by_their_weights() -> None:
    target = torch.tensor([1.0, 3.0, 2.0])[None, :, None, None].expand(1, 3, 2, 2)
    prediction, weights = torch.zeros_like(target), torch.tensor([2.0, 0.5, 1.0])
    loss = velocity_loss(prediction, target, 1, 2.0, channel_weights=weights)
    assert loss.tolist() == pytest.approx([(2.0 * 1 + 0.5 * 9 + 2.0 * 4) / 3])
    ones = velocity_loss(prediction, target, 1, 2.0, channel_weights=torch.ones(3))
    assert torch.equal(ones, velocity_loss(prediction, target, 1, 2.0))


def test_without_semantic_channels_the_semantic_weight_counts_nothing() -> None:
    prediction, target = torch.randn(2, 3, 4, 2, 2).unbind()
    assert torch.equal(velocity_loss(prediction, target, 0, 5.0), velocity_loss(prediction, target, 0, 1.0))


def test_the_cosine_term_takes_all_channels_of_a_position_together() -> None:
    prediction = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, -2.0]], [[1.0, 0.0]]]])
    assert cosine_loss(prediction, target).tolist() == pytest.approx([((1 - 1 / math.sqrt(2)) + 2) / 2])


def test_the_cosine_term_ignores_length_and_the_velocity_term_does_not() -> None:
    prediction, target = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.allclose(cosine_loss(5 * prediction, target), cosine_loss(prediction, target), atol=1e-6)
    assert not torch.allclose(velocity_loss(5 * prediction, target, 0, 1.0), velocity_loss(prediction, target, 0, 1.0))


def test_the_cosine_term_is_the_plain_cosine_for_velocities_of_usual_length() -> None:
    prediction, target = torch.randn(2, 3, 12, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    plain = (prediction * target).sum(1) / prediction.norm(dim=1) / target.norm(dim=1)
    assert torch.allclose(cosine_loss(prediction, target), 1 - plain.mean((1, 2)), atol=1e-6)


def test_a_fresh_model_that_predicts_zero_gets_no_outsized_gradient_from_the_cosine_term() -> None:
    target = torch.randn(3, 12, 2, 2, generator=torch.Generator().manual_seed(0))
    slopes = []
    for length in (0.0, 1.0):
        prediction = (length * target.flip(1) / target.norm(dim=1, keepdim=True)).requires_grad_()
        loss = cosine_loss(prediction, target, LossParams().cosine_floor)
        slopes.append(float(torch.autograd.grad(loss.sum(), prediction)[0].norm()))
    assert float(cosine_loss(torch.zeros_like(target), target)[0]) == 1.0
    assert 0 < slopes[0] < 20 * slopes[1]


def test_the_floor_of_the_cosine_term_shortens_the_cosine_of_short_predictions_alone() -> None:
    prediction = torch.tensor([0.03, 0.04])[None, :, None, None]  # of length 0.05
    target = torch.tensor([3.0, 4.0])[None, :, None, None]

    def term(floor: float, scale: float = 1.0) -> float:
        batch = Predicted(scale * prediction, target, 0, (torch.ones(1), torch.ones(1)))
        return float(CosineTerm(LossParams(cosine_floor=floor))(batch))

    assert term(0.1) == pytest.approx(0.5) and term(1e-8) == pytest.approx(0.0, abs=1e-6)
    assert term(0.1, scale=10.0) == term(1e-8, scale=10.0)
    assert LossParams().cosine_floor == 0.1


def test_repa_with_the_squared_error_is_the_mean_of_both() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    projection = torch.tensor([[[0.0, 1.0], [0.0, 4.0]]])  # 1 - cosine: 1 and 0; squared errors: 1, 1, 0 and 4
    assert repa_loss_with_error(projection, features).tolist() == pytest.approx([(0.5 + 1.5) / 2])
    both = Predicted(features, features, 0, (torch.ones(1), torch.ones(1)), projection, features)
    for name, expected in (("cosine", 0.5), ("cosine_mse", 1.0)):
        term = RepaTerm(LossParams.model_validate({"repa_loss": name}))
        assert term(both).tolist() == pytest.approx([expected])


def test_repa_of_a_part_of_the_tokens_compares_them_with_their_own_features() -> None:
    features, kept = torch.randn(2, 4, 3), torch.tensor([[0, 3], [1, 2]])
    own = torch.stack([features[0, [0, 3]], features[1, [1, 2]]])
    term = RepaTerm(LossParams.model_validate({}))
    part = Predicted(features, features, 0, (torch.ones(2), torch.ones(2)), own, features, kept=kept)
    assert term(part).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    swapped = replace(part, kept=kept.flip(1))
    torch.testing.assert_close(term(swapped), repa_loss(own, own.flip(1)))


def test_repa_is_zero_for_aligned_tokens_and_two_for_opposite_ones() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).repeat(3, 1, 1)
    projection = torch.stack([3 * features[0], -features[0], torch.stack([features[0, 0], -features[0, 1]])])
    assert repa_loss(projection, features).tolist() == pytest.approx([0.0, 2.0, 1.0])


def test_features_normalised_over_tokens_have_mean_0_and_deviation_1_in_each_channel_of_each_image() -> None:
    features = torch.tensor([[[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]], [[0.0, -2.0], [0.0, 0.0], [3.0, 2.0]]])
    third = 1.0 / 3.0**0.5
    assert normalise_over_tokens(features).flatten(1).tolist() == [
        pytest.approx(
            [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0], abs=1e-5
        ),  # the standard deviation of 1, 3, 5 is 2; a constant is 0
        pytest.approx([-third, -1.0, -third, 0.0, 2 * third, 1.0], abs=1e-5),
    ]


def test_the_target_norm_removes_what_all_tokens_of_an_image_share_and_by_default_nothing_is_removed() -> None:
    random = torch.Generator().manual_seed(6)
    projection, features = torch.randn(2, 3, 16, 8, generator=random).unbind()
    shared = 5.0 * torch.randn(3, 1, 8, generator=random)
    ones = (torch.ones(3), torch.ones(3))

    def term(norm: str, target: torch.Tensor) -> torch.Tensor:
        options = LossParams.model_validate({"repa_target_norm": norm})
        return RepaTerm(options)(Predicted(features, features, 0, ones, projection, target))

    torch.testing.assert_close(term("tokens", features), term("tokens", 3.0 * features + shared))
    assert torch.equal(term("tokens", features), repa_loss(projection, normalise_over_tokens(features)))
    assert torch.equal(term("none", features), repa_loss(projection, features))
    assert not torch.allclose(term("none", features), term("none", 3.0 * features + shared), atol=0.01)
    assert LossParams().repa_target_norm == "none"


def test_every_term_is_one_value_an_image_that_no_other_image_moves() -> None:
    prediction, target = torch.randn(2, 3, 6, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    other = prediction.clone()
    other[0] += 1.0
    for term in (lambda p: velocity_loss(p, target, 2, 2.0), lambda p: cosine_loss(p, target)):
        before, after = term(prediction), term(other)
        assert before.shape == (3,)
        assert before[0] != after[0] and torch.equal(before[1:], after[1:])
    tokens = prediction.flatten(2)
    assert torch.equal(repa_loss(tokens, target.flatten(2))[1:], repa_loss(other.flatten(2), target.flatten(2))[1:])


def test_weights_of_an_images_parts_multiply_its_velocity_term() -> None:
    prediction, target = torch.randn(2, 2, 6, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    texture, semantic = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0])
    weighted = velocity_loss(prediction, target, 2, 2.0, (texture, semantic))
    squares = (prediction - target).square()
    assert float(weighted[0]) == pytest.approx(float(velocity_loss(prediction, target, 2, 2.0)[0]))
    assert float(weighted[1]) == pytest.approx(float((6.0 * squares[1, 4:]).sum() / squares[1].numel()))


def test_each_part_is_interpolated_at_its_own_time() -> None:
    x0, x1 = torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1)
    xt = interpolate(x0, x1, torch.tensor([0.0, 0.2]), torch.tensor([0.3, 1.0]), semantic_channels=1)
    assert xt.flatten(1).tolist() == [[0.0, 0.0, pytest.approx(0.3)], [pytest.approx(0.2), pytest.approx(0.2), 1.0]]


def test_one_value_a_part_spreads_over_its_channels() -> None:
    spread = per_part(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), num_channels=5, semantic_channels=2)
    assert spread.shape == (2, 5, 1, 1)
    assert spread.flatten(1).tolist() == [[1, 1, 1, 3, 3], [2, 2, 2, 4, 4]]


class OneBatch:
    """A data set that is never asked: the tests hand their batch over."""

    def __len__(self) -> int:
        return 0

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        raise AssertionError(f"nobody should fetch {indices}")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(VECTOR.with_suffix(".safetensors"))


@pytest.fixture(scope="module")
def network(recorded: dict[str, Tensor]) -> LightningDiT:
    config = config_from_published(json.loads(VECTOR.with_suffix(".json").read_text())["model"])
    model = LightningDiT(config)
    model.load_state_dict({k.removeprefix("state."): v for k, v in recorded.items() if k.startswith("state.")})
    return model.eval()


def task_losses(
    network: LightningDiT, recorded: dict[str, Tensor], terms: tuple[str, ...], dropout: float = 0.0
) -> dict[str, Tensor]:
    weights = {f"{term}_weight": float(term in terms) for term in TERMS}
    loss = LossParams.model_validate(weights)
    task = DiffusionTask(network, OneBatch(), loss, OffsetSchedule(0.3), dropout, seed=0)
    features = recorded["features"].flatten(2).transpose(1, 2)
    times, ones = OffsetSchedule(0.3).times(recorded["t"]), torch.ones(4)
    noise = DiffusionDraws(recorded["x0"], *times, ones, ones, torch.full((4,), 0.5))
    return task.losses(network, LatentBatch(recorded["x1"], recorded["y"], features), noise)


def test_the_training_step_gives_the_recorded_losses(network: LightningDiT, recorded: dict[str, Tensor]) -> None:
    with torch.no_grad():
        losses = task_losses(network, recorded, TERMS)
    for term, name in zip(TERMS, ("loss_velocity_mse", "loss_cosine", "loss_repa"), strict=True):
        assert float(losses[term]) == pytest.approx(float(recorded[name].mean()), abs=1e-5)


@pytest.mark.parametrize("terms", SUBSETS, ids="+".join)
def test_a_term_has_the_same_value_whichever_others_are_off(
    network: LightningDiT, recorded: dict[str, Tensor], terms: tuple[str, ...]
) -> None:
    """A published fault: the REPA loss vanished when the cosine loss was off."""
    with torch.no_grad():
        every, some = task_losses(network, recorded, TERMS), task_losses(network, recorded, terms)
    assert some == {term: every[term] for term in terms}


def test_repa_alone_trains_its_projector_and_without_it_nothing_reaches_the_projector(
    network: LightningDiT, recorded: dict[str, Tensor]
) -> None:
    projector = network.repa_projector[0].weight
    with_repa = torch.autograd.grad(task_losses(network, recorded, ("repa",))["repa"], projector)[0]
    losses = task_losses(network, recorded, ("velocity", "cosine"))
    without = torch.autograd.grad(sum(losses.values()), projector, allow_unused=True)[0]
    assert float(with_repa.abs().max()) > 0
    assert without is None


def test_class_dropout_replaces_the_class_by_the_null_class_and_zero_keeps_it(
    network: LightningDiT, recorded: dict[str, Tensor]
) -> None:
    null = recorded | {"y": torch.full_like(recorded["y"], len(network.config.condition.names))}
    with torch.no_grad():
        kept, dropped = (task_losses(network, recorded, TERMS, dropout) for dropout in (0.0, 1.0))
        expected = task_losses(network, null, TERMS)
    assert dropped == expected
    assert kept != expected
