"""``sfd estimate``: what is counted, on which device, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import draw_images, small_params
from typer.testing import CliRunner

from sfd.cli import app
from sfd.errors import UserError
from sfd.params import Params, with_values
from sfd.planning import devices, estimate, flops
from sfd.planning.devices import device_named
from sfd.planning.estimate import Counted, count, works
from sfd.planning.needs import STATE_BYTES, image_gb
from sfd.preset import load_preset, names
from sfd.workspace import Workspace

XL = "imagenet256-sfd-xl"
UNGUIDED: dict[str, object] = {"sample.guidance.kind": "none"}
UNGUIDED |= {"sample.guidance.scale_texture": 1.0, "sample.guidance.scale_semantic": 1.0}


@pytest.fixture(scope="module")
def digits() -> Params:
    return load_preset("digits")


@pytest.fixture(scope="module")
def xl() -> Counted:
    return count(load_preset(XL), Workspace(Path()))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["estimate", *arguments])
    if isinstance(done.exception, UserError):
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_papers_model_is_counted_from_its_shapes(xl: Counted) -> None:
    assert 670e6 < xl.num_parameters < 690e6 and xl.shape.latent == (48, 16, 16)
    # DiT-XL/2 has 118.6 billion multiplications and additions on as many tokens of the same width and depth.
    assert 0.9 < xl.evaluation / (2 * 118.6e9) < 1.2
    assert 2.9 < xl.train_step / xl.evaluation < 3.2, "a backward pass costs two forward passes"
    assert xl.num_heldout == 50_000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 14),
        (UNGUIDED, 7),
        (UNGUIDED | {"sample.sampler": "heun"}, 14),
        (UNGUIDED | {"sample.sampler": "dopri5"}, 100),
        ({"sample.sampler": "dopri5"}, 200),
    ],
)
def test_evaluations_are_those_that_the_sampler_makes(
    digits: Params, changes: dict[str, object], expected: int
) -> None:
    assert flops.evaluations(with_values(digits, changes)) == expected


def test_every_stage_with_a_network_has_hours_and_more_devices_take_fewer(xl: Counted) -> None:
    device = device_named("h100")
    rows = {work.stage: work for work in works(xl, device)}
    assert list(rows) and {"features", "latents", "diffusion", "sample", "reference", "evaluate", "semantic"} <= set(
        rows
    )
    assert rows["diffusion"].flops == pytest.approx(256 * load_preset(XL).diffusion.training.num_steps * xl.train_step)
    for stage in ("diffusion", "sample"):
        assert rows[stage].seconds(device, 8) < rows[stage].seconds(device, 1) / 7
        assert rows[stage].seconds(device_named("A100"), 1) > 1.5 * rows[stage].seconds(device, 1)


def test_a_training_reaches_what_was_measured_on_an_h200(xl: Counted) -> None:
    work = next(work for work in works(xl, device_named("H200")) if work.stage == "diffusion")
    images_per_second = device_named("H200").flops(work.dtype, work.job) / work.per_image
    assert images_per_second == pytest.approx(439, rel=0.1), "docs/benchmarks.md"


def test_reading_counts_where_it_takes_longer_than_computing(xl: Counted) -> None:
    device = device_named("H100")
    work = next(work for work in works(xl, device) if work.stage == "prepare")
    assert work.flops == 0
    expected = work.reads / (devices.READ_PER_CORE * device.cores)
    assert work.seconds(device, 1) == pytest.approx(expected + estimate.START_SECONDS)


def test_the_memory_of_a_step_is_that_of_the_check_of_a_preset(xl: Counted) -> None:
    rows = [row[1] for row in estimate._memory_rows(xl, device_named("H100"), 8)]
    parts = [float(size) for size in rows[1:-1]]
    expected = xl.num_parameters * STATE_BYTES / 1e9 + 32 * image_gb(xl.params, xl.shape, on_gpu=True)
    assert sum(parts) == pytest.approx(expected, abs=0.05) and rows[-1].startswith(f"{sum(parts):.1f}"[:3])


def test_muon_keeps_one_average_of_the_matrices_of_the_blocks(xl: Counted) -> None:
    with_muon = with_values(load_preset(XL), {"diffusion.training.optimizer": "muon"})
    adamw, muon = xl, count(with_muon, Workspace(Path()))
    hidden = int(2 / 3 * 4 * 1152)
    assert adamw.num_muon == 0 and muon.num_muon == 28 * 1152 * (3 * 1152 + 1152 + 3 * hidden)
    sizes = [{row[0]: row[1] for row in estimate._memory_rows(each, device_named("H100"), 1)} for each in (adamw, muon)]
    saved = float(sizes[0]["moments of the optimizer, adamw"]) - float(sizes[1]["moments of the optimizer, muon"])
    assert saved == pytest.approx(4 * muon.num_muon / 1e9, abs=0.02)


def test_the_command_says_what_it_assumes() -> None:
    said = run("--preset", "digits", "--device", "cpu")
    for part in ("parameters", "TFLOP", "GB on disk", "memory of a training step", "assumed"):
        assert part in said
    assert "measured / estimated" not in said and "adaptive" not in said
    assert "ImageNet" not in said and "diffusion" in said


def test_without_a_known_number_of_images_the_stages_that_read_them_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_params()
    tree["data"] |= {"source": "folder", "root": "images"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    said = run("--device", "cpu")
    assert "the number of images is not known" in said and "latents  of" not in said
    draw_images(tmp_path / "images" / "a", 12, 1, vertical=False)
    said = run("--device", "cpu")
    assert "the number of images is not known" not in said and "latents" in said


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(estimate, "measured_seconds", lambda *_: {"diffusion": 0.01, "sample": 0.1, "latents": 0.001})
    yield


@pytest.mark.usefixtures("measured")
def test_a_check_adds_the_measured_time_per_image_by_the_estimated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small_params()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "_at_hand", lambda: "cpu")
    said = run("--check")
    assert "measured / estimated" in said
    device = device_named("cpu")
    counted = count(Workspace(tmp_path).load_params(), Workspace(tmp_path))
    work = next(work for work in works(counted, device) if work.stage == "diffusion")
    ratio = 0.01 * device.flops(work.dtype, work.job) / work.per_image
    row = next(line for line in said.splitlines() if line.startswith("diffusion  "))
    assert row.split()[-1] == f"{ratio:.2f}"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "H1000"], "--device H1000 is none of H200, H100, A100, L40S, 4090, cpu"),
        (["--device", "H100", "--check"], "H100 is not its device"),
        (["--preset", "imagenet256-sfd-xxl"], "imagenet256-sfd-xl"),
    ],
)
def test_what_cannot_be_estimated_is_refused(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_at_hand", lambda: "cpu")
    known = [] if "--preset" in arguments else ["--preset", "digits"]
    assert reason in run(*arguments, *known)


@pytest.mark.long
@pytest.mark.parametrize("name", names())
def test_every_preset_can_be_estimated(name: str) -> None:
    assert "diffusion" in run("--preset", name, "--device", "H100", "--devices", "8")


@pytest.mark.long
def test_a_check_measures_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small_params()))
    monkeypatch.chdir(tmp_path)
    rows = [line for line in run("--check").splitlines() if line.startswith(("latents  ", "diffusion  ", "sample  "))]
    assert len(rows) == 3 and all(float(row.split()[-1]) > 0.0 for row in rows)
