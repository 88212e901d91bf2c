"""Guidance by parts, with scales and intervals of their own."""

import pytest
import torch
from torch import Tensor

from sfd.diffusion.guidance import GuidanceScales, Velocity, guided_velocity

X = torch.zeros(2, 3, 2, 2)
STRONG, WEAK = 3.0, 1.0


class Constant:
    """A velocity that counts its calls."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, x: Tensor, _t_tex: Tensor, _t_sem: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(x, self.value)


def values(velocity: Velocity, t_tex: float = 0.5, t_sem: float = 0.5) -> list[float]:
    """What the first image's channels get: texture, texture, semantic."""
    return velocity(X, torch.full((2,), t_tex), torch.full((2,), t_sem))[0, :, 0, 0].tolist()


def test_scale_one_is_the_strong_model_itself_and_never_calls_the_weak_one() -> None:
    strong, weak = Constant(STRONG), Constant(WEAK)
    velocity = guided_velocity(strong, weak, GuidanceScales(), semantic_channels=1)
    assert values(velocity) == [STRONG] * 3
    assert (strong.calls, weak.calls) == (1, 0)


def test_guidance_leads_away_from_the_weak_model_by_its_scale() -> None:
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), GuidanceScales(1.5, 1.5), semantic_channels=1)
    assert values(velocity) == pytest.approx([WEAK + 1.5 * (STRONG - WEAK)] * 3)


def test_texture_and_semantics_have_scales_of_their_own() -> None:
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), GuidanceScales(2.0, 1.0), semantic_channels=1)
    assert values(velocity) == pytest.approx([5.0, 5.0, 3.0])
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), GuidanceScales(1.0, 2.0), semantic_channels=1)
    assert values(velocity) == pytest.approx([3.0, 3.0, 5.0])


@pytest.mark.parametrize(
    ("t_tex", "t_sem", "expected"),
    [
        (0.1, 0.3, [3.0, 3.0, 3.0]),
        (0.1, 0.4, [3.0, 3.0, 5.0]),
        (0.2, 0.3, [4.0, 4.0, 3.0]),
        (0.9, 1.0, [4.0, 4.0, 5.0]),
    ],
)
def test_a_part_is_unguided_while_its_own_time_is_below_its_start(
    t_tex: float, t_sem: float, expected: list[float]
) -> None:
    scales = GuidanceScales(texture=1.5, semantic=2.0, start_texture=0.2, start_semantic=0.4)
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), scales, semantic_channels=1)
    assert values(velocity, t_tex, t_sem) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("t_tex", "t_sem", "expected"),
    [
        (0.6, 0.8, [4.0, 4.0, 5.0]),
        (0.6, 0.81, [4.0, 4.0, 3.0]),
        (0.61, 0.8, [3.0, 3.0, 5.0]),
        (0.61, 0.81, [3.0, 3.0, 3.0]),
    ],
)
def test_a_part_is_unguided_while_its_own_time_is_above_its_end(
    t_tex: float, t_sem: float, expected: list[float]
) -> None:
    scales = GuidanceScales(texture=1.5, semantic=2.0, end_texture=0.6, end_semantic=0.8)
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), scales, semantic_channels=1)
    assert values(velocity, t_tex, t_sem) == pytest.approx(expected)


def test_without_ends_a_part_is_guided_up_to_the_data() -> None:
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), GuidanceScales(1.5, 2.0), semantic_channels=1)
    assert values(velocity, 1.0, 1.0) == pytest.approx([4.0, 4.0, 5.0])


def test_with_ends_at_one_not_a_bit_is_other_than_without_ends() -> None:
    random = torch.Generator().manual_seed(0)
    strong, weak = (torch.randn(101, 3, 2, 2, generator=random) for _ in range(2))
    t_tex = torch.linspace(0.0, 1.0, 101)
    t_sem = t_tex.flip(0)
    scales = GuidanceScales(1.7, 2.3, start_texture=0.25, start_semantic=0.5)
    found = guided_velocity(lambda *_: strong, lambda *_: weak, scales, 1)(strong, t_tex, t_sem)
    texture = torch.where(t_tex >= 0.25, 1.7, 1.0)[:, None].expand(-1, 2)
    semantic = torch.where(t_sem >= 0.5, 2.3, 1.0)[:, None]
    scale = torch.cat([texture, semantic], dim=1)[:, :, None, None]
    assert torch.equal(found, weak + scale * (strong - weak))


def test_after_both_intervals_the_weak_model_is_not_called() -> None:
    weak = Constant(WEAK)
    scales = GuidanceScales(1.5, 2.0, end_texture=0.6, end_semantic=0.8)
    velocity = guided_velocity(Constant(STRONG), weak, scales, semantic_channels=1)
    values(velocity, t_tex=0.61, t_sem=0.81)
    assert weak.calls == 0
    values(velocity, t_tex=0.61, t_sem=0.8)
    assert weak.calls == 1


def test_before_both_intervals_the_weak_model_is_not_called() -> None:
    weak = Constant(WEAK)
    scales = GuidanceScales(1.5, 2.0, start_texture=0.2, start_semantic=0.4)
    velocity = guided_velocity(Constant(STRONG), weak, scales, semantic_channels=1)
    values(velocity, t_tex=0.1, t_sem=0.3)
    assert weak.calls == 0
    values(velocity, t_tex=0.1, t_sem=0.4)
    assert weak.calls == 1


def test_images_at_different_times_are_guided_apart() -> None:
    scales = GuidanceScales(2.0, 2.0, start_texture=0.5, start_semantic=0.5)
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), scales, semantic_channels=1)
    t = torch.tensor([0.4, 0.6])
    assert velocity(X, t, t)[:, 0, 0, 0].tolist() == pytest.approx([3.0, 5.0])


def test_in_float64_a_scale_keeps_all_its_digits() -> None:
    velocity = guided_velocity(Constant(STRONG), Constant(WEAK), GuidanceScales(1.6, 1.6), semantic_channels=1)
    t = torch.full((2,), 0.5, dtype=torch.float64)
    assert float(velocity(X.double(), t, t)[0, 0, 0, 0]) == pytest.approx(WEAK + 1.6 * 2, abs=1e-14)
