"""Builds the schedules that the parameters describe."""

from sfd.diffusion.schedule import CurveSchedule, OffsetRange, OffsetSchedule, PowerSchedule, Schedule
from sfd.errors import UserError
from sfd.params import ScheduleParams, TauRange


def build_schedule(params: ScheduleParams) -> Schedule:
    """The schedule that the parameters describe.

    Raises:
        UserError: they describe a range of offsets, and sampling needs a single one; or a curve that is yet to be learnt.
    """
    if params.kind == "power":
        return PowerSchedule(params.gamma)
    if params.kind == "curve":
        return CurveSchedule(params.knots)
    if params.kind == "sync":
        return OffsetSchedule(0.0)
    if params.kind == "learnt":
        raise UserError(
            "the schedule is learnt by stage `schedule`; run `dvc repro schedule`, whose result holds the curve"
        )
    if isinstance(params.tau, TauRange):
        raise UserError(
            f"the model is trained for offsets from {params.tau.low:g} to {params.tau.high:g}; choose one to sample with, "
            "for instance sample.schedule: {kind: offset, tau: 0.3}"
        )
    return OffsetSchedule(params.tau)


def build_training_schedule(params: ScheduleParams) -> Schedule | OffsetRange:
    """:func:`build_schedule`, or the range from which each training image draws its offset."""
    if params.tau_range is not None:
        return OffsetRange(params.tau_range.low, params.tau_range.high)
    return build_schedule(params)


def middle_schedule(params: ScheduleParams) -> Schedule:
    """:func:`build_schedule`, or the schedule with the middle offset of a range, for previews and audits."""
    trained = build_training_schedule(params)
    return trained.middle if isinstance(trained, OffsetRange) else trained
