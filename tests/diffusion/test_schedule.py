"""The schedule's curve, its speeds, its borders, and the draws of training."""

import pytest
import torch

from sfd.diffusion.schedule import OffsetSchedule, sample_logit_normal, shift_progress

TAUS = (0.0, 0.1, 0.3, 0.7, 1.0)
FINE = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)


@pytest.mark.parametrize("tau", TAUS)
def test_both_parts_start_at_noise_and_end_at_data(tau: float) -> None:
    t_tex, t_sem = OffsetSchedule(tau).times(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert t_tex.tolist() == pytest.approx([0.0, 1.0], abs=1e-15)
    assert t_sem.tolist() == pytest.approx([0.0, 1.0], abs=1e-15)


@pytest.mark.parametrize("tau", TAUS)
def test_times_follow_the_papers_formulas_and_never_leave_their_range(tau: float) -> None:
    t_tex, t_sem = OffsetSchedule(tau).times(FINE)
    for u, tex, sem in zip(FINE[::500].tolist(), t_tex[::500].tolist(), t_sem[::500].tolist(), strict=True):
        assert tex == pytest.approx(min(1.0, max(0.0, u * (1 + tau) - tau)), abs=1e-15)
        assert sem == pytest.approx(min(1.0, u * (1 + tau)), abs=1e-15)
    for t in (t_tex, t_sem):
        assert 0.0 <= float(t.min()) and float(t.max()) <= 1.0
        assert bool((t.diff() >= 0).all())
    assert bool((t_sem >= t_tex).all())


@pytest.mark.parametrize("tau", TAUS)
def test_the_speeds_of_each_part_integrate_to_one(tau: float) -> None:
    middles = (FINE[:-1] + FINE[1:]) / 2
    for speed in OffsetSchedule(tau).speeds(middles):
        assert float((speed * FINE.diff()).sum()) == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize("tau", TAUS)
def test_speeds_are_the_slopes_of_the_times_away_from_the_borders(tau: float) -> None:
    schedule, step = OffsetSchedule(tau), 1e-6
    u = torch.tensor([0.02, 0.15, 0.4, 0.6, 0.85, 0.98], dtype=torch.float64)
    for speed, late, early in zip(schedule.speeds(u), schedule.times(u + step), schedule.times(u - step), strict=True):
        assert torch.allclose(speed, (late - early) / (2 * step), atol=1e-6)


def test_semantics_move_alone_then_both_then_texture_alone() -> None:
    schedule = OffsetSchedule(0.3)
    speed_tex, speed_sem = schedule.speeds(torch.tensor([0.1, 0.5, 0.9]))
    assert (speed_tex > 0).tolist() == [False, True, True]
    assert (speed_sem > 0).tolist() == [True, True, False]


def test_with_an_offset_of_one_the_parts_never_move_together() -> None:
    speed_tex, speed_sem = OffsetSchedule(1.0).speeds(torch.tensor([0.2, 0.49, 0.51, 0.8]))
    assert not bool(((speed_tex > 0) & (speed_sem > 0)).any())


def test_without_an_offset_both_parts_are_ordinary_synchronous_diffusion() -> None:
    schedule = OffsetSchedule(0.0)
    t_tex, t_sem = schedule.times(FINE)
    assert torch.equal(t_tex, FINE) and torch.equal(t_sem, FINE)
    assert all(torch.equal(speed, torch.ones_like(FINE)) for speed in schedule.speeds(FINE))
    assert schedule.borders == ()


@pytest.mark.parametrize(
    ("tau", "borders"), [(0.3, (0.3 / 1.3, 1 / 1.3)), (0.25, (0.2, 0.8)), (1.0, (0.5,)), (0.0, ())]
)
def test_borders_are_where_a_speed_jumps(tau: float, borders: tuple[float, ...]) -> None:
    schedule = OffsetSchedule(tau)
    assert schedule.borders == pytest.approx(borders)
    for border in schedule.borders:
        before, after = (torch.stack(schedule.speeds(torch.tensor(border + d))) for d in (-1e-4, 1e-4))
        assert not torch.equal(before, after)


def test_a_step_that_starts_on_a_border_moves_both_parts_as_published() -> None:
    schedule = OffsetSchedule(0.3)
    on_borders = torch.tensor([0.3, 1.0], dtype=torch.float32).double() / schedule.duration
    assert all(bool((speed > 0).all()) for speed in schedule.speeds(on_borders))


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, 3.0])
def test_the_timestep_shift_keeps_the_ends_and_the_order(shift: float) -> None:
    shifted = shift_progress(FINE, shift)
    assert float(shifted[0]) == 0.0
    assert float(shifted[-1]) == pytest.approx(1.0, abs=1e-15)
    assert bool((shifted.diff() > 0).all())


def test_the_timestep_shift_follows_its_formula_and_zero_and_one_change_nothing() -> None:
    half = torch.tensor(0.5, dtype=torch.float64)
    assert float(shift_progress(half, 0.3)) == pytest.approx(0.15 / 0.65)
    assert float(shift_progress(half, 3.0)) == pytest.approx(0.75)
    assert torch.equal(shift_progress(FINE, 0.0), FINE)
    assert torch.allclose(shift_progress(FINE, 1.0), FINE, atol=1e-15)


def test_training_progress_is_logit_normal_and_repeats_with_its_generator() -> None:
    first, again = (sample_logit_normal(20_000, 0.5, 2.0, torch.Generator().manual_seed(7)) for _ in range(2))
    logits = torch.logit(first.double())
    assert torch.equal(first, again)
    assert first.shape == (20_000,)
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(logits.std()) == pytest.approx(2.0, abs=0.05)
    assert not torch.equal(first, sample_logit_normal(20_000, 0.5, 2.0, torch.Generator().manual_seed(8)))
