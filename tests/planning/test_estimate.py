"""``sfd estimate``: what is counted, on which device, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import draw_images, small_params
from typer.testing import CliRunner

from sfd.bench.networks import latent_shape
from sfd.cli import app
from sfd.errors import UserError
from sfd.params import Params, with_values
from sfd.planning import devices, estimate, flops
from sfd.planning.devices import device_named
from sfd.planning.estimate import Counted, Work, count, works
from sfd.planning.needs import STATE_BYTES, image_gb, result_bytes
from sfd.preset import load_preset, names
from sfd.workspace import Workspace

XL = "imagenet256-sfd-xl"
UNGUIDED: dict[str, object] = {"sample.guidance.kind": "none"}
UNGUIDED |= {"sample.guidance.scale_texture": 1.0, "sample.guidance.scale_semantic": 1.0}


@pytest.fixture(scope="module")
def digits() -> Params:
    return load_preset("digits")


@pytest.fixture(scope="module")
def counted_digits(digits: Params) -> Counted:
    return count(digits, Workspace(Path()))


@pytest.fixture(scope="module")
def xl() -> Counted:
    return count(load_preset(XL), Workspace(Path()))


@pytest.fixture(scope="module")
def xl_works(xl: Counted) -> dict[str, Work]:
    """On GPUs, of which all do the same."""
    return {work.stage: work for work in works(xl, device_named("H100"))}


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
    assert xl.num_images == (1_281_167, 50_000)


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


def test_every_stage_with_a_network_has_hours_and_more_devices_take_fewer(
    xl: Counted, xl_works: dict[str, Work]
) -> None:
    device, rows = device_named("h100"), xl_works
    for stage in ("features", "latents", "diffusion", "sample", "reference", "evaluate", "semantic"):
        assert rows[stage].flops > 0, stage
    assert rows["semantic"].seconds(device, 8) == rows["semantic"].seconds(device, 1), "one process alone trains it"
    assert rows["diffusion"].flops == pytest.approx(256 * load_preset(XL).diffusion.training.num_steps * xl.train_step)
    for stage in ("diffusion", "sample"):
        assert rows[stage].seconds(device, 8) < rows[stage].seconds(device, 1) / 7
        assert rows[stage].seconds(device_named("A100"), 1) > 1.5 * rows[stage].seconds(device, 1)


def test_a_training_reaches_what_was_measured_on_an_h200(xl_works: dict[str, Work]) -> None:
    work = xl_works["diffusion"]
    images_per_second = device_named("H200").flops(work.dtype, work.job) / work.per_image
    assert images_per_second == pytest.approx(439, rel=0.1), "docs/benchmarks.md"


def test_reading_counts_where_it_takes_longer_than_computing(xl_works: dict[str, Work]) -> None:
    device, work = device_named("H100"), xl_works["prepare"]
    assert work.flops == 0
    expected = work.reads / (devices.READ_PER_CORE * device.cores)
    assert work.seconds(device, 1) == pytest.approx(expected + estimate.START_SECONDS)


def test_the_memory_of_a_step_is_that_of_the_check_of_a_preset(xl: Counted) -> None:
    rows = [row[1] for row in estimate._memory_rows(xl, device_named("H100"), 8)]
    parts = [float(size) for size in rows[1:-1]]
    expected = xl.num_parameters * STATE_BYTES / 1e9 + 32 * image_gb(xl.params, xl.shape, on_gpu=True)
    assert sum(parts) == pytest.approx(expected, abs=0.05) and rows[-1].startswith(f"{sum(parts):.1f}"[:3])


def test_muon_keeps_one_average_of_the_matrices_of_the_blocks(digits: Params, counted_digits: Counted) -> None:
    with_muon = with_values(digits, {"diffusion.training.optimizer": "muon"})
    adamw, muon = counted_digits, count(with_muon, Workspace(Path()))
    width, depth, hidden = 128, 4, int(2 / 3 * 4 * 128)
    assert adamw.num_muon == 0 and muon.num_muon == depth * width * (3 * width + width + 3 * hidden)
    # A thousand times as many, since the table has two decimals.
    adamw, muon = (
        replace(each, num_parameters=1000 * each.num_parameters, num_muon=1000 * each.num_muon)
        for each in (adamw, muon)
    )
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
    monkeypatch.setattr(devices, "at_hand", lambda: "cpu")
    said = run("--check")
    assert "measured / estimated" in said
    device = device_named("cpu")
    counted = count(Workspace(tmp_path).load_params(), Workspace(tmp_path))
    work = next(work for work in works(counted, device) if work.stage == "diffusion")
    ratio = 0.01 * device.flops(work.dtype, work.job) / work.per_image
    row = next(line for line in said.splitlines() if line.startswith("diffusion  "))
    assert row.split()[-1] == f"{ratio:.2f}"


def test_a_multiplication_and_an_addition_of_each_weight_and_token_are_counted(xl: Counted) -> None:
    """By hand: a block has 4 D^2 weights of attention and 3 D h of SwiGLU per token, 2 N D of products between tokens, and 6 D^2 of adaLN."""
    width, depth, tokens, hidden = 1152, 28, 256, 3072
    per_token = 4 * width**2 + 3 * width * hidden + 2 * tokens * width
    blocks = depth * (tokens * per_token + 6 * width**2)
    assert xl.evaluation == pytest.approx(2 * blocks, rel=0.002)


def test_the_last_steps_of_a_sparse_training_count_with_all_tokens(digits: Params) -> None:
    counted = []
    for full in (0, 800, 3200):
        options = {"share": 0.75, "first_blocks": 1, "last_blocks": 1, "path_drop": 0.0, "full_token_steps": full}
        params = with_values(digits, {"diffusion.sparse_deep": options})
        counted.append(flops.train_step(params, latent_shape(params)))
    sparse, mixed, dense = counted
    assert sparse < 0.8 * dense and mixed == pytest.approx(0.75 * sparse + 0.25 * dense)


def test_encoding_captions_is_counted_in_each_step_and_that_of_an_unknown_encoder_is_said_to_be_left_out(
    digits: Params, tmp_path: Path
) -> None:
    training = {"num_steps": 10, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9}
    changes = {"data.source": "folder", "data.root": str(tmp_path), "data.captions": "auto", "text.training": training}
    changes |= {"diffusion.model.condition": "text", "sample.class_mix": "balanced"}
    stored = with_values(digits, changes)
    read = with_values(stored, {"text.store_tokens": False})
    shape = latent_shape(stored)
    added = flops.train_step(read, shape) - flops.train_step(stored, shape)
    assert added == pytest.approx(flops.text_step(stored) / 3) and added > 0
    said = estimate.estimate(read, Workspace(tmp_path), "H100", 1, check=False)
    assert "text encoder" in said and "its time and memory are not counted" not in said
    assert "text encoder" not in estimate.estimate(stored, Workspace(tmp_path), "H100", 1, check=False)
    unknown = with_values(read, {"text.source": "pretrained", "text.name": "t5", "text.training": None})
    assert "its time and memory are not counted" in estimate.estimate(
        unknown, Workspace(tmp_path), "H100", 1, check=False
    )


def test_the_probe_of_a_learnt_schedule_is_work_of_its_stage_and_a_given_one_is_none(
    digits: Params, counted_digits: Counted
) -> None:
    learnt = load_preset("digits-learnt")
    section, changes = learnt.schedule.learnt, {"schedule.learnt.repeats": 2}
    assert section is not None
    given, once, twice = (
        estimate._schedule(replace(counted_digits, params=each), device_named("H100"))
        for each in (digits, learnt, with_values(learnt, changes))
    )
    assert given.flops == 0 and once.count == section.probe_steps * learnt.diffusion.training.batch_size
    assert twice.flops == 2 * once.flops
    # Without REPA, forward and backward pass of a network of the same size.
    assert 2.5 < once.per_image / counted_digits.evaluation < 3.1


def test_the_probe_of_the_paper_costs_less_than_a_hundredth_of_the_training(xl: Counted) -> None:
    params = load_preset("imagenet256-lwd-xl")
    probe = estimate._schedule(replace(xl, params=params), device_named("H100"))
    training = params.diffusion.training
    assert 0.0 < probe.flops < 0.01 * training.num_steps * training.batch_size * xl.train_step


def test_a_model_that_others_trained_takes_no_hours_and_no_memory_of_a_step(
    digits: Params, counted_digits: Counted
) -> None:
    assert "memory of a training step" in estimate.estimate(digits, Workspace(Path()), "H100", 1, False)
    given = with_values(digits, {"diffusion.source": "file", "diffusion.file": "model"})
    (work,) = (
        work for work in works(replace(counted_digits, params=given), device_named("H100")) if work.stage == "diffusion"
    )
    assert (work.what, work.flops) == ("file", 0.0)
    number = counted_digits.num_parameters
    assert result_bytes(given, counted_digits.shape, 1348, number)["diffusion"] == 4 * number
    assert result_bytes(digits, counted_digits.shape, 1348, number)["diffusion"] > 30 * number
    assert "memory of a training step" not in estimate.estimate(given, Workspace(Path()), "H100", 1, False)


def test_networks_that_others_trained_take_no_training_whatever_their_sections_say(
    digits: Params, counted_digits: Counted
) -> None:
    given = with_values(digits, {"semantic.source": "file", "semantic.file": "semantic"})
    for params, is_trained in ((digits, True), (given, False)):
        rows = {work.stage: work.flops for work in works(replace(counted_digits, params=params), device_named("cpu"))}
        assert (rows["semantic"] > 0.0) == is_trained


def test_a_cpu_reads_images_and_computes_one_after_the_other_and_a_gpu_at_the_same_time() -> None:
    work = Work("latents", "", count=100, per_image=1e9, reads=100)
    for device in (device_named("cpu"), device_named("H100")):
        computing = work.flops / device.flops(work.dtype, work.job)
        reading = work.reads / (devices.READ_PER_CORE * device.cores)
        expected = max(computing, reading) if device.is_gpu else computing + reading
        assert work.seconds(device, 1) == pytest.approx(estimate.START_SECONDS + expected)


def test_judges_see_the_floors_and_one_of_them_all_training_images(digits: Params, counted_digits: Counted) -> None:
    """Copies are looked for with the first judge's features alone, and the floors need the texture VAE's round trip."""
    counted = counted_digits
    (work,) = (work for work in works(counted, device_named("cpu")) if work.stage == "reference")
    first, second = (flops.judge(digits, each) for each in digits.judges)
    train, heldout = 1348, 449
    floor = digits.sample.num_images
    assert counted.num_images == (train, heldout) and not digits.data.mirror
    expected = (heldout + floor + train) * first + (heldout + 2 * floor) * second
    assert work.flops == pytest.approx(expected + floor * (counted.encode + counted.decode))
    assert work.reads == heldout + floor + train


def test_a_gpu_that_the_table_lacks_is_named_and_another_one_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for full, found in (("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA GH200 480GB", "NVIDIA GH200 480GB")):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda full=full: full)
        assert devices.at_hand() == found
    with pytest.raises(
        UserError, match="the GPU here is NVIDIA GH200 480GB, which is none of .*; name the nearest one"
    ):
        device_named(None)
    assert device_named("h200").name == "H200"


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
    monkeypatch.setattr(devices, "at_hand", lambda: "cpu")
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
