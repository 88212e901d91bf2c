"""Tables, pictures and pages of small studies made by hand: every state of a trial, one and two objectives, with and without confirmation."""

import csv
import re
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
import yaml
from matplotlib import pyplot
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial
from PIL import Image

from sfd.errors import UserError
from sfd.tuning.figures import draw_study, short_names
from sfd.tuning.front import front_table
from sfd.tuning.report import choose, table, write_report
from sfd.tuning.space import settle

TAU = "sample.schedule.tau"
SPACE: dict[str, BaseDistribution] = {
    "sample.guidance.scale_texture": FloatDistribution(1.0, 2.5),
    "sample.timestep_shift": FloatDistribution(0.3, 3.0, log=True),
    "sample.sampler": CategoricalDistribution(["heun", "euler"]),
}
POINTS = [(1.2, 1.0, "heun"), (1.5, 0.4, "euler"), (2.4, 2.0, "heun"), (1.7, 0.7, "heun"), (1.1, 2.9, "euler")]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def empty_study(objectives: tuple[str, ...] = ("fd",), repeats: int = 3) -> Study:
    directions = ["maximize" if name == "class_accuracy" else "minimize" for name in objectives]
    study = optuna.create_study(study_name="guidance", directions=directions)
    attributes = {"objectives": list(objectives), "directions": directions, "repeats": repeats, "num_images": 500}
    for key, value in (attributes | {"num_reference": 225, "baseline": dict.fromkeys(SPACE, 1.25)}).items():
        study.set_user_attr(key, value)
    return study


def add(
    study: Study, state: TrialState, params: dict[str, Any], values: list[list[float]], space: Any = SPACE, **attrs: Any
) -> None:
    objectives = study.user_attrs["objectives"]
    attrs |= {"slot": len(study.trials), "attempt": 1, "values": dict(zip(objectives, values, strict=False))}
    means = [sum(repeats) / len(repeats) for repeats in values] if state == TrialState.COMPLETE else None
    space = {key: space[key] for key in params}
    study.add_trial(create_trial(state=state, values=means, params=params, distributions=space, user_attrs=attrs))


def full_study(objectives: tuple[str, ...] = ("fd",), confirm: bool = True) -> Study:
    """Five complete trials, of which number 1 has the least fd; one pruned, one failed, one running, one waiting."""
    study = empty_study(objectives)
    for number, point in enumerate(POINTS):
        fd = 0.6 + 0.1 * (number - 1) ** 2
        scores = {
            "fd": [fd, fd + 0.01, fd - 0.01],
            "class_accuracy": [0.9 + 0.01 * number] * 3,
            "kid": [0.1, 0.2, 0.1 * number],
        }
        metrics = {"precision": 0.8, "recall": 0.7}
        add(
            study,
            TrialState.COMPLETE,
            dict(zip(SPACE, point, strict=True)),
            [scores[name] for name in objectives],
            seconds=20.5,
            metrics=metrics,
        )
    if len(objectives) == 1:
        add(
            study,
            TrialState.PRUNED,
            dict(zip(SPACE, POINTS[0], strict=True)),
            [[0.9]],
            reason="worse than the best after 1 repeat",
        )
    add(study, TrialState.FAIL, dict(zip(SPACE, POINTS[0], strict=True)), [], reason="diverged: <b>loss</b> & more")
    add(study, TrialState.RUNNING, dict(zip(SPACE, POINTS[0], strict=True)), [])
    add(study, TrialState.WAITING, {}, [])
    if confirm:
        best = "best (trial 1)" if len(objectives) == 1 else "trial 1"
        shifts = {best: 0.0, "params.yaml": 0.2, "tau = 0.3": 0.001}
        noise, own = [0.05, -0.05, 0.02, 0.0], [0.0, 0.004, -0.004, 0.002]
        candidates = {
            name: {
                "params": dict(zip(SPACE, POINTS[1], strict=True)),
                "values": {
                    key: [0.6 + shift + a + (b if shift else 0.0) for a, b in zip(noise, own, strict=True)]
                    for key in objectives
                },
            }
            for name, shift in shifts.items()
        }
        study.set_user_attr("confirmation", candidates)
    return study


def tau_study() -> Study:
    study = empty_study()
    for tau, fd in ((0.0, 0.7), (0.3, 0.6), (0.9, 0.8)):
        add(study, TrialState.COMPLETE, {TAU: tau}, [[fd, fd + 0.01]], {TAU: FloatDistribution(0.0, 1.0)})
    return study


class Page(HTMLParser):
    """The cells of a page's tables, and all addresses in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("td", "th"):
            self.rows[-1][1][-1] += data.strip()


def test_the_table_has_a_row_a_trial_and_marks_the_best() -> None:
    lines = table(full_study()).splitlines()
    assert (
        lines[0] == "Study guidance: fd (lower is better); trials: 5 complete, 1 pruned, 1 failed, 1 running, 1 waiting"
    )
    assert lines[2].split() == [
        "trial",
        "state",
        "fd",
        "scale_texture",
        "timestep_shift",
        "sampler",
        "seconds",
        "reason",
    ]
    assert [line.removeprefix("*").split()[0] for line in lines[3:12]] == [str(number) for number in range(9)]
    assert [line for line in lines[3:12] if line.startswith("*")] == [lines[4]]
    assert lines[4].split() == ["*", "1", "complete", "0.6000", "±", "0.0058", "1.5", "0.4", "euler", "20"]
    assert "0.9 (1 of 3)" in lines[8] and lines[8].endswith("worse than the best after 1 repeat")
    assert lines[9].endswith("diverged: <b>loss</b> & more")


def test_the_confirmation_says_what_is_beyond_noise_and_what_is_not() -> None:
    text = table(full_study())
    assert "Confirmation with 4 fresh seeds:" in text
    assert re.search(r"^   params\.yaml +0\.80\d ± \S+ +\+0\.20\d+ \[.*\] +worse$", text, re.MULTILINE)
    assert re.search(r"^   tau = 0\.3 .* not told apart$", text, re.MULTILINE)
    verdict = next(line for line in text.splitlines() if line.startswith("Verdict"))
    assert re.fullmatch(
        r"Verdict on fd: best \(trial 1\) is better beyond noise than params\.yaml \(-0\.20.*\); "
        r"it cannot be told apart from tau = 0\.3 \(-0\.00.*\)\.",
        verdict,
    )


def test_without_confirmation_the_table_says_so_and_always_names_the_counts() -> None:
    text = table(full_study(confirm=False))
    assert "There is no confirmation with fresh seeds yet" in text and "Verdict" not in text
    assert "A repeat compares 500 images with 225 reference images." in text
    assert "no confirmation" not in table(full_study())


def test_a_confirmation_that_was_interrupted_compares_the_repeats_that_are_done(tmp_path: Path) -> None:
    study = full_study()
    confirmation = study.user_attrs["confirmation"]
    confirmation["params.yaml"]["values"]["fd"] = confirmation["params.yaml"]["values"]["fd"][:2]
    confirmation["tau = 0.3"]["values"]["fd"] = confirmation["tau = 0.3"]["values"]["fd"][:1]
    study.set_user_attr("confirmation", confirmation)
    text = table(study)
    assert re.search(r"^   params\.yaml .* \(2 of 4\) .* worse$", text, re.MULTILINE)
    assert re.search(r"^   tau = 0\.3 .* \(1 of 4\) .* not told apart: one repeat$", text, re.MULTILINE)
    assert "it cannot be told apart, with one repeat, from tau = 0.3" in text
    draw_study(study, tmp_path)


def test_a_confirmation_of_a_former_best_is_called_that() -> None:
    study = full_study()
    assert "not confirmed" not in table(study)
    add(study, TrialState.COMPLETE, dict(zip(SPACE, POINTS[0], strict=True)), [[0.1, 0.1, 0.1]])
    assert "Trial 9 is the best now, but it is not confirmed." in table(study)


def test_with_two_objectives_the_front_is_marked_and_each_has_a_verdict() -> None:
    text = table(full_study(("fd", "class_accuracy")))
    assert re.findall(r"^\*  (\d)", text, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "Verdict on fd: params.yaml is worse beyond noise than trial 1" in text
    assert "Verdict on class_accuracy: params.yaml is better beyond noise than trial 1" in text


def test_a_study_without_trials_has_a_table() -> None:
    assert "trials: none" in table(empty_study())


def test_the_best_trial_is_chosen_or_the_one_that_is_named() -> None:
    assert choose(full_study(), None).number == 1
    assert choose(full_study(), 3).params["sample.guidance.scale_texture"] == 1.7
    assert choose(full_study(("fd", "class_accuracy")), 0).number == 0


@pytest.mark.parametrize(
    ("study", "number", "message"),
    [
        (empty_study(), None, "no complete trial"),
        (full_study(), 99, "trial 99 of study guidance does not exist; choose a complete one: 0, 1, 2, 3, 4"),
        (full_study(), 6, "trial 6 of study guidance is failed"),
        (full_study(("fd", "class_accuracy")), None, "choose one of its Pareto front with --trial: 1, 2, 3, 4"),
    ],
    ids=["none complete", "unknown", "failed", "several objectives"],
)
def test_a_choice_that_cannot_be_made_is_refused(study: Study, number: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(study, number)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_report(full_study(), tmp_path_factory.mktemp("tune") / "report")


def test_the_page_needs_nothing_else_and_shows_every_trial_with_its_reason(written: list[Path]) -> None:
    assert all(file.is_file() for file in written) and written[0].name == "report.html"
    text = written[0].read_text()
    page = Page(text)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == len([file for file in written if file.suffix == ".png"])
    assert not page.tags & {"script", "link", "b"} and "http" not in text
    trials = {row[0]: (kind, row) for kind, row in page.rows if row[0].isdecimal()}
    assert len(trials) == 9 and trials["1"][0] == "best"
    assert trials["5"][0] == "pruned" and trials["5"][1][-1] == "worse than the best after 1 repeat"
    assert trials["6"][0] == "failed" and trials["6"][1][-1] == "diverged: <b>loss</b> & more"
    assert ("best", ["best (trial 1)"]) in [(kind, row[:1]) for kind, row in page.rows]


def test_the_best_values_come_as_yaml_and_all_trials_as_csv(written: list[Path]) -> None:
    folder = written[0].parent
    text = (folder / "best.yaml").read_text()
    assert text.startswith("# Study guidance, trial 1: fd 0.6000 ± 0.0058.")
    assert yaml.safe_load(text) == {
        "sample": {"guidance": {"scale_texture": 1.5}, "timestep_shift": 0.4, "sampler": "euler"}
    }
    with (folder / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 5 + ["PRUNED", "FAIL", "RUNNING", "WAITING"]
    assert float(rows[1]["fd"]) == pytest.approx(0.6) and rows[1]["sample.sampler"] == "euler"
    assert rows[5]["repeats"] == "1" and rows[6]["reason"].startswith("diverged") and rows[1]["metrics.recall"] == "0.7"


def test_several_objectives_have_a_front_and_no_best_file(tmp_path: Path) -> None:
    study = empty_study(("fd", "class_accuracy", "kid"))
    for number, tau in enumerate((0.0, 0.3, 0.9)):
        add(
            study,
            TrialState.COMPLETE,
            {TAU: tau},
            [[0.6 + tau], [0.9 + 0.01 * number], [0.1]],
            {TAU: FloatDistribution(0.0, 1.0)},
        )
    names = [file.name for file in write_report(study, tmp_path)]
    fronts = [name for name in names if name.startswith("front")]
    assert fronts == ["front_fd_class_accuracy.png", "front_fd_kid.png", "front_class_accuracy_kid.png"]
    assert "best.yaml" not in names and "history_kid.png" in names


def test_pictures_that_the_trials_do_not_give_are_named_with_the_reason(tmp_path: Path) -> None:
    pictures, not_drawn = draw_study(tau_study(), tmp_path)
    assert [picture.path.name for picture in pictures] == [f"curve_{TAU}.png", "history.png", "slice.png"]
    assert pictures[0].caption.startswith("The tau curve")
    assert [line.split(":")[0] for line in not_drawn] == ["Importance is not drawn", "Contour is not drawn"]

    single = empty_study(repeats=1)
    add(single, TrialState.COMPLETE, dict(zip(SPACE, POINTS[0], strict=True)), [[0.5]])
    pictures, not_drawn = draw_study(single, tmp_path)
    assert len(pictures) == 3 and len(not_drawn) == 3  # two curves and the history

    assert draw_study(empty_study(), tmp_path) == ([], ["There are no pictures yet: no trial is complete."])
    assert [file.name for file in write_report(empty_study(), tmp_path)] == ["report.html", "trials.csv"]


def test_equal_studies_give_equal_pictures_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    style, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    first, _ = draw_study(full_study(), tmp_path / "a")
    second, _ = draw_study(full_study(), tmp_path / "b")
    assert {"importance.png", "slice.png", "contour.png"} < {picture.path.name for picture in first}
    for one, other in zip(first, second, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        with Image.open(one.path) as picture:
            assert picture.width > 600
    assert pyplot.get_fignums() == figures
    assert {key: value for key, value in matplotlib.rcParams.items() if key != "backend"} == {
        key: value for key, value in style.items() if key != "backend"
    }


def test_short_names_stay_apart() -> None:
    keys = ["sample.guidance.scale_texture", "schedule.tau", TAU, "schedule.knots.0", "schedule.knots.1"]
    assert list(short_names(keys).values()) == ["scale_texture", "schedule.tau", TAU, "knots.0", "knots.1"]
    assert short_names([TAU]) == {TAU: "tau"}


def front_study(confirm: bool = True) -> Study:
    """Distances by evaluations: trials 0 to 2 have even steps, 3 to 5 are better with steps elsewhere, and 6 is beaten."""
    space: dict[str, BaseDistribution] = {
        "sample.times.steps": IntDistribution(2, 4),
        **{f"sample.times.quarter_{n}": FloatDistribution(-1.5, 1.5) for n in (1, 2, 3)},
    }
    study = empty_study(("fd", "evaluations"))
    study.set_user_attr("baseline", {"sample.times": None})
    for number, (steps, bend, fd) in enumerate(
        [(2, 0.0, 3.0), (3, 0.0, 2.0), (4, 0.0, 1.0), (2, -0.5, 2.5), (3, -0.5, 1.5), (4, -0.5, 0.8), (3, 1.0, 4.0)]
    ):
        values = {"sample.times.steps": steps} | {f"sample.times.quarter_{n}": bend for n in (1, 2, 3)}
        settled = settle(values, None)
        scores = [[fd, fd + 0.1, fd - 0.1], [2.0 * steps] * 3]
        add(study, TrialState.COMPLETE, values, scores, space, settings=settled, seconds=1.0 + number)
    if confirm:
        study.set_user_attr("confirmation", dict(confirmed_points()))
    return study


def confirmed_points() -> Iterator[tuple[str, Any]]:
    for number, name in ((5, "best (trial 5)"), (3, "trial 3"), (4, "trial 4")):
        for ending, more in (("", 0.0), (", even steps", 0.3)):
            fd = [3.0 - number / 2 + more + noise * (1 + more) for noise in (0.0, 0.01, 0.02, 0.01)]
            yield name + ending, {"params": {}, "values": {"fd": fd, "evaluations": [4.0 * number - 8] * 4}}
    yield "params.yaml", {"params": {}, "values": {"fd": [1.0, 1.1, 1.0, 1.1], "evaluations": [14.0] * 4}}


def test_a_front_has_a_row_a_point_that_says_what_its_steps_gain_over_even_ones(tmp_path: Path) -> None:
    study = front_study()
    found = front_table(study)
    assert found is not None and [row[0] for row in found.rows] == ["3", "4", "5"], "the cheapest first"
    assert found.head[:3] == ["trial", "evaluations", "fd"] and found.head[-2:] == ["times", "num_steps"]
    assert [row[1] for row in found.rows] == ["4", "6", "8"]
    assert all(
        row[3].startswith(f"{fd}") and row[5] == "better" for row, fd in zip(found.rows, (1.5, 1.0, 0.5), strict=True)
    )
    assert found.rows[0][-2].startswith("[0, 0.") and found.rows[0][-1] == "2"
    text = table(study)
    assert "Pareto front:" in text and "Verdict on fd: best (trial 5) is better beyond noise than params.yaml" in text
    assert "trial 4" not in next(line for line in text.splitlines() if line.startswith("Verdict on fd"))
    files = write_report(study, tmp_path)
    assert [file.name for file in files].count("front_fd_evaluations.png") == 1
    curves = [file.name for file in files if file.name.startswith("curve")]
    assert curves == ["curve_sample.times.steps_fd.png"], "one number alone of a list says nothing"
    assert not [file.name for file in files if "evaluations" in file.name and "front" not in file.name]
    assert "<h2>Pareto front</h2>" in files[0].read_text()
    assert front_table(front_study(confirm=False)) is not None and front_table(full_study()) is None


def test_a_point_of_the_front_is_picked_by_a_limit() -> None:
    study = front_study()
    assert [choose(study, None, f"evaluations={limit}").number for limit in (4, 7.5, 100)] == [3, 4, 5]
    assert choose(study, None, "fd=2.0").number == 4, "the fewest evaluations that are good enough"


@pytest.mark.parametrize(
    ("number", "within", "message"),
    [
        (None, "evaluations=3", "no point of the front is that good; their evaluations are 4, 6, 8"),
        (None, "evaluations", "must be OBJECTIVE=LIMIT, e.g. evaluations=4"),
        (None, "kid=3", "has the objectives fd, evaluations"),
        (4, "evaluations=6", "--trial and --within both choose"),
    ],
)
def test_a_limit_that_picks_nothing_is_refused(number: int | None, within: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(front_study(), number, within)


def test_one_objective_has_no_front_to_pick_from() -> None:
    with pytest.raises(UserError, match="this chooses by one of several"):
        choose(full_study(), None, "fd=2")


def test_the_values_of_lists_that_are_searched_as_a_whole_are_those_of_params_yaml(tmp_path: Path) -> None:
    study = empty_study()
    values = {"sample.times.steps": 2} | {f"sample.times.quarter_{n}": 0.0 for n in (1, 2, 3)}
    space: dict[str, BaseDistribution] = {key: FloatDistribution(-2.0, 5.0) for key in values}
    add(study, TrialState.COMPLETE, values, [[1.0, 1.1, 1.2]], space, settings=settle(values, None))
    write_report(study, tmp_path)
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == {"sample": {"times": [0.0, 0.5], "num_steps": 2}}
    assert "[0.0, 0.5]" in (tmp_path / "report.html").read_text()
