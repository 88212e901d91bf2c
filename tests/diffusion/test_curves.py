"""Schedules beyond the offset, all by the same rules, and the training times that belong to a part."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import (
    CurveSchedule,
    OffsetRange,
    OffsetSchedule,
    PowerSchedule,
    Schedule,
    per_part_weights,
    sample_logit_normal,
    sample_progress_per_part,
)
from sfd.names import SAMPLERS, load

FINE = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)
SCHEDULES: dict[str, Schedule] = {
    "offset": OffsetSchedule(0.3),
    "sync": OffsetSchedule(0.0),
    "power 1": PowerSchedule(1.0),
    "power 1.5": PowerSchedule(1.5),
    "power 4": PowerSchedule(4.0),
    "curve": CurveSchedule((0.0, 0.75, 0.0, 0.0, 0.25)),
    "bent curve": CurveSchedule((1.0, 2.0, 0.0, 5.0, 1.0, 0.5)),
    "sequential curve": CurveSchedule((0.0, 0.0, 3.0)),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
def test_both_parts_go_from_noise_to_data_and_semantics_never_follow(schedule: Schedule) -> None:
    t_tex, t_sem = schedule.times(FINE)
    for t in (t_tex, t_sem):
        assert float(t[0]) == 0.0 and float(t[-1]) == pytest.approx(1.0, abs=1e-12)
        assert bool((t.diff() >= 0).all())
    assert bool((t_sem >= t_tex - 1e-12).all())


@every_schedule
def test_texture_is_a_convex_function_of_semantics(schedule: Schedule) -> None:
    t_tex, t_sem = schedule.times(FINE)
    moving = t_sem.diff() > 1e-9
    slopes = (t_tex.diff() / t_sem.diff().clamp(min=1e-300))[moving]
    assert bool((slopes.diff() >= -1e-6).all())


@every_schedule
def test_speeds_are_the_slopes_of_the_times(schedule: Schedule) -> None:
    step = 1e-7
    borders = torch.tensor(schedule.borders, dtype=torch.float64)
    u = FINE[50:-50:97]
    u = u[((u[:, None] - borders).abs() > 1e-5).all(dim=1)]
    for speed, late, early in zip(schedule.speeds(u), schedule.times(u + step), schedule.times(u - step), strict=True):
        assert torch.allclose(speed, (late - early) / (2 * step), atol=1e-5)


@every_schedule
def test_progress_is_the_way_of_the_faster_part(schedule: Schedule) -> None:
    fastest = torch.stack(schedule.speeds(FINE)).amax(dim=0)
    assert torch.allclose(fastest, torch.full_like(FINE, schedule.duration), atol=1e-6)


@every_schedule
def test_borders_are_where_a_speed_jumps_or_bends_and_nowhere_else(schedule: Schedule) -> None:
    bends = torch.stack(schedule.speeds(FINE)).diff(dim=1).diff(dim=1).abs().amax(dim=0) > 1e-5
    found = [float(FINE[n + 1]) for n in bends.nonzero().flatten() if n > 100]  # t ** 1.5 bends at 0 itself
    found = [
        u for n, u in enumerate(found) if n == 0 or u - found[n - 1] > 1e-3
    ]  # one border shows in neighbouring points
    assert len(found) == len(schedule.borders)
    assert all(abs(a - b) < 1e-4 for a, b in zip(found, schedule.borders, strict=True))
    assert all(a < b for a, b in pairwise(schedule.borders))


@every_schedule
@pytest.mark.parametrize("part", ["texture", "semantic"])
def test_progress_at_a_time_is_the_inverse_of_the_times(schedule: Schedule, part: str) -> None:
    t = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    u = schedule.progress_at(t, part)  # type: ignore[arg-type]
    assert torch.allclose(schedule.times(u)[part == "semantic"], t, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("method", ["euler", "heun", "ab2", "dopri5"])
def test_every_sampler_carries_a_straight_path_exactly_to_the_data(schedule: Schedule, method: str) -> None:
    x0, x1 = torch.randn(2, 3, 5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def straight(_x: Tensor, _t_tex: Tensor, _t_sem: Tensor) -> Tensor:
        return x1 - x0

    made = Sampler(load(SAMPLERS, method), 7)(straight, x0, schedule, 2)
    assert torch.allclose(made, x1, rtol=0, atol=1e-10 if method != "dopri5" else 1e-3)


def test_an_offset_is_a_curve_and_so_is_ordinary_diffusion() -> None:
    pairs = [
        (CurveSchedule((0.0, 0.75, 0.0, 0.0, 0.25)), OffsetSchedule(0.25)),
        (CurveSchedule((0.0, 0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3)), OffsetSchedule(0.3)),
        (CurveSchedule((5.0, 0.0)), OffsetSchedule(0.0)),
        (CurveSchedule((0.0, 2.0)), OffsetSchedule(1.0)),
        (PowerSchedule(1.0), OffsetSchedule(0.0)),
    ]
    for curve, offset in pairs:
        assert curve.duration == pytest.approx(offset.duration)
        for times, expected in zip(curve.times(FINE), offset.times(FINE), strict=True):
            assert torch.allclose(times, expected, atol=1e-12)
        assert curve.borders == pytest.approx(offset.borders)


def test_a_power_schedule_is_the_power() -> None:
    t_tex, t_sem = PowerSchedule(2.5).times(FINE)
    assert torch.allclose(t_tex, t_sem**2.5, atol=1e-12)


def test_only_the_ratios_of_knots_count() -> None:
    a, b = CurveSchedule((1.0, 2.0, 1.0)), CurveSchedule((10.0, 20.0, 10.0))
    assert torch.equal(a.times(FINE)[0], b.times(FINE)[0])


@every_schedule
def test_with_its_weight_each_part_is_trained_on_its_own_logit_normal_times(schedule: Schedule) -> None:
    mean, std = -0.4, 0.8
    draws, random = 400_000, torch.Generator().manual_seed(3)
    u = sample_progress_per_part(schedule, draws, mean, std, random)
    weights = per_part_weights(schedule, u, mean, std)
    wanted = sample_logit_normal(draws, mean, std, random)
    for t, weight in zip(schedule.times(u), weights, strict=True):
        assert float(weight.min()) >= 0.0 and float(weight.max()) <= 2.0
        assert float(weight.mean()) == pytest.approx(1.0, abs=0.01)
        for power in (1, 2, 4):
            assert float((weight * t**power).mean()) == pytest.approx(float((wanted**power).mean()), abs=0.006)
    assert torch.allclose(weights[0] + weights[1], torch.full_like(u, 2.0), atol=1e-5)


def test_without_an_offset_no_image_is_weighted() -> None:
    u = sample_progress_per_part(OffsetSchedule(0.0), 1000, 0.0, 1.0, torch.Generator().manual_seed(0))
    for weight in per_part_weights(OffsetSchedule(0.0), u, 0.0, 1.0):
        assert torch.allclose(weight, torch.ones(1000))


def test_a_part_that_waits_or_is_done_has_no_weight() -> None:
    texture, semantic = per_part_weights(OffsetSchedule(0.5), torch.tensor([0.1, 0.5, 0.9]), 0.0, 1.0)
    assert texture.tolist() == pytest.approx([0.0, 1.0, 2.0], abs=1e-5)
    assert semantic.tolist() == pytest.approx([2.0, 1.0, 0.0], abs=1e-5)


def test_a_range_gives_every_image_an_offset_of_its_own_between_its_ends() -> None:
    schedule = OffsetRange(0.2, 0.6).draw(10_000, torch.Generator().manual_seed(0))
    again = OffsetRange(0.2, 0.6).draw(10_000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.as_tensor(schedule.tau), torch.as_tensor(again.tau))
    assert 0.2 <= float(torch.as_tensor(schedule.tau).min()) and float(torch.as_tensor(schedule.tau).max()) <= 0.6
    assert float(torch.as_tensor(schedule.tau).mean()) == pytest.approx(0.4, abs=0.01)


def test_a_batch_of_offsets_gives_each_image_what_its_offset_alone_gives() -> None:
    taus, u = torch.tensor([0.0, 0.3, 1.0]), torch.tensor([0.35, 0.6, 0.2])
    together = OffsetSchedule(taus)
    for n, tau in enumerate(taus.tolist()):
        alone = OffsetSchedule(tau)
        for ours, theirs in zip(
            (*together.times(u), *together.speeds(u)), (*alone.times(u), *alone.speeds(u)), strict=True
        ):
            assert float(ours[n]) == pytest.approx(float(theirs[n]), abs=1e-6)
