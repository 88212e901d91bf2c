"""Samplers on velocities whose answer is known."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sfd.diffusion.loss import per_part
from sfd.diffusion.samplers.dopri5 import Dopri5
from sfd.diffusion.samplers.euler import Euler
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import CurveSchedule, OffsetSchedule
from sfd.errors import UserError
from sfd.names import SAMPLERS, load

X0, X1 = torch.randn(2, 3, 5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
SEMANTIC = 2
TAUS = (0.0, 0.25, 0.3, 1.0)


class Straight:
    """``x1 - x0``, whatever the times; remembers the times it was asked for."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.value = (X1 - X0).to(dtype)
        self.times: list[tuple[float, float]] = []

    def __call__(self, _x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        self.times.append((float(t_tex[0]), float(t_sem[0])))
        return self.value


def curved(x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
    """Smooth, and texture depends on semantics, as it does in a trained model."""
    tex, sem = x[:, :-SEMANTIC], x[:, -SEMANTIC:]
    t_tex, t_sem = t_tex[:, None, None, None], t_sem[:, None, None, None]
    v_tex = torch.cos(3 * t_tex) * tex + sem.mean(dim=1, keepdim=True) * (1 + t_sem)
    return torch.cat([v_tex, torch.sin(2 * t_sem) - sem * (0.5 + t_tex)], dim=1)


def sampler(method: str, steps: int = 10, published_rule: bool = False, shift: float = 0.0) -> Sampler:
    return Sampler(load(SAMPLERS, method), steps, published_rule, shift)


def sample(
    velocity, tau: float, method: str, steps: int = 10, published_rule: bool = False, shift: float = 0.0
) -> Tensor:
    return sampler(method, steps, published_rule, shift)(velocity, X0, OffsetSchedule(tau), SEMANTIC)


@functools.cache
def answer(tau: float) -> Tensor:
    return sample(curved, tau, "heun", 1000)


def error(method: str, steps: int, tau: float) -> float:
    return float((sample(curved, tau, method, steps) - answer(tau)).abs().max())


@pytest.mark.parametrize(("method", "steps", "tau"), [*itertools.product(("euler", "heun", "ab2"), (1, 2, 24), TAUS)])
def test_with_the_exact_rule_a_straight_path_ends_exactly_on_the_data(method: str, steps: int, tau: float) -> None:
    assert torch.allclose(sample(Straight(), tau, method, steps), X1, rtol=0, atol=1e-13)
    assert torch.allclose(sample(Straight(), tau, method, steps, shift=0.3), X1, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tau", TAUS)
def test_dopri5_carries_a_straight_path_exactly_to_the_data(tau: float) -> None:
    assert torch.allclose(sample(Straight(), tau, "dopri5"), X1, rtol=0, atol=1e-10)


def test_the_published_rule_overshoots_where_a_step_straddles_a_border() -> None:
    excess = (sample(Straight(), 0.3, "euler", 24, published_rule=True) - X0) / (X1 - X0) - 1
    step = 1.3 / 24
    for part in (excess[:, :-SEMANTIC], excess[:, -SEMANTIC:]):
        assert torch.allclose(part, part.mean())
        assert 0.1 * step < abs(float(part.mean())) < step


@pytest.mark.parametrize(("tau", "steps"), [(0.0, 7), (0.25, 7)])
def test_the_published_rule_lands_where_no_border_lies_and_misses_otherwise(tau: float, steps: int) -> None:
    lands = torch.allclose(sample(Straight(), tau, "euler", steps, published_rule=True), X1, rtol=0, atol=1e-6)
    assert lands == (tau == 0.0)


def test_euler_takes_one_evaluation_a_step_and_heun_two_along_the_schedule() -> None:
    euler, heun = Straight(), Straight()
    sample(euler, 0.25, "euler", 5)
    sample(heun, 0.25, "heun", 5)
    assert euler.times == [pytest.approx(times) for times in [(0, 0), (0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]]
    assert heun.times[::2] == euler.times
    assert heun.times[1:-1:2] == euler.times[1:]
    assert heun.times[-1] == pytest.approx((1, 1))


def test_ab2_takes_one_evaluation_a_step_and_meets_every_border() -> None:
    ab2 = Straight()
    sample(ab2, 0.3, "ab2", 10)
    assert len(ab2.times) == 10
    assert min(abs(sem - 0.3) + tex for tex, sem in ab2.times) < 1e-12
    assert min(abs(tex - 0.7) + abs(sem - 1.0) for tex, sem in ab2.times) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_ab2_with_fewer_steps_than_borders_ends_exactly_on_a_straight_path_and_extrapolates_from_no_sliver_of_a_step(
    steps: int,
) -> None:
    schedule = CurveSchedule((1.0, 2.0, 0.0, 3.0, 1.0, 0.0, 2.0, 1.0))
    assert len(schedule.borders) == 5
    made = sampler("ab2", steps)(Straight(), X0, schedule, SEMANTIC)
    assert torch.allclose(made, X1, rtol=0, atol=1e-12)
    exact = sampler("heun", 200)(curved, X0, schedule, SEMANTIC)
    assert float((sampler("ab2", steps)(curved, X0, schedule, SEMANTIC) - exact).abs().max()) < 4.0


def test_a_single_euler_step_is_the_velocity_at_the_noise() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    assert torch.allclose(sample(curved, 0.3, "euler", 1), X0 + curved(X0, zeros, zeros), rtol=0, atol=1e-14)


@pytest.mark.parametrize("tau", [0.0, 0.25])
def test_euler_is_first_order_heun_and_ab2_second_order(tau: float) -> None:
    assert error("euler", 40, tau) / error("euler", 80, tau) == pytest.approx(2, rel=0.1)
    assert error("heun", 40, tau) / error("heun", 80, tau) == pytest.approx(4, rel=0.1)
    assert error("ab2", 320, tau) / error("ab2", 640, tau) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("method", ["heun", "ab2"])
def test_heun_and_ab2_stay_second_order_wherever_borders_lie(method: str) -> None:
    scaled = [error(method, steps, 0.3) * steps**2 for steps in (13, 26, 53, 107)]
    assert max(scaled) < 3 * scaled[0]


def gaussian(x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
    """The exact velocity for data that is normal with mean 0 and standard deviation 1/2 (texture) or 2 (semantics)."""
    t, std = (
        per_part(*pair, x.shape[1], SEMANTIC)
        for pair in ((t_tex, t_sem), (torch.full_like(t_tex, 0.5), torch.full_like(t_sem, 2.0)))
    )
    return (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * x


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_ab2_carries_noise_to_a_normal_distribution_with_errors_that_fall_fourfold(tau: float, shift: float) -> None:
    data = torch.cat([0.5 * X0[:, :-SEMANTIC], 2.0 * X0[:, -SEMANTIC:]], dim=1)
    errors = [
        float((sample(gaussian, tau, "ab2", steps, shift=shift) - data).abs().max()) for steps in (40, 80, 160, 320)
    ]
    assert errors[0] < 0.03 * float(data.abs().max())
    assert errors[0] / errors[3] > 3.2**3


def test_ab2_is_exact_where_the_predicted_data_moves_evenly_with_time() -> None:
    """Data predicted as ``X1 + t * X0``: then dx/dt = (X1 + t * X0 - x) / (1 - t), which ends at ``X1 + X0``."""

    def moving(x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        t = per_part(t_tex, t_sem, x.shape[1], SEMANTIC)
        return (X1 + t * X0 - x) / (1.0 - t)

    found = sample(moving, 0.0, "ab2", 4)
    assert torch.allclose(found, X1 + X0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tau", TAUS)
def test_dopri5_agrees_with_a_thousand_steps_of_heun_as_closely_as_its_tolerance_asks(tau: float) -> None:
    tight = Sampler(functools.partial(Dopri5, atol=1e-9, rtol=1e-9))(curved, X0, OffsetSchedule(tau), SEMANTIC)
    assert torch.allclose(tight, answer(tau), rtol=0, atol=2e-5)
    assert torch.allclose(sample(curved, tau, "dopri5"), answer(tau), rtol=0, atol=2e-3)
    assert torch.allclose(sample(curved, tau, "ab2", 200), sample(curved, tau, "dopri5"), rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["euler", "heun", "ab2", "dopri5"])
def test_samples_have_the_noises_type_and_float32_follows_float64(method: str) -> None:
    single = sampler(method, 10)(curved, X0.float(), OffsetSchedule(0.3), SEMANTIC)
    assert single.dtype == torch.float32
    double = sample(curved, 0.3, method)
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=0, atol=1e-3 if method == "dopri5" else 1e-5)


def test_the_noise_is_left_as_it_was() -> None:
    noise = X0.clone()
    sampler("heun", 3)(curved, noise, OffsetSchedule(0.3), SEMANTIC)
    assert torch.equal(noise, X0)


def test_without_semantic_channels_everything_moves_as_texture() -> None:
    result = sampler("euler", 6)(Straight(), X0, OffsetSchedule(0.0), semantic_channels=0)
    assert torch.allclose(result, X1, rtol=0, atol=1e-13)


def test_a_sampler_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="'ddim' is none of euler, heun, ab2, dopri5; nearest: "):
        load(SAMPLERS, "ddim")


def test_a_sampler_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps is 0"):
        Sampler(Euler, 0)
    Sampler(Euler, 1)


def test_steps_lie_where_they_are_told_and_even_times_are_what_no_times_are() -> None:
    velocity, schedule = Straight(), OffsetSchedule(0.25)
    placed = Sampler(Euler, 3, times=(0.0, 0.1, 0.6))
    assert torch.allclose(placed(velocity, X0, schedule, SEMANTIC), X1, rtol=0, atol=1e-13)
    assert velocity.times == [pytest.approx((max(0.0, 1.25 * u - 0.25), min(1.0, 1.25 * u))) for u in (0.0, 0.1, 0.6)]
    even = Sampler(Euler, 4, times=(0.0, 0.25, 0.5, 0.75))
    assert torch.equal(even(curved, X0, schedule, SEMANTIC), sampler("euler", 4)(curved, X0, schedule, SEMANTIC))


def test_a_solver_that_moves_steps_onto_borders_moves_those_it_is_told_too() -> None:
    velocity = Straight()
    Sampler(load(SAMPLERS, "ab2"), 4, times=(0.0, 0.1, 0.25, 0.7))(velocity, X0, OffsetSchedule(0.25), SEMANTIC)
    assert velocity.times[2] == pytest.approx((0.0, 0.25))  # 0.25 of the progress was nearest to the border at 0.2
    assert velocity.times[3] == pytest.approx((0.75, 1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"times": (0.1, 0.5)},
        {"times": (0.0, 0.0)},
        {"times": (0.0, 1.0)},
        {"times": (0.0,)},
        {"times": (0.0, 0.5), "published_rule": True},
        {"times": (0.0, 0.5), "timestep_shift": 0.5},
    ],
)
def test_times_that_bound_no_steps_are_refused(wrong: dict[str, Any]) -> None:
    Sampler(Euler, 2, times=(0.0, 0.5))
    with pytest.raises(ValueError, match="times"):
        Sampler(Euler, 2, **wrong)
