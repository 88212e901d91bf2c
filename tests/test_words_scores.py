"""A project whose model is told words, scored from end to end: agreement, memorised pairs, a CLIP and attribute swaps."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from captioned import captioned_project
from support import Project, benchmark
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.names import word_metrics
from sfd.params import known_metrics, load_params, with_values
from sfd.tuning.evaluator import STUDY, CandidateEvaluator
from sfd.tuning.sweep import sweep
from sfd.workspace import Workspace

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Some images share their captions."""
    made = captioned_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("words") / "project")
    with made.entered():
        yield made


def test_every_metric_of_words_is_there_and_has_what_it_is_compared_with(project: Project) -> None:
    metrics = json.loads((project.result("evaluate") / "metrics.json").read_text())
    expected = set(word_metrics(has_memorisation=True, has_clip=True, has_swaps=True)) - {"swap_accuracy_heldout"}
    assert expected <= set(metrics)
    assert {f"se_{name}" for name in ("text_recall_5", "text_rank", "clip_score", "swap_accuracy")} <= set(metrics)
    assert {"class_accuracy", "class_accuracy_heldout", "fd_digits_judge", "fd_clip", "fdr"} <= set(metrics)
    assert set(known_metrics(load_params(Path("params.yaml")))) - set(metrics) <= {"swap_accuracy_heldout"}
    assert metrics["swap_accuracy_chance"] == 0.5 and metrics["n_swap_accuracy"] == 6


def test_swaps_of_one_seed_lie_beside_the_samples_and_are_judged_one_by_one(project: Project) -> None:
    table = pd.read_csv(project.result("sample") / "swaps/swaps.csv")
    assert table["prompt"].tolist() == ["a red bar"] * 3 + ["a blue bar"] * 3
    assert table["seed"].tolist() == table["seed"].tolist()[:3] * 2
    images = sorted(file.name for file in (project.result("sample") / "swaps/images").iterdir())
    assert images == table["file"].tolist()
    judged = pd.read_csv(project.result("evaluate") / "swaps.csv")
    assert list(judged) == [*table, "shown", "right"] and len(judged) == 6


def test_the_summary_shows_the_scores_beside_chance(project: Project) -> None:  # noqa: ARG001  # which this process works in
    shown = CliRunner().invoke(cli.app, ["show"])
    assert shown.exception is None, shown.output
    assert "text_recall_5: chance" in shown.output and "memorised_pairs" in shown.output


def test_two_samplings_of_one_model_are_measured_alike_only_with_the_same_prompts(project: Project) -> None:
    record = json.loads((project.result("evaluate") / "measurement.json").read_text())
    assert len(record["prompts"]) == len(record["swaps"]) == 64 and record["clip_score"] == "clip"


def test_the_benchmark_of_words_draws_other_samples_per_seed_and_the_same_ones_again(project: Project) -> None:
    words = benchmark("words")
    first, second = words.found_by(project.folder, 2, 6)
    (again,) = words.found_by(project.folder, 1, 6)
    assert len(first.ranks) == 6 and not torch.equal(first.nearest, second.nearest)
    assert torch.equal(first.ranks, again.ranks) and torch.equal(first.nearest, again.nearest)


def test_a_study_and_a_sweep_can_ask_whether_samples_show_their_prompts(project: Project) -> None:
    params = with_values(
        load_params(project.folder / "params.yaml"),
        {
            "tune.objectives": ["fd", "text_recall_5"],
            "tune.num_images": 12,
            "tune.kind": "sampling",
            "tune.pruner": "none",
        },
    )
    evaluator = CandidateEvaluator(Workspace.find(project.folder), params)
    assert evaluator.trained is not None
    found = evaluator.score(evaluator.trained, params, STUDY, 0).metrics
    assert (
        0.0 <= found["text_recall_1"] <= found["text_recall_5"] <= found["text_recall_10"] <= 1.0 <= found["text_rank"]
    )
    asked = ["sample.guidance.scale_texture+sample.guidance.scale_semantic=1.0,1.5"]
    assert "text_recall_5" in sweep(Workspace.find(project.folder), asked, metric="text_recall_5")
    Path("strange.txt").write_text("a sentence that no image has\n")
    strange = with_values(params, {"sample.prompts": "strange.txt"})
    with pytest.raises(
        UserError, match="`text_recall_5` needs prompts that are captions of held-out images, and no sample"
    ):
        evaluator.score(evaluator.trained, strange, STUDY, 0)
