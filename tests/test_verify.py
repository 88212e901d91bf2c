"""Verification: the recorded vectors pass, anything wrong fails or is refused, and nothing is skipped."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import environment
from torch import Tensor

from sfd import cli
from sfd.errors import UserError
from sfd.models.lightningdit import LightningDiT
from sfd.models.published import config_from_published
from sfd.verify import SINGLE, TRAJECTORY, Check, report, verify

DATA = Path(__file__).parent / "data/conformance"
STEMS = sorted(str(file.with_suffix("")) for file in DATA.glob("*.safetensors"))
INPUTS = {"x0", "x1", "t", "y", "features", "noise", "sample_y", "images"}

Tensors = dict[str, Tensor]
Edit = Callable[[dict[str, Any], Tensors], None]


def write(stem: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    stem.with_suffix(".json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, stem.with_suffix(".safetensors"))
    return stem


def edited(folder: Path, name: str, edit: Edit) -> Path:
    """A recorded vector with something changed."""
    config = json.loads((DATA / f"{name}.json").read_text())
    tensors = load_file(DATA / f"{name}.safetensors")
    edit(config, tensors)
    return write(folder / name, config, tensors)


def failing(stem: Path) -> set[str]:
    return {name for name, check in verify(stem).items() if not check.ok}


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command's entry point in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["sfd", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def run_alone(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """``sfd verify`` in a process of its own."""
    return subprocess.run(["sfd", "verify", *arguments], env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, dict[str, Any]]]:
    """What ``sfd verify --json`` says of all recorded vectors, in a process of its own."""
    run = run_alone(*STEMS, "--json")
    assert run.returncode == 0, run.stderr
    parsed: dict[str, dict[str, dict[str, Any]]] = json.loads(run.stdout)
    return parsed


@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: Path(stem).name)
def test_every_recorded_vector_passes_and_each_of_its_tensors_is_recomputed(
    stem: str, results: dict[str, dict[str, dict[str, Any]]]
) -> None:
    assert len(STEMS) == 4
    tensors = load_file(f"{stem}.safetensors")
    quantities = {name for name in tensors if name not in INPUTS and not name.startswith(("state.", "guide."))}
    assert quantities <= set(results[stem])
    assert all(check["ok"] and check["error"] <= check["tolerance"] for check in results[stem].values())


def test_tolerances_are_those_of_the_vectors_readme(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    checks = results[str(DATA / "sfd_tiny")]
    assert checks["velocity"]["tolerance"] == checks["loss_repa"]["tolerance"] == SINGLE == 1e-5
    assert results[str(DATA / "texture_vae_tiny")]["reconstruction_of_mean"]["tolerance"] == 3e-5
    assert checks["sample_euler_points25_shift0.0"]["tolerance"] == TRAJECTORY == 1e-4
    assert checks["sample_dopri5_points50_shift0.0"]["tolerance"] == 5e-2


def test_the_table_has_a_row_for_every_quantity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, DATA / "semvae_tiny", DATA / "lightningdit_sync") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["vector", "quantity", "error", "tolerance"]
    rows = [line.split() for line in lines[1:]]
    assert ["semvae_tiny", "kl"] in [row[:2] for row in rows]
    assert ["lightningdit_sync", "velocity"] in [row[:2] for row in rows]
    assert {row[-1] for row in rows} == {"pass"}


def shift(name: str, amount: float) -> Edit:
    def edit(_config: dict[str, Any], tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] += amount

    return edit


@pytest.mark.parametrize(
    ("vector", "tensor", "amount", "expected"),
    [
        ("lightningdit_sync", "velocity", 1e-4, {"velocity"}),
        ("lightningdit_sync", "loss_cosine", 1e-4, {"loss_cosine"}),
        ("lightningdit_sync", "loss_velocity_mse", float("nan"), {"loss_velocity_mse"}),
        ("lightningdit_sync", "xt", float("inf"), {"xt"}),
        ("lightningdit_sync", "state.pos_embed", 0.1, {"pos_embed", "velocity"}),
        ("lightningdit_sync", "state.blocks.1.attn.qkv.weight", 0.1, {"velocity"}),
        ("semvae_tiny", "kl", 0.1, {"kl"}),
        ("semvae_tiny", "kl", float("inf"), {"kl"}),
        ("semvae_tiny", "state.encoder.0.weight", 0.1, {"mean", "logvar", "kl"}),
        ("semvae_tiny", "state.decoder.4.bias", 0.1, {"reconstruction_of_mean"}),
    ],
)
def test_one_changed_number_fails_and_the_quantity_is_named(
    vector: str, tensor: str, amount: float, expected: set[str], tmp_path: Path
) -> None:
    wrong = failing(edited(tmp_path, vector, shift(tensor, amount)))
    assert expected <= wrong
    if not tensor.startswith("state."):
        assert wrong == expected


def scaled(factor: float, recorded: float = 1.0) -> Edit:
    """A SemVAE whose decoder gives ``factor`` times as large numbers; those in the file are off by the factor ``recorded``."""

    def edit(_config: dict[str, Any], tensors: Tensors) -> None:
        for name in ("state.decoder.4.weight", "state.decoder.4.bias"):
            tensors[name] = tensors[name] * factor
        tensors["reconstruction_of_mean"] = tensors["reconstruction_of_mean"] * (factor * recorded)

    return edit


def test_errors_count_relative_to_the_size_of_the_recorded_numbers(tmp_path: Path) -> None:
    for factor in (1e4, 1.0, 1e-6):
        assert not failing(edited(tmp_path, "semvae_tiny", scaled(factor)))
        assert not failing(edited(tmp_path, "semvae_tiny", scaled(factor, recorded=1.0 + 5e-6)))
        assert failing(edited(tmp_path, "semvae_tiny", scaled(factor, 1.0 + 5e-5))) == {"reconstruction_of_mean"}
    assert not failing(edited(tmp_path, "semvae_tiny", scaled(0.0)))
    assert failing(edited(tmp_path, "semvae_tiny", scaled(1.0, recorded=0.0))) == {"reconstruction_of_mean"}


def test_a_failure_is_exit_status_1_and_FAIL_in_the_table_and_null_in_json_where_no_number_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = edited(tmp_path, "semvae_tiny", shift("mean", float("nan")))
    assert run_main(monkeypatch, stem, DATA / "lightningdit_sync") == 1
    failed = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert [row[:2] for row in failed] == [["semvae_tiny", "mean"]]
    assert run_main(monkeypatch, stem, "--json") == 1
    checks = json.loads(capsys.readouterr().out)[str(stem)]
    assert checks["mean"] == {"error": None, "tolerance": SINGLE, "ok": False}
    assert checks["logvar"]["ok"] is True


def test_a_failing_vector_ends_the_real_command_with_status_1(tmp_path: Path) -> None:
    stem = edited(tmp_path, "lightningdit_sync", shift("velocity", 1.0))
    run = run_alone(stem)
    assert run.returncode == 1
    assert any("velocity" in line and line.endswith("FAIL") for line in run.stdout.splitlines())


def test_a_check_passes_up_to_its_tolerance_and_never_with_nan_or_infinity() -> None:
    assert Check(1e-5, 1e-5).ok and Check(0.0, 0.0).ok
    assert not Check(1.1e-5, 1e-5).ok
    assert not Check(float("nan"), 1.0).ok and not Check(float("inf"), float("inf")).ok
    assert "FAIL" in report({"a": {"b": Check(float("nan"), 1.0)}})


def put(name: str) -> Edit:
    return lambda _config, tensors: tensors.update({name: torch.zeros(4)})


def drop(*names: str) -> Edit:
    return lambda _config, tensors: [tensors.pop(name) for name in names] and None


def configure(**changes: Any) -> Edit:
    return lambda config, _tensors: config.update(changes)


def model(**changes: Any) -> Edit:
    return lambda config, _tensors: config["model"].update(changes)


def only_weights(_config: dict[str, Any], tensors: Tensors) -> None:
    for name in [name for name in tensors if not name.startswith("state.")]:
        del tensors[name]


def only_weights_and_inputs(_config: dict[str, Any], tensors: Tensors) -> None:
    for name in [name for name in tensors if not name.startswith("state.") and name not in INPUTS]:
        del tensors[name]


def no_weights(_config: dict[str, Any], tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("state.")]:
        del tensors[name]


def run(**settings: Any) -> Edit:
    def edit(config: dict[str, Any], tensors: Tensors) -> None:
        config["runs"] = {"sample_x": {"method": "euler", "time_points": 3} | settings}
        for name, like in (("noise", "x0"), ("sample_y", "y"), ("sample_x", "x1")):
            tensors[name] = tensors[like].clone()

    return edit


REFUSED: dict[str, tuple[str, Edit, str]] = {
    "unknown tensor": ("lightningdit_sync", put("foo"), "not recomputed.*: foo"),
    "unknown tensor of SemVAE": ("semvae_tiny", put("foo"), "not recomputed.*: foo"),
    "trajectory without a run": ("lightningdit_sync", put("sample_y2"), "not recomputed.*: sample_y2"),
    "REPA of a model without REPA": ("lightningdit_sync", put("loss_repa"), "not recomputed.*: loss_repa"),
    "unknown guide weights": ("semvae_tiny", put("guide.x"), "not recomputed.*: guide.x"),
    "only weights": ("semvae_tiny", only_weights, "features"),
    "nothing to recompute": ("semvae_tiny", only_weights_and_inputs, "no tensor to recompute"),
    "nothing but tables to recompute": ("lightningdit_sync", only_weights, "no tensor to recompute"),
    "no weights": ("lightningdit_sync", no_weights, "Missing key"),
    "missing input": ("lightningdit_sync", drop("x0"), "tensor `x0` is missing"),
    "missing times": ("lightningdit_sync", drop("t"), "not recomputed.*: loss_cosine, loss_velocity_mse, velocity, xt"),
    "missing features": ("semvae_tiny", drop("features"), "tensor `features` is missing"),
    "missing weight": ("semvae_tiny", drop("state.encoder.0.bias"), "Missing key.*encoder.0.bias"),
    "extra weight": ("semvae_tiny", put("state.extra"), "Unexpected key.*extra"),
    "misfit width": ("semvae_tiny", configure(latent_dim=6), "size mismatch"),
    "misfit depth": ("lightningdit_sync", model(depth=2), "Unexpected key"),
    "indivisible heads": ("semvae_tiny", configure(heads=5), "divisible"),
    "no heads": ("lightningdit_sync", model(num_heads=0), "zero"),
    "a word for a number": ("lightningdit_sync", model(hidden_size="wide"), "do not fit"),
    "a class out of range": ("lightningdit_sync", model(num_classes=2), "size mismatch"),
    "model is no mapping": ("lightningdit_sync", configure(model=3), "do not fit"),
    "unknown model key": ("lightningdit_sync", model(use_moe=True), "unknown keys .*use_moe"),
    "missing model key": ("lightningdit_sync", configure(model={"input_size": 8}), "missing keys .*depth"),
    "runs is no mapping": ("lightningdit_sync", configure(runs=[1]), "do not fit"),
    "run without its tensor": (
        "lightningdit_sync",
        configure(runs={"sample_x": {"method": "euler", "time_points": 3}}),
        "tensor `sample_y` is missing",
    ),
    "unknown method": ("lightningdit_sync", run(method="ddim"), "sampler 'ddim'"),
    "unknown setting of a run": ("lightningdit_sync", run(steps=4), "run sample_x has keys .*: steps"),
    "unknown interval": ("lightningdit_sync", run(cfg_scale=2.0, interval_mode="all"), "interval_mode is 'all'"),
    "no step": ("lightningdit_sync", run(time_points=1), "num_steps is 0"),
    "no weak model": ("lightningdit_sync", run(scale_tex=1.5), "guide_model and its weights"),
    "unknown kind": ("lightningdit_sync", lambda config, _: config.clear(), "not a vector of a known kind"),
}


@pytest.mark.parametrize(("vector", "edit", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_verified_is_refused_with_its_reason(
    vector: str, edit: Edit, named: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named) as error:
        verify(edited(tmp_path, vector, edit))
    assert "\n" not in str(error.value)


def test_a_trajectory_of_another_shape_fails_with_both_shapes(tmp_path: Path) -> None:
    def cut(_config: dict[str, Any], tensors: Tensors) -> None:
        tensors["velocity"] = tensors["velocity"][:2]

    with pytest.raises(UserError, match=r"velocity has shape \(4, 8, 8, 8\) here, but \(2, 8, 8, 8\) in the file"):
        verify(edited(tmp_path, "lightningdit_sync", cut))


def broken_json(folder: Path) -> Path:
    stem = edited(folder, "semvae_tiny", lambda *_: None)
    stem.with_suffix(".json").write_text('{"hidden_dim": ')
    return stem


def json_list(folder: Path) -> Path:
    stem = edited(folder, "semvae_tiny", lambda *_: None)
    stem.with_suffix(".json").write_text("[]")
    return stem


def cut_tensors(folder: Path) -> Path:
    stem = edited(folder, "semvae_tiny", lambda *_: None)
    tensors = stem.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    return stem


def no_tensors(folder: Path) -> Path:
    stem = edited(folder, "semvae_tiny", lambda *_: None)
    stem.with_suffix(".safetensors").unlink()
    return stem


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: folder / "nowhere", "nowhere.json does not exist"),
        (lambda folder: edited(folder, "semvae_tiny", lambda *_: None).with_suffix(".json"), "without the ending"),
        (no_tensors, "semvae_tiny.safetensors does not exist"),
        (broken_json, "cannot be read"),
        (json_list, "must hold a JSON object"),
        (cut_tensors, "cannot be read"),
        (lambda folder: edited(folder, "semvae_tiny", put("foo")), "foo"),
        (lambda folder: edited(folder, "lightningdit_sync", model(depth=2)), "do not fit each other"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_status_2(
    make: Callable[[Path], Path],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, make(tmp_path)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and named in output.err


def test_a_mistake_ends_the_real_command_without_a_traceback(tmp_path: Path) -> None:
    run = run_alone(broken_json(tmp_path))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


BASE = {
    "input_size": 4,
    "patch_size": 1,
    "in_channels": 5,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
    "use_qknorm": True,
    "use_swiglu": True,
    "use_rope": True,
    "use_rmsnorm": True,
    "use_repa": True,
    "repa_depth": 1,
    "repa_projector_dim": 8,
    "semantic_chans": 2,
    "semfirst_delta_t": 0.3,
}
DIT = {"use_qknorm": False, "use_swiglu": False, "use_rope": False, "use_rmsnorm": False, "wo_shift": True}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "no qk-norm": {"use_qknorm": False},
    "LayerNorm": {"use_rmsnorm": False},
    "no shift": {"wo_shift": True},
    "patch 2": {"patch_size": 2, "use_repa": False},
    "semantics without an offset": {"semfirst_delta_t": 0.0},
    "no repa": {"use_repa": False},
    "no null class": {"class_dropout_prob": 0.0},
    "plain DiT": DIT | {"use_repa": False, "semantic_chans": 0, "semfirst_delta_t": 0.0, "patch_size": 2},
}


def record(stem: Path, published: dict[str, Any]) -> Tensors:
    """Writes a vector of our own model with random weights. Schedule, path and loss are written out once more here."""
    random = torch.Generator().manual_seed(5)
    network = LightningDiT(config_from_published(published)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    tau, semantic = published["semfirst_delta_t"], published["semantic_chans"]
    x0, x1 = torch.randn(2, 4, 5, 4, 4, generator=random)
    t, y = torch.tensor([0.05, 0.4, 0.7, 0.95]), torch.tensor([0, 1, 2, 2])
    t_tex, t_sem = (t * (1 + tau) - tau).clamp(0, 1), (t * (1 + tau)).clamp(0, 1)
    at = torch.stack([t_tex] * (5 - semantic) + [t_sem] * semantic, dim=1)[:, :, None, None]
    xt = at * x1 + (1 - at) * x0
    repa = published["use_repa"]
    with torch.no_grad():
        velocity, projection = network(xt, t_tex, t_sem, y, with_projection=repa)
    squared = (velocity - x1 + x0).square()
    squared[:, 5 - semantic :] *= 2
    cosine = torch.cosine_similarity(velocity, x1 - x0, dim=1)
    tensors = {"x0": x0, "x1": x1, "t": t, "y": y, "t_tex": t_tex, "t_sem": t_sem, "xt": xt, "velocity": velocity}
    tensors |= {"loss_velocity_mse": squared.mean((1, 2, 3)), "loss_cosine": 1 - cosine.mean((1, 2))}
    if repa:
        features = torch.randn(4, 768, 4, 4, generator=random)
        alignment = torch.cosine_similarity(projection.transpose(1, 2).reshape(4, 768, 4, 4), features, dim=1)
        tensors |= {"features": features, "repa_projection": projection, "loss_repa": 1 - alignment.mean((1, 2))}
    weights = {f"state.{name}": value for name, value in network.state_dict().items()}
    write(stem, {"model": published}, tensors | weights)
    return tensors


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_vector_of_another_configuration_round_trips(changes: dict[str, Any], tmp_path: Path) -> None:
    tensors = record(tmp_path / "own", BASE | changes)
    checks = verify(tmp_path / "own")
    assert set(checks) >= set(tensors) - INPUTS
    assert all(check.ok for check in checks.values()), checks
    assert ("repa_projection" in checks) == (BASE | changes)["use_repa"]


@pytest.mark.parametrize("changes", [{"use_rope": False}, {"wo_shift": True}, {"semfirst_delta_t": 0.0}, {"depth": 1}])
def test_the_same_weights_under_another_configuration_do_not_pass(changes: dict[str, Any], tmp_path: Path) -> None:
    record(tmp_path / "own", BASE)
    (tmp_path / "own.json").write_text(json.dumps({"model": BASE | changes}))
    with pytest.raises(UserError, match="do not fit each other"):
        verify(tmp_path / "own")


def test_another_offset_with_the_same_weights_fails_by_name(tmp_path: Path) -> None:
    record(tmp_path / "own", BASE)
    (tmp_path / "own.json").write_text(json.dumps({"model": BASE | {"semfirst_delta_t": 0.4}}))
    assert {"t_tex", "t_sem", "xt", "velocity"} <= failing(tmp_path / "own")
