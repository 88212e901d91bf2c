"""benchmarks/gpu_check.sh on a machine without a GPU: its table, and what becomes of parts that fail."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import REPOSITORY, environment

SCRIPT = REPOSITORY / "benchmarks" / "gpu_check.sh"


def loaded(name: str) -> ModuleType:
    """A script beside the one of the shell, as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def module() -> ModuleType:
    return loaded("gpu_check")


def check(*arguments: str, forked: bool = False) -> "subprocess.CompletedProcess[str]":
    own = environment(forked=forked)
    return subprocess.run([str(SCRIPT), *arguments], env=own, capture_output=True, text=True)


def part(folder: Path, module: ModuleType, text: str, limit_s: int = 60) -> list[dict[str, object]]:
    """The rows of a part with this body, which has ``file`` for its rows."""
    script = folder / "part.py"
    script.write_text(f"import json, sys, time\nfile = open(sys.argv[2], 'a')\n{text}\n")
    module.PARTS_FILE, module.PARTS["mine"] = script, (limit_s, ())
    return list(module.run_part("mine", False, {}, time.monotonic() + 600))


ROW = "file.write(json.dumps({'kind': 'fact', 'name': 'first', 'value': 1}) + chr(10)); file.flush()\n"


def test_a_part_that_fails_or_hangs_leaves_what_it_found_and_a_line_that_says_so(
    module: ModuleType, tmp_path: Path
) -> None:
    found = part(tmp_path, module, ROW + "raise ValueError('no such thing')")
    assert [row["kind"] for row in found] == ["fact", "failure", "time"]
    assert "ValueError: no such thing" in str(found[1]["why"]) and found[0]["part"] == "mine"
    found = part(tmp_path, module, ROW + "time.sleep(60)", limit_s=3)
    assert [row["kind"] for row in found] == ["fact", "failure", "time"] and found[1]["why"] == "stopped after 3 s"
    assert [row["kind"] for row in part(tmp_path, module, ROW)] == ["fact", "time"]


def test_a_part_without_its_packages_or_without_time_is_not_run(module: ModuleType) -> None:
    module.PARTS["mine"] = (60, ("torch", "no_such_package"))
    (row,) = module.run_part("mine", True, {}, time.monotonic() + 600)
    assert (row["kind"], row["why"]) == ("skipped", "needs no_such_package")
    module.PARTS["mine"] = (60, ())
    (row,) = module.run_part("mine", True, {}, time.monotonic() + 1)
    assert (row["kind"], row["why"]) == ("failure", "no time was left for it")
    assert "not run" in module.table([row | {"kind": "skipped"}]) and "FAILED" in module.table([row])


def test_all_parts_together_fit_into_nine_minutes_and_every_one_has_a_function(module: ModuleType) -> None:
    assert module.DEADLINE_S <= 540
    assert set(module.PARTS) == set(loaded("gpu_check_parts").PARTS)


def test_a_wrong_comparison_is_marked_and_a_speed_is_shown_with_its_share(module: ModuleType) -> None:
    rows = [
        {"kind": "check", "part": "p", "name": "good", "value": 1e-5, "limit": 1e-4, "ok": True},
        {"kind": "check", "part": "p", "name": "bad", "value": 1.0, "limit": 1e-4, "ok": False},
        {"kind": "speed", "part": "p", "name": "fast", "images_per_second": 12.0, "batch_size": 4, "dtype": "bf16"}
        | {"share_of_ceiling": 0.5, "peak_memory_gib": 1.0},
    ]
    lines = {line.split()[1]: line for line in module.table(rows).splitlines()}
    assert lines["good"].endswith("ok") and lines["bad"].endswith("WRONG") and "50 % of ceiling" in lines["fast"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "dance", "--cpu"], "the parts are machine, network"),
        (["--wheels", "/no/such/folder", "--cpu"], "is no folder"),
        (["--json", str(SCRIPT), "--cpu"], "exists, and nothing is overwritten"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], reason: str) -> None:
    done = check(*arguments)
    assert done.returncode != 0 and reason in done.stderr and "Traceback" not in done.stderr


def test_without_a_gpu_one_line_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = check()
    assert (
        done.returncode == 1 and done.stderr == "error: torch finds no GPU here; --cpu tests this script without one\n"
    )


@pytest.mark.long
def test_what_needs_torch_alone_passes_where_there_is_nothing_else(tmp_path: Path) -> None:
    """Modules that a machine with torch alone lacks cannot be imported."""
    absent = ("pydantic", "ruamel", "mlflow", "dvc", "optuna", "pandas", "pandera", "diffusers", "typer")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    target = tmp_path / "numbers.json"
    own = environment(forked=False) | {"PYTHONPATH": str(tmp_path)}
    command = [str(SCRIPT), "--cpu", "--only", "machine,network,samplers,processes,pair", "--json", str(target)]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert {row["part"] for row in rows if row["kind"] in ("check", "ceiling", "speed")} == {
        "machine",
        "network",
        "samplers",
        "processes",
        "pair",
    }
    assert all(row["ok"] for row in rows if row["kind"] == "check")


@pytest.mark.long
def test_the_jobs_of_the_bench_need_no_other_packages_than_their_parts_name(tmp_path: Path) -> None:
    absent = ("mlflow", "dvc", "optuna", "pandas", "pandera", "diffusers", "typer", "sklearn", "pyarrow", "grimp")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    own, target = environment(forked=False) | {"PYTHONPATH": str(tmp_path)}, tmp_path / "numbers.json"
    command = [str(SCRIPT), "--cpu", "--only", "train,sample,load", "--json", str(target)]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0 and "not run" not in done.stdout, done.stdout + done.stderr
    assert_speeds(json.loads(target.read_text())["rows"], {"train", "sample", "load"})


def assert_speeds(rows: list[dict[str, Any]], parts: set[str]) -> None:
    speeds = [row for row in rows if row["kind"] == "speed"]
    assert all(row["images_per_second"] > 0.0 for row in speeds)
    assert {row["part"] for row in speeds} == parts


@pytest.mark.long
def test_every_stage_and_every_other_job_of_the_bench_pass_at_tiny_size(tmp_path: Path) -> None:
    target = tmp_path / "numbers.json"
    done = check("--cpu", "--only", "stages,latents,encoders,vae", "--json", str(target), forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(target.read_text())["rows"]
    checks = {row["name"]: row for row in rows if row["kind"] == "check"}
    assert {"features of stage features", "latents of stage latents", "images of stage sample"} <= set(checks)
    assert checks["images of stage sample"]["value"] == 0.0, "the CPU in the GPU's place draws the same"
    assert_speeds(rows, {"latents", "encoders", "vae"})


def test_the_script_passes_shellcheck() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    subprocess.run([checker, str(SCRIPT)], check=True)


def test_a_folder_that_is_no_checkout_of_the_published_code_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT.parent / "published_step.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment(forked=False), capture_output=True, text=True)
    assert done.returncode == 1 and "is no checkout of the published code" in done.stderr
    assert "Traceback" not in done.stderr
