"""A SemVAE in the published layout, through the real stages: import, features, semantic, latents, diffusion; and training on from that model."""

import json
import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import REPOSITORY, Project, draw_images, small_params

from sfd.encoders.semantic.encoder import load_semantic, save_semantic
from sfd.generation.model import DiffusionModel
from sfd.importing.networks import DiffusionFacts, import_weights
from sfd.network_files import network_digest

pytestmark = pytest.mark.long

STAGES = ("scan", "prepare", "encoder", "texture_vae", "features", "semantic", "latents", "schedule", "diffusion")
VECTOR = REPOSITORY / "tests/data/conformance/semvae_tiny.safetensors"


def parameters() -> dict[str, Any]:
    """Small networks whose encoder gives features of 24 channels, as the SemVAE of the vectors takes them."""
    tree = small_params()
    tree["data"] |= {"source": "folder", "root": "images", "mirror": True}
    tree["encoder"] |= {"width": 24, "num_heads": 2}
    widths = {"latent_channels": 5, "width": 32, "depth": 2, "num_heads": 4}
    tree["semantic"] |= widths | {"source": "file", "file": "weights/semantic_vae", "training": None}
    tree["latents"]["semantic_posterior"] = "sample"
    tree["features"] |= {"crop": "centre", "mirror": False}
    return tree


def run_stage(project: Project, name: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with project.entered():
            runpy.run_path(str(project.folder / f"stages/{name}.py"))
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("semantic file")
    made = Project(folder, parameters())
    for number, name in enumerate(("lying", "upright")):
        draw_images(folder / "images" / name, 20, number, vertical=name == "upright")
    tensors = load_file(VECTOR)
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    torch.save({"model_state_dict": state, "iteration": 1_000_000}, folder / "semantic_vae.pt")
    target = folder / "weights/semantic_vae"
    import_weights(folder / "semantic_vae.pt", "semantic-vae", target, DiffusionFacts(), heads=4)
    for name in STAGES:
        run_stage(made, name)
    yield made


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_stage_takes_the_imported_weights_and_measures_them(project: Project) -> None:
    taken, vector = load_semantic(project.result("semantic/model")), load_file(VECTOR)
    assert (taken.encode(vector["features"]) - vector["mean"]).abs().max() < 1e-5
    assert network_digest(project.result("semantic/model")) == network_digest(project.folder / "weights/semantic_vae")
    assert set(read(project.result("semantic/quality.json"))) == {
        "reconstruction_cosine",
        "explained_variance",
        "kl_per_image",
    }
    assert (project.result("semantic") / "features.png").is_file()
    assert not (project.result("semantic") / "curves.csv").exists()


def test_features_are_of_unmirrored_centre_crops(project: Project) -> None:
    index = read(project.result("features/shards/index.json"))
    assert (index["num_views"], index["centre"], index["feature_dim"]) == (1, 16, 24)
    assert index["num_images"] == len(index["images"])


def test_latents_and_model_record_the_networks_that_they_came_from(project: Project) -> None:
    expected = {
        name: network_digest(project.result(f"{name}/model")) for name in ("texture_vae", "encoder", "semantic")
    }
    assert read(project.result("latents/shards/index.json"))["networks"] == expected
    model = DiffusionModel.load(project.result("diffusion/model"))
    assert model.networks == expected and model.network.config.semantic_channels == 5


def start_over(project: Project, folder: Path, changes: dict[str, Any]) -> Project:
    """A copy of the project that starts from its own model, kept outside of the results."""
    copied = project.copy_to(folder)
    shutil.copytree(copied.result("diffusion/model"), copied.folder / "weights/start")
    tree = parameters()
    tree["diffusion"]["init_from"] = "weights/start"
    tree["diffusion"]["training"]["warmup_steps"] = 1
    for section, values in changes.items():
        tree[section] |= values
    copied.write_params(tree)
    return copied


def another_semvae(project: Project) -> None:
    """``weights/another``: of the same shapes, with one number changed."""
    network = load_semantic(project.folder / "weights/semantic_vae")
    next(network.parameters()).view(-1)[0] += 0.1
    save_semantic(project.folder / "weights/another", network)


def test_training_goes_on_from_a_model_of_the_same_semantic_encoder(project: Project, tmp_path: Path) -> None:
    copied = start_over(project, tmp_path / "same", {})
    for name in ("scan", "latents", "schedule", "diffusion"):
        run_stage(copied, name)
    report = (copied.result("diffusion") / "start.txt").read_text()
    assert "copied: " in report and "compared" not in report and "although" not in report


def refused(project: Project, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        run_stage(project, name)
    assert ending.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    return line


def test_latents_of_another_semantic_encoder_are_refused_before_they_are_made(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = start_over(project, tmp_path / "other", {"semantic": {"file": "weights/another"}})
    another_semvae(copied)
    run_stage(copied, "scan")
    run_stage(copied, "semantic")
    said = refused(copied, "latents", capsys)
    assert (
        said.startswith("error: latents: the model of diffusion.init_from ") and "set diffusion.other_networks" in said
    )
    there, here = (network_digest(copied.folder / f"weights/{name}")[:12] for name in ("semantic_vae", "another"))
    assert f"semantic encoder {there} there and {here} here" in said and "texture VAE" not in said
    tree = parameters()
    tree["semantic"]["file"] = "weights/another"
    tree["diffusion"] |= {"init_from": "weights/start", "other_networks": True}
    tree["diffusion"]["training"]["warmup_steps"] = 1
    copied.write_params(tree)
    for name in ("scan", "latents", "schedule", "diffusion"):
        run_stage(copied, name)
    assert "goes on as told, although" in (copied.result("diffusion") / "start.txt").read_text()
    assert DiffusionModel.load(copied.result("diffusion/model")).networks["semantic"] == network_digest(
        copied.folder / "weights/another"
    )


def test_a_file_that_does_not_fit_is_refused_before_features_are_computed(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = project.copy_to(tmp_path / "wide")
    tree = parameters()
    tree["semantic"]["num_heads"] = 8
    tree["features"]["max_images"] = 9
    copied.write_params(tree)
    run_stage(copied, "scan")
    for name in ("features", "semantic"):
        said = refused(copied, name, capsys)
        assert f"error: {name}: semantic.file " in said and "semantic.num_heads is 8, but its own is 4" in said


def test_only_what_the_report_needs_is_stored_of_the_features(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfd.pipeline.features.REPORT_IMAGES", 7)
    copied = project.copy_to(tmp_path / "few")
    run_stage(copied, "features")
    assert read(copied.result("features/shards/index.json"))["num_images"] == 7
