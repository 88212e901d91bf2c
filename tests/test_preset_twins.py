"""The mechanisms of the presets through the real stages, at digits size: trained, sampled, scored, audited."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Project, draw_images, small_params
from twins import MODEL, twin

from sfd.audit.audit import audit
from sfd.params import parse_params
from sfd.pipeline.inputs import check_current
from sfd.preset import load_preset, names
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

SHARED = ("scan", "prepare", "encoder", "texture_vae", "judge")
OWN = ("features", "semantic", "latents", "schedule", "diffusion", "sample", "reference", "evaluate")


def on_the_folder(tree: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the project's own images."""
    return tree | {"data": tree["data"] | {"source": "folder", "root": "images", "mirror": True}}


TWINS = {
    json.dumps(tree, sort_keys=True): (name, tree)
    for name in reversed(names())
    for tree in [on_the_folder(twin(load_preset(name)))]
}
"""One of the presets for each set of mechanisms."""


def run_stages(project: Project, stages: tuple[str, ...]) -> None:
    """In this process, which has imported everything already."""
    with project.entered():
        for name in stages:
            runpy.run_path(str(project.folder / f"stages/{name}.py"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Images, encoder, texture VAE and judge, which all twins have in common."""
    folder = tmp_path_factory.mktemp("shared")
    project = Project(folder, on_the_folder(small_params()))
    for number, name in enumerate(("lying", "upright")):
        draw_images(folder / "images" / name, 30, number, vertical=name == "upright")
    run_stages(project, SHARED)
    return project


@pytest.fixture(scope="module", params=TWINS.values(), ids=lambda made: made[0])
def finished(
    request: pytest.FixtureRequest, shared: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A project with the stages of a twin behind it, and its parameters."""
    _, tree = request.param
    project = shared.copy_to(tmp_path_factory.mktemp("twin") / "project")
    project.write_params(tree)
    run_stages(project, (("encoder",) if tree["encoder"] != small_params()["encoder"] else ()) + OWN)
    yield project, tree


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_there_is_a_twin_for_each_mechanism_that_the_presets_name() -> None:
    trees = [tree for _, tree in TWINS.values()]
    found = {(tree["semantic"]["kind"], tree["schedule"]["kind"], tree["latents"]["store_features"]) for tree in trees}
    assert {(kind, schedule) for kind, schedule, _ in found} == {
        ("semvae", "offset"),
        ("semvae", "learnt"),
        ("pca", "offset"),
        ("pca", "sync"),
        ("none", "sync"),
    }
    assert {("none", "sync", True), ("none", "sync", False)} <= found
    assert {tree["diffusion"]["model"]["patch_size"] for tree in trees} == {1, 2}
    assert {tree["latents"]["quadrants"] for tree in trees} == {False, True}
    assert {tree["latents"]["semantic_posterior"] for tree in trees} == {"mean", "sample"}
    assert {tree["features"]["crop"] for tree in trees} == {"image", "centre"}


def test_a_twin_trains_samples_and_is_scored_by_its_own_mechanisms(finished: tuple[Project, dict[str, Any]]) -> None:
    project, tree = finished
    record, loss = read(project.result("diffusion/model/config.json")), tree["diffusion"]["loss"]
    model = record["model"]
    channels = 0 if tree["semantic"]["kind"] == "none" else 2
    assert record["backbone"] == tree["diffusion"]["model"]["backbone"]
    if record["backbone"] == "lightningdit":
        parts = [key for key in MODEL if key != "backbone"]
        assert {key: model[key] for key in parts} == {key: tree["diffusion"]["model"][key] for key in parts}
    assert (model["semantic_channels"], model["in_channels"]) == (channels, 4 + channels)
    assert (model["two_times"], model["repa_depth"] > 0) == (
        tree["schedule"]["kind"] != "sync",
        loss["repa_weight"] > 0,
    )
    curve = project.result("diffusion/curves.csv").read_text().splitlines()[0].split(",")
    for term in ("velocity", "cosine", "repa"):
        assert (term in curve) == (loss[f"{term}_weight"] > 0)
    assert len(list(project.result("sample/images").rglob("*.png"))) == tree["sample"]["num_images"]
    metrics = read(project.result("evaluate/metrics.json"))
    assert metrics["fd_digits_judge"] > 0 and 0 <= metrics["class_accuracy"] <= 1


def test_a_twin_leaves_what_its_kind_of_semantics_needs_and_nothing_else(
    finished: tuple[Project, dict[str, Any]],
) -> None:
    project, tree = finished
    kind, index = tree["semantic"]["kind"], read(project.result("latents/shards/index.json"))
    has_encoder = tree["encoder"]["source"] != "none"
    assert project.result("encoder/model").is_dir() == has_encoder
    assert index["feature_dim"] == (16 if has_encoder else 0)
    for name in ("features/shards", "semantic/model", "semantic/features.png"):
        assert project.result(name).exists() == (kind != "none")
    assert project.result("semantic/curves.csv").exists() == (kind == "semvae")
    with project.entered():
        check_current(Workspace(Path()), ("encoder", *OWN), parse_params(tree))


def test_the_audit_encodes_images_as_the_twin_does(finished: tuple[Project, dict[str, Any]]) -> None:
    project, tree = finished
    if tree["semantic"]["kind"] == "semvae":
        pytest.skip("the audit of the default kind has tests of its own")
    with project.entered():
        assert "attack" in audit(Workspace(Path()), Path("results/sample")).lower()
