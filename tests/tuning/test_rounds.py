"""Successive halving: which trainings each round has, and what is reported of them."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from sfd.errors import UserError
from sfd.params.halving import round_sizes
from sfd.tuning.queue import INTERRUPTED, LOST
from sfd.tuning.report import choose, table, write_report
from sfd.tuning.rounds import confirmed_names, describe_rounds, finalists, rounds_of, rounds_table

TAUS = [0.0, 0.2, 0.4, 0.6, 0.8]


def empty() -> Study:
    study = optuna.create_study(study_name="halve", direction="minimize")
    facts = {"base_steps": 100, "first_steps": 10, "candidates": [{"schedule.tau": tau} for tau in TAUS]}
    attributes = {"objectives": ["fd"], "directions": ["minimize"], "repeats": 2, "num_images": 10, "num_reference": 9}
    for key, value in (attributes | {"halving": facts, "baseline": {"schedule.tau": 0.3}}).items():
        study.set_user_attr(key, value)
    return study


def add(study: Study, slot: int, tau: float, fd: float | None, **attributes: Any) -> None:
    """A complete trial, or one that failed (``fd`` None)."""
    attributes = {"slot": slot, "attempt": 1, "after": None} | attributes
    if fd is not None:
        attributes["values"] = {"fd": [fd, fd + 0.02]}
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if fd is None else TrialState.COMPLETE,
            value=None if fd is None else fd + 0.01,
            params={"schedule.tau": tau},
            distributions={"schedule.tau": FloatDistribution(0.0, 0.8, step=0.2)},
            user_attrs=attributes,
        )
    )


def add_round(study: Study, first: int, scores: dict[float, float | None], **attributes: Any) -> None:
    for place, (tau, fd) in enumerate(scores.items()):
        add(study, first + place, tau, fd, **attributes)


def finished() -> Study:
    study = empty()
    add_round(study, 0, {0.0: 5.0, 0.2: 2.0, 0.4: 1.0, 0.6: 3.0, 0.8: 4.0})
    add_round(study, 5, {0.2: 1.2, 0.4: 0.9, 0.6: 0.7})
    add_round(study, 8, {0.4: 0.6, 0.6: 0.65})
    return study


def test_the_better_half_goes_on_down_to_two() -> None:
    assert [round_sizes(number) for number in (3, 4, 5, 11)] == [[3, 2], [4, 2], [5, 3, 2], [11, 6, 3, 2]]
    study = empty()
    (first,) = rounds_of(study)
    assert (first.candidates, first.steps, first.over) == ((0, 1, 2, 3, 4), 10, False)
    rounds = rounds_of(finished())
    assert [each.candidates for each in rounds] == [(0, 1, 2, 3, 4), (1, 2, 3), (2, 3)]
    assert [(each.first_slot, each.steps) for each in rounds] == [(0, 10), (5, 20), (8, 40)]
    assert [trial.number for trial in finalists(finished())] == [8, 9]


def test_a_round_waits_for_what_was_interrupted_or_lost_and_not_for_what_failed() -> None:
    for reason, attempt, over in ((INTERRUPTED, 1, False), (LOST, 1, False), (LOST, 2, True), ("diverged", 1, True)):
        study = empty()
        add_round(study, 0, {0.0: 5.0, 0.2: 2.0, 0.4: 1.0, 0.6: 3.0})
        add(study, 4, 0.8, None, reason=reason, attempt=attempt)
        rounds = rounds_of(study)
        assert rounds[0].over == over and len(rounds) == 1 + over, reason
        assert finalists(study) == []
    assert rounds[1].candidates == (1, 2, 3)


def test_a_round_of_which_a_single_training_is_left_is_the_last() -> None:
    study = empty()
    add_round(study, 0, dict.fromkeys(TAUS[:4]), reason="diverged")
    add(study, 4, 0.8, 1.0)
    assert [(each.last, each.over) for each in rounds_of(study)] == [(True, True)]
    assert [trial.number for trial in finalists(study)] == [4]


def test_the_best_is_that_of_the_last_round_though_another_trial_has_a_lower_distance(tmp_path: Path) -> None:
    study = finished()
    add(study, 99, 0.0, 0.01)  # not of this study's rounds
    assert choose(study, None).params == {"schedule.tau": 0.4}
    found = rounds_table(study)
    assert [row[0] for row in found.rows] == ["tau 0.4", "tau 0.6", "tau 0.2", "tau 0.8", "tau 0"]
    assert found.head == ["candidate", "fd, 100 + 10 steps", "fd, 100 + 20 steps", "fd, 100 + 40 steps"]
    assert found.kinds == ["best", "", "", "", ""] and found.rows[2][3] == "" and found.rows[2][2].startswith("1.2")
    names = {name: trial.params["schedule.tau"] for name, trial in confirmed_names(study).items()}
    assert names == {"best (trial 8)": 0.4, "second (trial 9)": 0.6}
    confirmation = {
        name: {"params": {}, "values": {"fd": [number + 0.5, number + 0.6]}} for number, name in enumerate(names)
    }
    study.set_user_attr("confirmation", confirmation)
    text = table(study)
    assert "Rounds:" in text and "from scratch" in text and "Verdict on fd: best (trial 8) is better" in text
    files = write_report(study, tmp_path)
    assert [file.name for file in files] == ["report.html", "trials.csv", "best.yaml", "rounds.png"]
    assert "tau: 0.4" in (tmp_path / "best.yaml").read_text() and "<h2>Rounds</h2>" in files[0].read_text()


def test_a_study_that_is_not_over_has_a_report_and_no_best(tmp_path: Path) -> None:
    study = empty()
    files = write_report(study, tmp_path)
    assert [file.name for file in files] == ["report.html", "trials.csv"]
    add_round(study, 0, {0.0: 5.0, 0.2: 2.0, 0.4: 1.0, 0.6: 3.0, 0.8: 4.0})
    add(study, 5, 0.2, 1.2)
    assert describe_rounds(study) == "round 2 (20 steps after 100 shared ones) has 1 of 3 trainings"
    assert [file.name for file in write_report(study, tmp_path)] == ["report.html", "trials.csv", "rounds.png"]
    with pytest.raises(UserError, match="no best trial until its last round is over: round 2"):
        choose(study, None)
    assert choose(study, 5).number == 5
