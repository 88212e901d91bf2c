"""The published values beside the presets: a page that is current, and a reason for every difference."""

import re

import pytest
from support import REPOSITORY

from sfd.params import with_values
from sfd.preset import load_preset, names, render, top_comments
from sfd.published.results import RESULTS, Result
from sfd.published.table import mistakes, page, rows
from sfd.published.values import RUNS, SOURCES, WITHOUT

COMPARED = [name for name in names() if name.startswith(("imagenet", "sefi"))]


def test_every_preset_of_a_paper_has_a_published_run_or_says_that_there_is_none() -> None:
    assert sorted(RUNS) == COMPARED
    assert all(run.values or run.name.startswith("none") or run.inherits for run in RUNS.values())


def test_the_page_is_what_the_command_prints_now() -> None:
    written = (REPOSITORY / "docs/published-values.md").read_text(encoding="utf-8")
    assert written.strip() == page().strip(), "run `sfd preset published > docs/published-values.md`"


@pytest.mark.parametrize("name", COMPARED)
def test_every_value_has_a_published_one_or_a_word_on_it_and_every_difference_has_a_reason(name: str) -> None:
    assert mistakes(name, load_preset(name)) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("diffusion.training.learning_rate", 3e-4, "is 0.0003, published 0.0001, and no reason is given"),
        ("semantic.cosine_over", "tokens", "is 'tokens' as published, but a reason is given"),
        ("data.mirror", False, "data.mirror is False, published True"),
    ],
)
def test_a_preset_that_changes_is_found_out(key: str, value: object, said: str) -> None:
    name = "imagenet256-sfd-xl"
    (found,) = mistakes(name, with_values(load_preset(name), {key: value}))
    assert found.startswith(f"{name}: {key}") and said in found


def test_a_page_of_a_changed_preset_is_another_page() -> None:
    name = "imagenet256-sfd-b"
    before = {row.key: row for row in rows(name, load_preset(name))}
    changed = rows(name, with_values(load_preset(name), {"runtime.diffusion.log_every": 7}))
    assert [row.key for row in changed if before[row.key] != row] == ["runtime.diffusion.log_every"]


def test_every_source_is_described_and_used() -> None:
    used = {published.source for run in RUNS.values() for published in run.values.values()}
    assert used == set(SOURCES)
    assert all(WITHOUT.values())


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{result.model}, {result.epochs} epochs")
def test_a_preset_quotes_the_published_results_of_its_run_for_both_machines(result: Result) -> None:
    if result.preset is None:
        return
    comments = top_comments(render(result.preset)).replace("\n# ", " ")
    for number in (*result.unguided, *result.guided):
        assert number is None or re.search(rf"\b{number:.2f}\b", comments), number
    assert ("arXiv 2606.19662" if "LWD" in result.model else "arXiv 2512.04926") in comments
