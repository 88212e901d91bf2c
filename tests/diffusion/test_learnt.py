"""The curve that gradient descent moves: the same curve as the one that is sampled, with true gradients and the right energy."""

import pytest
import torch

from sfd.diffusion.learnt import LearntCurve
from sfd.diffusion.schedule import CurveSchedule

INSIDE = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)


def curve_of(free: list[float]) -> LearntCurve:
    curve = LearntCurve(len(free) - 1).double()
    curve.free.data = torch.tensor(free, dtype=torch.float64)
    return curve


def nearly(knots: list[float]) -> LearntCurve:
    """A curve whose knots are these up to 1e-12."""
    return curve_of(torch.log(torch.tensor(knots, dtype=torch.float64).clamp(min=1e-14)).tolist())


@pytest.mark.parametrize("free", [[0.0, 0.0], [0.0, 1.0, -2.0, 0.5, 0.3], [3.0, -1.0, 0.0], [-4.0, 2.0, 2.0, -1.0]])
def test_it_is_the_curve_that_its_knots_give_to_the_sampler(free: list[float]) -> None:
    learnt = curve_of(free)
    sampled = CurveSchedule(tuple(learnt.knots.tolist()))
    with torch.no_grad():
        t_tex = learnt.texture_at(INSIDE)
        u = sampled.progress_at(INSIDE, "semantic")
        assert torch.allclose(t_tex, sampled.times(u)[0], atol=1e-12)
        v = sampled.progress_at(INSIDE, "texture")
        assert torch.allclose(learnt.semantic_at(INSIDE), sampled.times(v)[1], atol=1e-9)
    assert bool((t_tex.diff() > 0).all()) and bool((t_tex.diff().diff() > -1e-12).all()), "increasing and convex"


def test_from_where_the_semantics_are_done_their_time_is_one_and_no_knot_moves_it() -> None:
    learnt = nearly([0.5, 0.0, 0.5])
    late = torch.tensor([0.6, 0.9], dtype=torch.float64)
    times = learnt.semantic_at(late)
    assert times.tolist() == [1.0, 1.0]
    times.sum().backward()
    assert learnt.free.grad is not None and float(learnt.free.grad.abs().max()) == 0.0


def test_under_autocast_the_curve_its_inverse_and_its_energy_are_computed_in_float32() -> None:
    learnt, t = LearntCurve(4), torch.tensor([0.1, 0.4, 0.55, 0.9])
    learnt.free.data = torch.tensor([0.3, -0.2, 0.1, 0.0, -0.4])

    def values() -> list[torch.Tensor]:
        return [learnt.knots, learnt.heights, learnt.texture_at(t), learnt.semantic_at(t), learnt.energy()]

    expected = values()
    with torch.autocast("cpu", torch.bfloat16):
        found = values()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_gradients_with_respect_to_the_knots_are_those_of_finite_differences() -> None:
    learnt = curve_of([0.2, -0.3, 0.5, 0.1])
    t = torch.tensor([0.11, 0.4, 0.52, 0.77, 0.93], dtype=torch.float64)

    def values(free: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved = torch.func.functional_call
        return tuple(
            moved(Calls(learnt, name), {"curve.free": free}, (t,)) for name in ("texture_at", "semantic_at", "energy")
        )

    assert torch.autograd.gradcheck(values, (learnt.free.detach().clone().requires_grad_(),))


class Calls(torch.nn.Module):
    """A method of a curve as a module's forward."""

    def __init__(self, curve: LearntCurve, name: str) -> None:
        super().__init__()
        self.curve, self.name = curve, name

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return self.curve.energy() if self.name == "energy" else getattr(self.curve, self.name)(t)


@pytest.mark.parametrize(("knots", "energy"), [([1.0, 0.0, 0.0], 1.0), ([0.0, 0.0, 1.0], 2.0), ([0.0, 1.0, 0.0], None)])
def test_energy_is_the_integral_of_the_squared_speeds_of_the_sampler(knots: list[float], energy: float | None) -> None:
    with torch.no_grad():
        found = float(nearly(knots).energy())
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    speeds = CurveSchedule(tuple(knots)).speeds(u)
    assert found == pytest.approx(float(sum(0.5 * speed.square().mean() for speed in speeds)), abs=1e-4)
    if energy is not None:
        assert found == pytest.approx(energy, abs=1e-9)


def test_the_knots_start_equal_and_the_rate_scales_how_far_they_move() -> None:
    slow, fast = LearntCurve(4), LearntCurve(4, rate=10.0)
    assert slow.knots.tolist() == pytest.approx([0.2] * 5)
    for curve, moved in ((slow, 0.1), (fast, 1.0)):
        curve.free.data[0] = 0.1
        knots = curve.knots.detach()
        assert float(torch.log(knots[0] / knots[1])) == pytest.approx(moved, abs=1e-6)
