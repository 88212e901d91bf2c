"""``sfd generate --report``: nine trainings, a verdict, and nothing that keeps the folder from being a data set."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support import Project, finished_project
from typer.testing import CliRunner

from sfd import cli
from sfd.data.prepare import prepare
from sfd.errors import UserError
from sfd.params import DataParams
from sfd.synthetic import report as reporting
from sfd.synthetic.report import BOTH, REAL, REPEATS, SYNTHETIC, Outcome, check_report

OUT = Path("out")


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the finished project, in which this process works."""
    with finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("report") / "project").entered() as made:
        yield made


def generate(out: Path = OUT) -> str:
    """The command with its report; returns what it prints."""
    run = CliRunner().invoke(cli.app, ["generate", str(out), "--per-class", "5", "--report"])
    if run.exception is not None:
        raise run.exception
    return run.output


@pytest.fixture(scope="module")
def printed() -> str:
    return generate()


def facts(out: Path = OUT) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_the_report_has_every_accuracy_its_mean_and_the_paired_difference(printed: str) -> None:
    sets, gain = facts()["heldout_accuracy"], facts()["both_minus_real"]
    counts = {name: entry["num_images"] for name, entry in sets.items()}
    assert counts == {REAL: 60, SYNTHETIC: 10, BOTH: 70} and facts()["num_heldout"] == 20
    for entry in sets.values():
        assert len(entry["accuracies"]) == REPEATS
        assert entry["mean"] == pytest.approx(sum(entry["accuracies"]) / REPEATS)
    pairs = zip(sets[BOTH]["accuracies"], sets[REAL]["accuracies"], strict=True)
    assert gain["mean"] == pytest.approx(sum(both - real for both, real in pairs) / REPEATS)
    assert gain["interval_95"][0] <= gain["mean"] <= gain["interval_95"][1]
    page = (OUT / "report.md").read_text()
    assert page.rstrip() in printed
    assert f"| both | 70 | {sets[BOTH]['mean']:.4f} |" in page


def test_with_its_report_the_folder_is_still_a_data_set(printed: str, tmp_path: Path) -> None:
    assert "report.json" not in printed
    fields = {"source": "folder", "root": str(OUT), "image_size": 16, "max_rejected_fraction": 0.0}
    assert prepare(DataParams.model_validate(fields), 0, tmp_path).num_images == 10
    assert sorted(path.name for path in OUT.iterdir()) == sorted(
        [".sfd", "hoch ü", "quer", "report.json", "report.md", "samples.parquet"]
    )


def counted(monkeypatch: pytest.MonkeyPatch, last: int = 100) -> list[str]:
    """Notes every training; the one after ``last`` dies."""
    train, trained = reporting.train, []

    def noted(task: Any, params: Any, seed: int, work: Path, *rest: Any) -> Any:
        if len(trained) == last:
            raise KeyboardInterrupt
        trained.append(work.name)
        return train(task, params, seed, work, *rest)

    monkeypatch.setattr(reporting, "train", noted)
    return trained


def test_interrupted_it_goes_on_with_the_training_that_was_not_finished(
    printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("interrupted")
    with monkeypatch.context() as patch:
        counted(patch, last=4)
        run = CliRunner().invoke(cli.app, ["generate", str(out), "--per-class", "5", "--report"])
        assert run.exit_code != 0 and not (out / "report.json").exists()
    trained = counted(monkeypatch)
    generate(out)
    assert trained == ["synthetic-1", "synthetic-2", "both-0", "both-1", "both-2"]
    assert (out / "report.md").read_text() in generate(out) and len(trained) == 5, "a finished report is printed again"
    assert facts(out) == facts() and (out / "report.md").read_text() in printed


def test_other_hyperparameters_are_another_report(
    printed: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (project.folder / "params.yaml").read_text()
    tree = yaml.safe_load(original)
    tree["judges"][0]["training"]["num_steps"] = 3
    before = facts()
    try:
        project.write_params(tree)
        with pytest.raises(UserError, match="results/judge was made from other parameters"):
            generate()
        # As after `dvc repro judge`, whose weights would make it another command for the images, too.
        monkeypatch.setattr("sfd.synthetic.generate.check_current", lambda *_: None)
        assert generate() != printed
        assert facts()["num_steps"] == 3
    finally:
        (project.folder / "params.yaml").write_text(original)
    generate()
    assert facts() == before


def project_of(source: str, num_classes: int, told: list[str] | None = None) -> Any:
    """``told``: the classes that the model knows, if they are not those of the data set."""
    classes = [str(n) for n in range(num_classes)]
    diffusion = SimpleNamespace(model=SimpleNamespace(condition="class" if told is None else "coarse"))
    return SimpleNamespace(
        params=SimpleNamespace(first_judge=SimpleNamespace(source=source), diffusion=diffusion),
        data=SimpleNamespace(summary=SimpleNamespace(classes=classes)),
        classes=classes if told is None else told,
    )


def test_a_judge_that_is_not_trained_on_classes_is_refused_before_anything_is_generated() -> None:
    check_report(project_of("train", 2))
    for source in ("pretrained", "file"):
        with pytest.raises(UserError, match=f"judges.0.source is `{source}`; set it to `train`"):
            check_report(project_of(source, 2))
    with pytest.raises(UserError, match="a single class; leave --report out"):
        check_report(project_of("train", 1))
    with pytest.raises(
        UserError, match=r"the 4 classes of the data set, but .*condition: coarse\); leave --report out"
    ):
        check_report(project_of("train", 4, ["even", "odd"]))


def test_a_refused_report_leaves_no_folder(project: Project) -> None:
    original = (project.folder / "params.yaml").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfd.synthetic.generate.check_current", lambda *_: None)
        tree = yaml.safe_load(original)
        tree["judges"][0] |= {"kind": "inception", "source": "pretrained", "name": "inception", "training": None}
        tree["register"]["gates"] = {}
        project.write_params(tree)
        shutil.copytree("results/judge/digits_judge", "results/judge/inception")
        try:
            with pytest.raises(UserError, match="judges.0.source is `pretrained`"):
                generate(Path("refused"))
        finally:
            (project.folder / "params.yaml").write_text(original)
    assert not Path("refused").exists()


@pytest.mark.parametrize(
    ("both", "sentence"),
    [
        ([0.95, 0.96, 0.955], "is better than on real images alone, beyond the noise"),
        ([0.85, 0.86, 0.855], "is worse than on real images alone, beyond the noise"),
        ([0.91, 0.90, 0.907], "cannot be told apart from training on real images alone"),
    ],
)
def test_the_verdict_follows_from_the_paired_trainings(both: list[float], sentence: str) -> None:
    accuracies = {REAL: [0.90, 0.91, 0.905], SYNTHETIC: [0.5, 0.5, 0.5], BOTH: both}
    page = reporting._page(Outcome({REAL: 9, SYNTHETIC: 9, BOTH: 18}, 100, 4, accuracies))
    assert sentence in page
    assert re.search(r"\| synthetic \| 9 \| 0.5000 \| 0.0000 \|", page)
    assert "means over the classes, measured on the same 100 held-out images" in page
