"""presets/released-xl with tiny networks: `sfd import` of files in the published layouts, then its graph through real DVC."""

import io
import runpy
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from served import ask
from support import REPOSITORY, Project, draw_images, small_params

from sfd.errors import UserError
from sfd.generation.images import ImageGenerator
from sfd.generation.model import DiffusionModel
from sfd.importing.networks import DiffusionFacts, import_weights
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.network_files import network_digest
from sfd.params import SampleParams, load_params
from sfd.tracking.address import relocate, sqlite_uri

pytestmark = pytest.mark.long

GRAPH = Path("presets/released-xl")
STAGES = ["scan", "prepare", "texture_vae", "judge", "diffusion", "sample", "reference", "evaluate", "register"]


def published_files(folder: Path) -> None:
    """A model of 4 + 2 channels at 4 x 4 positions with a weaker one, the statistics of both, and an LDM autoencoder for 64 pixels."""
    folder.mkdir()
    for name, width, depth in (("sfd.pt", 32, 2), ("autoguidance.pt", 16, 1)):
        network = LightningDiT(
            LightningDiTConfig(4, 6, width, depth, 2, ClassCondition.numbered(2), semantic_channels=2, two_times=True)
        )
        random = torch.Generator().manual_seed(depth)
        noise = {
            key: value if "freqs" in key or key == "pos_embed" else 0.2 * torch.randn(value.shape, generator=random)
            for key, value in network.state_dict().items()
        }
        torch.save({"ema": noise}, folder / name)
    for name, channels in (("latents_stats.pt", 4), ("latents_sv_stats.pt", 2)):
        shape = (1, channels, 1, 1)
        torch.save({"mean": torch.zeros(shape), "std": torch.ones(shape)}, folder / name)
    tensors = load_file(REPOSITORY / "tests/data/conformance/texture_vae_tiny.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, folder / "vae.ckpt")


def tiny_twin() -> dict[str, object]:
    """The preset's parameters with a judge of seconds, few images and few steps."""
    released, small = yaml.safe_load((REPOSITORY / GRAPH / "params.yaml").read_text()), small_params()
    released["data"] |= {"image_size": 64, "holdout_fraction": 0.3}
    released["judges"], released["evaluate"] = small["judges"], small["evaluate"]
    released["quality"] = small["quality"]
    released["register"] = small["register"] | {"name": "released"}
    released["tune"] = small["tune"]
    released["runtime"] = small["runtime"] | {"sample": {"batch_size": 4}}
    released["sample"] |= {"num_images": 8, "sampler": "heun", "num_steps": 4}
    return released  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("released")
    made = Project(folder, small_params())
    graph = folder / GRAPH
    shutil.copytree(
        REPOSITORY / GRAPH, graph, ignore=shutil.ignore_patterns("results", "mlruns", "weights", ".sfd", "cache", "tmp")
    )
    (graph / "params.yaml").write_text(yaml.safe_dump(tiny_twin(), sort_keys=False))
    draw_images(graph / "images" / "n01", 20, 1, vertical=False)
    draw_images(graph / "images" / "n02", 20, 2, vertical=True)
    files = folder / "published"
    published_files(files)
    import_weights(files / "vae.ckpt", "texture-vae", graph / "weights/texture_vae", DiffusionFacts())
    statistics = files / "latents_stats.pt", files / "latents_sv_stats.pt"
    facts = DiffusionFacts(statistics, texture_vae=graph / "weights/texture_vae")
    import_weights(files / "sfd.pt", "diffusion", graph / "weights/diffusion", facts)
    import_weights(files / "autoguidance.pt", "diffusion", graph / "weights/weak", facts)
    made.repro(folder=str(GRAPH))
    yield made


def test_the_preset_samples_and_scores_as_published() -> None:
    sample = load_params(REPOSITORY / GRAPH / "params.yaml").sample
    assert (sample.num_images, sample.sampler, sample.guidance.kind) == (50_000, "dopri5", "autoguidance")
    assert sample.guidance.scale_texture == sample.guidance.scale_semantic == 1.5


def test_imported_weights_are_sampled_and_evaluated_like_trained_ones(project: Project) -> None:
    results = project.folder / GRAPH / "results"
    assert {path.name for path in results.iterdir() if path.is_dir()} == set(STAGES)
    metrics = yaml.safe_load((results / "evaluate" / "metrics.json").read_text())
    assert metrics["num_images"] == 8 and np.isfinite(metrics["fd_digits_judge"])
    table = pd.read_csv(results / "sample" / "samples.csv", dtype={"class": str})
    assert table["class"].tolist() == ["0", "1"] * 4
    imported = load_file(project.folder / GRAPH / "weights/diffusion/model.safetensors")
    sampled = load_file(results / "diffusion/model/model.safetensors")
    assert imported.keys() == sampled.keys() and all(torch.equal(imported[key], sampled[key]) for key in sampled)


def test_nothing_changed_means_nothing_but_the_look_at_the_images_runs(project: Project) -> None:
    running = [line for line in project.repro(folder=str(GRAPH)).splitlines() if line.startswith("Running stage")]
    assert running == ["Running stage 'scan':"]


def test_several_processes_sample_the_same_bytes_and_dvc_knows_them(project: Project) -> None:
    images = project.folder / GRAPH / "results/sample/images"
    before = {file.name: file.read_bytes() for file in images.iterdir()}
    shutil.rmtree(images.parent)
    shutil.copytree(REPOSITORY / "launch", project.folder / "launch")
    status, output = project.run("bash", "-c", f"cd {GRAPH} && ../../launch/torchrun.sh sample", NPROC="2")
    assert status == 0, output
    assert {file.name: file.read_bytes() for file in images.iterdir()} == before
    assert "Running stage 'sample'" not in project.repro(folder=str(GRAPH))


def test_the_weak_model_guides_the_samples_and_does_not_go_missing_silently(project: Project) -> None:
    graph = project.folder / GRAPH
    params = SampleParams.model_validate(yaml.safe_load((graph / "params.yaml").read_text())["sample"])
    table = pd.read_csv(graph / "results/sample/samples.csv").head(4)
    networks = (graph / "results/diffusion/model", graph / "results/texture_vae/model")
    given = table["class_index"].tolist(), table["seed"].tolist()
    (guided,) = ImageGenerator.load(*networks, graph / "weights/weak").sample(*given, params, 4)
    stored = np.stack([np.asarray(Image.open(graph / "results/sample/images" / file)) for file in table["file"]])
    assert (guided.permute(0, 2, 3, 1).numpy() == stored).all()
    with pytest.raises(UserError, match="kind is `autoguidance`, but the images are drawn without a weak model"):
        next(ImageGenerator.load(*networks).sample(*given, params, 4))
    cfg = params.model_copy(update={"guidance": params.guidance.model_copy(update={"kind": "cfg"})})
    with pytest.raises(UserError, match="kind is `cfg`, but the images are drawn with a weak model"):
        next(ImageGenerator.load(*networks, graph / "weights/weak").sample(*given, cfg, 4))
    (by_null_class,) = ImageGenerator.load(*networks).sample(*given, cfg, 4)
    assert not torch.equal(by_null_class, guided)


def test_a_server_draws_the_samples_from_the_registered_version_with_its_weak_model(project: Project) -> None:
    graph = project.folder / GRAPH
    weak = graph / "weights" / "weak"
    weak.rename(weak.with_name("away"))  # the version carries its own
    store = f"sqlite:///{graph}/mlruns/mlflow.db"
    server = project.start(
        "sfd",
        "serve",
        "--model",
        "released",
        "--alias",
        "candidate",
        "--port",
        "0",
        forked=True,
        MLFLOW_TRACKING_URI=store,
    )
    assert server.stdout is not None
    try:
        url = next(line for line in server.stdout if "http://" in line).split()[-1]
        for row in pd.read_csv(graph / "results/sample/samples.csv", dtype={"class": str}).head(2).to_dict("records"):
            answer = ask(f"{url}/generate", {"class": row["class"], "seed": row["seed"]})
            shown = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
            sampled = np.asarray(Image.open(graph / "results/sample/images" / row["file"])).astype(int)
            assert np.abs(shown - sampled).max() <= 1, "one grey level is the rounding between shapes of batches"
    finally:
        weak.with_name("away").rename(weak)
        server.terminate()
        server.communicate()
    assert server.returncode == 0


def test_the_model_records_the_texture_vae_that_decodes_its_samples(project: Project) -> None:
    graph = project.folder / GRAPH
    model = DiffusionModel.load(graph / "results/diffusion/model")
    assert model.networks == {"texture_vae": network_digest(graph / "results/texture_vae/model")}


@pytest.fixture(scope="module")
def of_another_vae(project: Project) -> None:
    """``weights/other``: the model, as if its latents had come from another texture VAE."""
    weights = project.folder / GRAPH / "weights"
    model = DiffusionModel.load(weights / "diffusion")
    replace(model, networks={"texture_vae": "f" * 64}).save(weights / "other")


def run_stage(graph: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(graph)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{graph}/mlruns/mlflow.db")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_path(f"../../stages/{name}.py")
    finally:
        signal.signal(signal.SIGTERM, handler)


def refused(graph: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a stage ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        run_stage(graph, name, monkeypatch)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert ending.value.code == 2
    return line


@pytest.mark.usefixtures("of_another_vae")
@pytest.mark.parametrize(
    ("section", "change", "reason"),
    [
        (
            "diffusion",
            {"file": "weights/other"},
            "other networks than the result of stage texture_vae: texture VAE ffffffffffff there",
        ),
        ("schedule", {"tau": 0.2}, "have the schedule {'kind': 'offset', 'tau': 0.3}: set schedule in params.yaml"),
        ("data", {"image_size": 32}, "draw texture latents (4, 4, 4), but images of data.image_size 32 have (4, 2, 2)"),
        ("diffusion", {"file": "weights/texture_vae"}, "config.json does not describe a diffusion model"),
        ("diffusion", {"file": "weights/nothing"}, "weights/nothing does not exist, but params.yaml names it"),
    ],
)
def test_weights_that_do_not_fit_the_parameters_are_refused_in_one_line(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    section: str,
    change: dict[str, object],
    reason: str,
) -> None:
    graph = project.folder / GRAPH
    kept = (graph / "params.yaml").read_text()
    tree = yaml.safe_load(kept)
    tree[section] |= change
    (graph / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    try:
        line = refused(graph, "diffusion", monkeypatch, capsys)
    finally:
        (graph / "params.yaml").write_text(kept)
    assert line.startswith("error: diffusion: ") and reason in line


@pytest.mark.usefixtures("of_another_vae")
def test_another_texture_vae_decodes_as_told_by_each_stage(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = project.copy_to(tmp_path / "told").folder / GRAPH
    relocate(sqlite_uri(graph / "mlruns" / "mlflow.db"))
    tree = yaml.safe_load((graph / "params.yaml").read_text())

    def write(**sections: dict[str, object]) -> None:
        for section, change in sections.items():
            tree[section] |= change
        (graph / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))

    none = {"kind": "none", "weak_model": None, "scale_texture": 1.0, "scale_semantic": 1.0}
    write(diffusion={"file": "weights/other", "other_networks": True}, sample={"guidance": none})
    run_stage(graph, "diffusion", monkeypatch)
    assert "diffusion: goes on as told, although the model in weights/other was trained" in capsys.readouterr().err
    line = refused(graph, "sample", monkeypatch, capsys)
    assert line.startswith("error: sample: the model was trained on latents of other networks than results/texture_vae")
    write(sample={"other_networks": True})
    run_stage(graph, "sample", monkeypatch)
    assert "goes on as told, although the model was trained" in capsys.readouterr().err
    write(sample={"guidance": none | {"kind": "autoguidance", "weak_model": "weights/weak"}, "other_networks": False})
    write(diffusion={"file": "weights/diffusion", "other_networks": False})
    weak = DiffusionModel.load(graph / "weights/weak")
    replace(weak, networks={"texture_vae": "e" * 64}).save(graph / "weights/weak")
    run_stage(graph, "diffusion", monkeypatch)
    assert "the weak model in weights/weak was trained on latents of other" in refused(
        graph, "sample", monkeypatch, capsys
    )


def test_a_default_graph_beside_it_stays_as_it_is(project: Project) -> None:
    status, output = project.run("dvc", "stage", "list", "--all")
    assert status == 0 and "latents" in output and "judge" in output and "released" not in output
