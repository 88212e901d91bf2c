"""`sfd bench`: four jobs at tiny size, what their numbers mean, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import small_params
from torch import nn
from typer.testing import CliRunner

from sfd.bench.measure import Measurement, matmul_ceiling
from sfd.bench.networks import latent_shape, random_backbone, random_texture_vae
from sfd.bench.report import BenchOptions, bench
from sfd.bench.workloads import OneBatch, training_flops
from sfd.cli import app
from sfd.errors import UserError
from sfd.params import Params, load_params, parse_params

JOBS = ("train", "sample", "latents", "load")
PRESETS = Path(__file__).parents[2] / "presets"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small params file."""
    written = tmp_path_factory.mktemp("bench") / "params.yaml"
    written.write_text(yaml.safe_dump(small_params()))
    return written


@pytest.mark.parametrize("job", JOBS)
def test_every_job_gives_a_table_and_the_same_numbers_as_json(file: Path, tmp_path: Path, job: str) -> None:
    target = tmp_path / "numbers.json"
    arguments = ["bench", job, "--file", str(file), "--batch-size", "4", "--steps", "3", "--json", str(target)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    found = json.loads(target.read_text())
    assert found["torch"] == torch.__version__ and str(found["device"]) in run.output and found["date"] in run.output
    for row in found["measured"]:
        assert row["name"] in run.output and f"{row['images_per_second']:.4g}" in run.output
        assert len(row["step_seconds"]) == 3 and min(row["step_seconds"]) > 0.0
        assert row["images_per_second"] == pytest.approx(4 / sorted(row["step_seconds"])[1])
        low, high = row["step_seconds_quartiles"]
        assert low <= row["step_seconds_median"] <= high
        assert row["peak_memory_gib"] > 0.1
        if job == "load":
            assert row["flops_per_step"] is None and found["matmul_ceiling_flops"] is None
        else:
            speed = row["flops_per_step"] / row["step_seconds_median"]
            assert row["model_flop_utilisation"] == pytest.approx(speed / found["matmul_ceiling_flops"])
            assert 0.0 < row["model_flop_utilisation"] < 1.0
    assert len(found["measured"]) == (2 if job == "load" else 1)


def test_sampling_counts_evaluations_and_can_leave_the_decoder_out(file: Path, tmp_path: Path) -> None:
    def measured(name: str, with_decoder: bool, sample: dict[str, Any]) -> dict[str, Any]:
        tree = yaml.safe_load(file.read_text())
        tree["sample"] |= sample
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        target = tmp_path / f"{name}.json"
        bench(BenchOptions("sample", tmp_path / f"{name}.yaml", "auto", 2, 1, with_decoder), target)
        row: dict[str, Any] = json.loads(target.read_text())["measured"][0]
        return row

    unguided = {"guidance": {"kind": "none"}, "sampler": "ab2", "num_steps": 5}
    plain, bare = measured("plain", True, unguided), measured("bare", False, unguided)
    guided = measured("guided", False, unguided | {"guidance": {"kind": "cfg", "scale_texture": 2.0}})
    assert (plain["network_evaluations"], bare["network_evaluations"], guided["network_evaluations"]) == (5, 5, 10)
    assert plain["flops_per_step"] > bare["flops_per_step"]
    assert guided["flops_per_step"] == 2 * bare["flops_per_step"]


def test_the_operations_of_training_are_those_of_its_matrices_three_times(file: Path) -> None:
    params = load_params(file)
    shape = latent_shape(params)
    network = random_backbone(params, shape)
    config = network.config
    rows = {"t_embedder": 1, "adaLN": 1}
    matrices = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            tokens = next((count for part, count in rows.items() if part in name), config.grid**2)
            matrices += 2 * module.weight.numel() * tokens
    attention = config.depth * 2 * 2 * config.grid**4 * config.hidden_size
    counted = training_flops(params, shape, OneBatch(shape, 1, True, params.seed))
    # A first layer's input needs no gradient.
    assert 0.98 * 3 * (matrices + attention) < counted <= 3 * (matrices + attention)


@pytest.mark.parametrize(
    "changes",
    [
        {"semantic": {"kind": "pca", "training": None}},
        {
            "semantic": {"kind": "none", "training": None},
            "schedule": {"kind": "sync"},
            "encoder": {"source": "none", "training": None},
            "latents": {"store_features": False},
            "diffusion": {"loss": {"repa_weight": 0.0}},
            "sample": {"guidance": {"scale_semantic": 1.0}},
        },
        {"latents": {"store_features": False}, "diffusion": {"loss": {"repa_target": "decoded"}}},
    ],
    ids=["pca", "none", "decoded"],
)
def test_every_kind_of_semantics_and_of_target_is_measured(file: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    def merge(tree: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        return tree | {key: merge(tree[key], new) if isinstance(new, dict) else new for key, new in more.items()}

    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merge(yaml.safe_load(file.read_text()), changes)))
    for job in ("train", "latents", "load"):
        assert job in bench(BenchOptions(job, tmp_path / "params.yaml", "auto", 2, 1), None)


def test_a_preset_is_measured_by_name_and_not_beside_a_file(file: Path) -> None:
    shown = CliRunner().invoke(app, ["bench", "load", "--preset", "digits", "--batch-size", "4", "--steps", "1"])
    assert shown.exit_code == 0 and "preset digits" in shown.output
    both = CliRunner().invoke(app, ["bench", "load", "--preset", "digits", "--file", str(file)])
    assert isinstance(both.exception, UserError) and "give one of them" in str(both.exception)


def test_a_single_step_has_its_own_time_as_quartiles() -> None:
    single = Measurement("x", 4, (0.5,), 1.0, torch.float32, flops=10)
    assert single.middle_half_seconds == (0.5, 0.5) and single.images_per_second == 8.0
    assert single.flops_per_second == 20.0


def test_the_ceiling_is_a_plausible_speed() -> None:
    assert 1e9 < matmul_ceiling(torch.float32) < 1e16


def test_the_released_texture_vae_is_rebuilt_without_its_file_and_read_where_there_is_one(tmp_path: Path) -> None:
    params = load_params(PRESETS / "imagenet256-sfd-xl.yaml")
    with torch.device("meta"):
        published = random_texture_vae(params.texture_vae, seed=0)
    assert sum(p.numel() for p in published.parameters()) == 69_836_067
    assert (latent_shape(params).latent, latent_shape(params).features) == ((48, 16, 16), (256, 768))
    tree = small_params()
    own = random_texture_vae(parse_params(tree).texture_vae, seed=0)
    own.autoencoder.save_pretrained(tmp_path / "vae")
    tree["texture_vae"] |= {"source": "file", "file": str(tmp_path / "vae"), "latent_channels": 32}
    read: Params = parse_params(tree)
    assert latent_shape(read).texture_channels == 4
    assert random_texture_vae(read.texture_vae, seed=0).latent_channels == 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dance"], "'dance' is not one of"),
        (["train", "--steps", "0"], "greater than or equal to 1"),
        (["train", "--batch-size", "0"], "greater than or equal to 1"),
        (["train", "--device", "tpu"], "'tpu' is not one of"),
        (["train", "--json", "taken.json"], "taken.json exists"),
        (["train", "--json", "nowhere/new.json"], "create nowhere first"),
        (["train", "--without-decoder"], "belongs to `sfd bench sample`"),
        (["train", "--file", "missing.yaml"], "missing.yaml does not exist"),
        (["load", "--batch-size", "4", "--device", "cuda"], "torch finds no GPU"),
        (["latents", "--batch-size", "1000000000000"], "give a smaller --batch-size"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text("mine")
    known = [] if "--file" in arguments else ["--file", str(file)]
    run = CliRunner().invoke(app, ["bench", *arguments, *known])
    said = run.output + (str(run.exception) if isinstance(run.exception, UserError) else "")
    assert run.exit_code != 0 and reason in " ".join(said.replace("│", " ").split())
    assert (tmp_path / "taken.json").read_text() == "mine"


@pytest.mark.long
def test_the_numerics_are_measured_where_tracking_and_decoders_are_not_installed(file: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("mlflow", "dvc", "optuna", "pandera", "diffusers")))
from pathlib import Path
from sfd.bench.report import BenchOptions, bench
for job in ("train", "load"):
    print(bench(BenchOptions(job, Path({str(file)!r}), "cpu", 4, 1), None))
print(bench(BenchOptions("sample", Path({str(file)!r}), "cpu", 4, 1, with_decoder=False), None))
try:
    bench(BenchOptions("sample", Path({str(file)!r}), "cpu", 4, 1), None)
except Exception as error:
    print(type(error).__name__, error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in ("train", "load, latents and features", "sample, latents only", "UserError", "package diffusers"):
        assert name in run.stdout
