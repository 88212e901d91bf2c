"""Schedules as the parameters describe them."""

from sfd.diffusion.schedule import CurveSchedule, OffsetRange, OffsetSchedule, PowerSchedule, Schedule
from sfd.errors import UserError
from sfd.params import ScheduleParams, TauRange


def build_schedule(params: ScheduleParams) -> Schedule:
    """The schedule that the parameters describe. Raises :class:`UserError` for a range of offsets, which is none to sample with."""
    if params.kind == "power":
        return PowerSchedule(params.gamma)
    if params.kind == "curve":
        return CurveSchedule(params.knots)
    if params.kind == "sync":
        return OffsetSchedule(0.0)
    if isinstance(params.tau, TauRange):
        raise UserError(
            f"the model is trained for offsets from {params.tau.low:g} to {params.tau.high:g}, so choose one to sample with: "
            "set sample.schedule to {kind: offset, tau: 0.3}, for instance"
        )
    return OffsetSchedule(params.tau)


def build_training_schedule(params: ScheduleParams) -> Schedule | OffsetRange:
    """:func:`build_schedule`, or the range of offsets that images draw from."""
    if params.tau_range is not None:
        return OffsetRange(params.tau_range.low, params.tau_range.high)
    return build_schedule(params)


def middle_schedule(params: ScheduleParams) -> Schedule:
    """:func:`build_schedule`, with the middle one of a range of offsets: for quick looks."""
    trained = build_training_schedule(params)
    return trained.middle if isinstance(trained, OffsetRange) else trained
