"""Gates: the limits that a version must meet before it becomes champion."""

from collections.abc import Mapping
from dataclasses import dataclass

from sfd.names import ERROR_PREFIX, combined_error, is_higher_better, kind_of, reference_of, too_few
from sfd.params import GateParams
from sfd.registry.versions import VersionInfo, measured_alike
from sfd.tables import as_text

OTHER_REFERENCE = "other reference"


@dataclass(frozen=True)
class GateResult:
    """The outcome of one rule of a gate. ``error``: the version's standard error; with a champion to beat, that of the difference."""

    metric: str
    version: float | None
    champion: float | None
    error: float | None
    rule: str
    passed: bool
    reason: str


def check_gates(
    gates: Mapping[str, GateParams],
    version: VersionInfo,
    champion: VersionInfo | None,
    comparable: bool,
    reference: str,
) -> list[GateResult]:
    """One verdict per rule. A metric that rests on too few images, or was measured against another reference, passes no rule.

    Args:
        comparable: version and champion were measured in the same way; if not, rules that compare them fail.
        reference: name of the reference of gates that name none (:func:`sfd.names.reference_name`).
    """
    verdicts, others = [], unlike_references(gates, version, reference)
    for metric, gate in gates.items():
        unlike = OTHER_REFERENCE if metric in others else None
        alike = comparable and (champion is None or measured_alike(metric, version, champion))
        if gate.limit is not None:
            verdicts.append(_check_limit(metric, gate.limit, version, champion if alike else None, unlike))
        if gate.improve:
            verdicts.append(_check_improvement(metric, version, champion, alike, unlike))
    return verdicts


def unlike_references(gates: Mapping[str, GateParams], version: VersionInfo, reference: str) -> dict[str, str]:
    """The metrics that were measured against another reference than their gate is for, and a sentence about each.

    ``reference``: as in :func:`check_gates`.
    """
    recorded, others = version.recorded_reference, {}
    for metric, gate in gates.items():
        found, usual = reference_of(metric, recorded), reference_of(metric, reference)
        wanted = gate.reference or usual
        if found is not None and found != wanted:
            others[metric] = (
                f"{metric} was measured against {found}, and its gate is for {wanted}: evaluate against that (`evaluate.reference`), or "
                "change the gate"
            )
    return others


def _check_limit(
    metric: str, limit: float, version: VersionInfo, champion: VersionInfo | None, unlike: str | None
) -> GateResult:
    value, is_higher = version.metrics.get(metric), is_higher_better(metric)
    flagged = too_few(metric, version.metrics) or (None if value is None else unlike)
    passed = value is not None and flagged is None and (value >= limit if is_higher else value <= limit)
    if value is None or flagged is not None:
        reason = flagged or _not_measured(metric, version)
    else:
        reason = "passes" if passed else f"off by {abs(value - limit):.3g}"
    return GateResult(
        metric,
        value,
        champion.metrics.get(metric) if champion else None,
        version.metrics.get(ERROR_PREFIX + metric),
        f"{'>=' if is_higher else '<='} {limit:g}",
        passed,
        reason,
    )


def _check_improvement(
    metric: str, version: VersionInfo, champion: VersionInfo | None, comparable: bool, unlike: str | None
) -> GateResult:
    value, error = version.metrics.get(metric), version.metrics.get(ERROR_PREFIX + metric)
    rule = "> champion + error" if is_higher_better(metric) else "< champion - error"
    if value is None or error is None:
        return GateResult(metric, value, None, error, rule, False, _not_measured(metric, version))
    flagged = too_few(metric, version.metrics) or unlike
    if flagged is not None:
        return GateResult(metric, value, None, error, rule, False, flagged)
    if champion is None:
        return GateResult(metric, value, None, error, rule, True, "passes: no champion yet")
    theirs, their_error = champion.metrics.get(metric), champion.metrics.get(ERROR_PREFIX + metric)
    if not comparable or theirs is None or their_error is None:
        return GateResult(metric, value, None, error, rule, False, "cannot be compared")
    combined = combined_error(error, their_error)
    gain = value - theirs if is_higher_better(metric) else theirs - value
    passed = gain > combined
    reason = f"{'better' if gain > 0 else 'worse'} by {abs(gain):.3g}" if gain else "no better"
    return GateResult(metric, value, theirs, combined, rule, passed, f"passes: {reason}" if passed else reason)


def _not_measured(metric: str, version: VersionInfo) -> str:
    if kind_of(metric).startswith("class_accuracy") and version.data.get("num_classes") == "1":
        return "not measured: the images have one class; remove the gate"
    return "not measured"


def gate_table(verdicts: list[GateResult]) -> str:
    """The verdicts as text, one row per rule, at most 100 columns wide."""
    head = ["metric", "this version", "champion", "error", "rule", "verdict"]
    rows = [
        [
            verdict.metric,
            number(verdict.version),
            number(verdict.champion),
            number(verdict.error, 2),
            verdict.rule,
            verdict.reason if verdict.passed else f"FAILS: {verdict.reason}",
        ]
        for verdict in verdicts
    ]
    legend = "error: the standard error; in a rule that compares, that of the difference"
    return f"{as_text([head, *rows])}\n{legend}"


def number(value: float | None, digits: int = 4) -> str:
    """A value for a table; a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}g}"
