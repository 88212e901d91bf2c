"""One thing that the doctor saw."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: a stage, or what else was looked at.
        state: one or two words.
        reason: why, or which.
        remedy: what to type; empty: nothing.
        is_stale: whether `sfd doctor --exit-code` ends with status 1 for it.
    """

    subject: str
    state: str
    reason: str = ""
    remedy: str = ""
    is_stale: bool = False
