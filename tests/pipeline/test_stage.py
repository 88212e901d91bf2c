"""Stages: locks, resumable work, publishing, fingerprints and one-line errors. As a script, this file is a slow stage."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from sfd.errors import UserError
from sfd.network_files import write_tensors
from sfd.params import Params, parse_params
from sfd.pipeline import code
from sfd.pipeline.inputs import COMMANDS, STAGES, digest_path, published_fingerprint, stage_fingerprint
from sfd.pipeline.scan import write_stage_codes
from sfd.pipeline.stage import Stage, stage
from sfd.tuning.space import upstream
from sfd.workspace import Workspace

HERE = Workspace(Path())

REPOSITORY = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"
"""An MLflow store that is away: stages go on without it."""


def run_slow_stage(pause_s: float) -> None:
    """Writes a file, waits, writes another one; says where it is."""
    with stage("prepare") as s:
        seen = (s.out / "first.txt").exists()
        (s.out / "first.txt").write_text("1")
        print("continued" if seen else "began", os.getpid(), sep="\n", flush=True)
        time.sleep(pause_s)
        (s.out / "second.txt").write_text("2")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder with the default parameters, as the current folder."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def change(key: str, value: object) -> None:
    """Changes a dotted key of params.yaml; None removes it."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    node: dict[str, Any] = tree
    *sections, last = key.split(".")
    for section in sections:
        node = node[int(section)] if isinstance(node, list) else node[section]
    node[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def run(name: str, text: str = "result", **files: str) -> Stage:
    """A stage in this process that writes small files."""
    with stage(name) as s:
        (s.out / "result.txt").write_text(text)
        for file, value in files.items():
            (s.out / file).write_text(value)
    return s


def interrupt(name: str) -> None:
    """A stage that is ended by the keyboard after half of its work."""
    with pytest.raises(KeyboardInterrupt), stage(name) as s:
        (s.work / "checkpoint.pt").write_text("half")
        (s.out / "half.txt").write_text("half")
        raise KeyboardInterrupt


def start(pause_s: float) -> "subprocess.Popen[str]":
    from support import environment  # not in the processes that run this file as a script

    command = ["python", __file__, str(pause_s)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def next_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def exit_line(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of a stage that must end with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending, stage(name):
        pytest.fail("the stage must not begin")
    assert ending.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {name}: ")
    return lines[0]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only error among what was printed."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


# --- disks that are full ---

MANY = 300_000


def write_safetensors(file: Path) -> None:
    save_file({"a": torch.randn(MANY)}, file)


def write_table(file: Path) -> None:
    pd.DataFrame(torch.randn(MANY // 10, 1).numpy()).to_csv(file)


def write_picture(file: Path) -> None:
    Image.fromarray(torch.randint(256, (400, 400), dtype=torch.uint8).numpy()).save(file, "png")


@pytest.mark.parametrize("write", [write_safetensors, write_table, write_picture])
def test_a_disk_that_is_full_ends_any_stage_in_one_line_and_the_next_run_continues(
    write: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run("prepare")
    change("data.max_pixels", 1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(SystemExit) as ending, stage("prepare") as s:
        (s.out / "first.txt").write_text("1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            write(s.out / "large")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ending.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning"))
    assert (
        line.startswith("error: prepare: ") and "cannot be written (File too large)" in line and "GiB are free" in line
    )
    with stage("prepare") as s:
        assert (s.out / "first.txt").exists()
        write(s.out / "large")
    assert Path("results/prepare/large").exists()


def test_half_of_a_file_of_tensors_does_not_stay_on_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SafetensorError, match="File too large"):
            write_tensors(tmp_path / "large", {"a": torch.randn(MANY)})
        write_tensors(tmp_path / "small", {"a": torch.randn(10)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir() if file.name in ("large", "small")] == ["small"]


# --- locks and kills, with real processes ---


def test_a_second_process_is_sent_away_with_the_owners_pid_and_after_a_kill_the_next_one_continues() -> None:
    owner = start(pause_s=60)
    try:
        assert next_line(owner) == "began"
        second = start(pause_s=0)
        errors = second.communicate(timeout=60)[1]
        assert second.returncode == 2
        assert f"error: prepare: another process works on this stage (pid {next_line(owner)}," in errors
        assert "Traceback" not in errors
    finally:
        owner.kill()
        owner.communicate()
    assert not Path("results/prepare").exists()
    third = start(pause_s=0)
    assert next_line(third) == "continued"
    third.communicate(timeout=60)
    assert third.returncode == 0
    assert Path("results/prepare/second.txt").read_text() == "2"


def test_sigterm_ends_a_stage_with_143_and_leaves_its_work_to_continue() -> None:
    process = start(pause_s=60)
    assert next_line(process) == "began"
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert not Path("results/prepare").exists()
    assert Path(".sfd/work/prepare/out/first.txt").read_text() == "1"
    with stage("prepare") as s:
        assert (s.out / "first.txt").exists()


def test_a_lock_that_an_orphan_of_a_killed_stage_holds_for_a_moment_is_waited_for() -> None:
    holder = "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
    holder += "print(1, flush=True); time.sleep(2)"
    Path(".sfd/work/prepare").mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Path(".sfd/work/prepare/owner").write_text(f"{gone.pid}\n")
    orphan = subprocess.Popen(
        [sys.executable, "-c", holder, ".sfd/work/prepare.lock"], stdout=subprocess.PIPE, text=True
    )
    assert next_line(orphan) == "1"
    run("prepare")
    orphan.wait()
    assert Path("results/prepare/result.txt").exists()


def test_a_lock_that_another_machines_process_holds_names_the_machine_and_is_not_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(".sfd/work/prepare").mkdir(parents=True)
    Path(".sfd/work/prepare/owner").write_text("1 machine-7\n")
    with FileLock(".sfd/work/prepare.lock"):
        assert "another process works on this stage (pid 1 on machine-7, folder" in exit_line("prepare", capsys)
    run("prepare")
    assert Path("results/prepare/result.txt").exists()


# --- continuing or starting over ---


def test_an_interrupted_stage_continues_silently_when_nothing_changed(capsys: pytest.CaptureFixture[str]) -> None:
    interrupt("prepare")
    capsys.readouterr()
    with stage("prepare") as s:
        assert (s.work / "checkpoint.pt").read_text() == "half"
        assert (s.out / "half.txt").exists()
        assert "starts from the beginning" not in capsys.readouterr().err


def set_aside() -> list[Path]:
    return sorted(Path(".sfd/old").glob("*"))


def test_work_of_other_parameters_is_set_aside_and_its_place_named(capsys: pytest.CaptureFixture[str]) -> None:
    interrupt("prepare")
    change("data.holdout_fraction", 0.3)
    with stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()
        assert list(s.out.iterdir()) == []
    (aside,) = set_aside()
    assert (aside / "checkpoint.pt").read_text() == "half" and (aside / "out" / "half.txt").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if "changed since the interrupted run" in line]
    assert len(lines) == 1 and "so it starts from the beginning" in lines[0] and f"is kept in {aside}" in lines[0]


def test_work_that_was_set_aside_goes_on_when_the_parameters_are_changed_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt("prepare")
    change("data.holdout_fraction", 0.3)
    with pytest.raises(KeyboardInterrupt), stage("prepare") as s:
        (s.work / "checkpoint.pt").write_text("other")
        raise KeyboardInterrupt
    change("data.holdout_fraction", 0.25)
    capsys.readouterr()
    with stage("prepare") as s:
        assert (s.work / "checkpoint.pt").read_text() == "half" and (s.out / "half.txt").exists()
    assert "continues the work of before, which was set aside" in capsys.readouterr().err
    (aside,) = set_aside()
    assert (aside / "checkpoint.pt").read_text() == "other"


def test_of_the_work_that_was_set_aside_the_newest_of_each_stage_is_kept() -> None:
    run("prepare")
    interrupt("judge")
    change("judges.0.training.num_steps", 5)
    interrupt("judge")
    first = set_aside()
    interrupt("prepare")
    for fraction in (0.3, 0.4):
        change("data.holdout_fraction", fraction)
        interrupt("prepare")
    assert len(first) == 1 and len(set_aside()) == 2 and first[0] in set_aside()


def test_work_in_which_nothing_was_done_is_not_set_aside(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), stage("prepare"):
        raise KeyboardInterrupt
    change("data.holdout_fraction", 0.3)
    run("prepare")
    assert not Path(".sfd/old").exists() and "so it starts from the beginning\n" in capsys.readouterr().err


def test_parameters_of_other_stages_do_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    interrupt("prepare")
    change("diffusion.training.num_steps", 7)
    with stage("prepare") as s:
        assert (s.work / "checkpoint.pt").exists()
    assert "changed since" not in capsys.readouterr().err


def test_work_of_another_upstream_result_is_not_continued_even_if_its_inputs_are_the_same() -> None:
    run("prepare", "images")
    interrupt("judge")
    run("prepare", "images")
    with pytest.raises(KeyboardInterrupt), stage("judge") as s:
        assert (s.work / "checkpoint.pt").exists()
        raise KeyboardInterrupt
    run("prepare", "other images, by other code")
    with stage("judge") as s:
        assert not (s.work / "checkpoint.pt").exists()


def test_options_of_runtime_may_change_while_a_stage_is_interrupted_and_while_it_runs() -> None:
    run("prepare")
    interrupt("judge")
    change("runtime.judge.log_every", 7)
    with stage("judge") as s:
        assert (s.work / "checkpoint.pt").exists()
        change("runtime.judge.log_every", 8)
    assert HERE.result("judge").is_dir()


def test_other_code_or_another_library_starts_the_work_anew_and_code_of_other_stages_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt("prepare")
    digest = code._digest

    def edit(module: str) -> None:
        monkeypatch.setattr(code, "_digest", lambda name: digest(name) + "x" * (name == module))

    edit("sfd.generation.samples")
    with pytest.raises(KeyboardInterrupt), stage("prepare") as s:
        assert (s.work / "checkpoint.pt").exists()
        raise KeyboardInterrupt
    edit("sfd.data.prepare")
    with pytest.raises(KeyboardInterrupt), stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()
        (s.work / "checkpoint.pt").touch()
        raise KeyboardInterrupt
    monkeypatch.setattr(code, "version", lambda _name: "0.0")
    with stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()


def test_work_that_was_emptied_by_half_is_not_continued() -> None:
    interrupt("prepare")
    Path(".sfd/work/prepare/fingerprint").unlink()  # goes first
    with stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()


def test_work_whose_result_was_published_already_is_not_continued() -> None:
    interrupt("prepare")
    shutil.move(".sfd/work/prepare/out", "published")  # killed before the work was removed
    with stage("prepare") as s:
        assert not (s.work / "checkpoint.pt").exists()
        assert s.out.is_dir()


# --- publishing ---


def test_a_result_is_absent_until_it_is_whole_and_then_its_work_is_gone() -> None:
    with stage("prepare") as s:
        (s.out / "a.txt").write_text("a")
        assert not Path("results").exists()
    assert sorted(path.name for path in Path("results/prepare").iterdir()) == ["a.txt", "fingerprint.json"]
    assert not Path(".sfd/work/prepare").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "`data.holdout_fraction` in params.yaml changed from 0.25 to 0.3 while the stage ran"),
        ("data: [", "what it was made from cannot be read any more (params.yaml is not valid YAML"),
    ],
)
def test_parameters_that_change_while_a_stage_runs_keep_the_result_back_until_they_are_as_they_were(
    capsys: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    run("prepare", "old")
    before = Path("params.yaml").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending, stage("prepare") as s:
        (s.out / "result.txt").write_text("new")
        if text is None:
            change("data.holdout_fraction", 0.3)
        else:
            Path("params.yaml").write_text(text)
    line = error_line(capsys)
    assert ending.value.code == 2 and line.startswith("error: prepare: ") and reason in line
    assert "the finished work is kept in .sfd/work/prepare" in line
    assert Path("results/prepare/result.txt").read_text() == "old"
    Path("params.yaml").write_text(before)
    with stage("prepare") as s:
        assert (s.out / "result.txt").read_text() == "new"
    assert Path("results/prepare/result.txt").read_text() == "new"


def refused_at_the_end(name: str, what: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a stage during which something happens."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending, stage(name):
        what()
    assert ending.value.code == 2 and not HERE.result(name).exists()
    return error_line(capsys)


def test_other_inputs_and_code_that_change_while_a_stage_runs_keep_the_result_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("prepare")
    Path("weights.pth").write_bytes(b"weights")
    with_judge_file(Path("weights.pth"))
    line = refused_at_the_end("judge", lambda: Path("weights.pth").write_bytes(b"Weights"), capsys)
    assert "judge: weights.pth changed while the stage ran" in line
    record = HERE.result("prepare") / "fingerprint.json"
    other = json.dumps(json.loads(record.read_text()) | {"content": "other"})
    line = refused_at_the_end("judge", lambda: record.write_text(other), capsys)
    assert "the result of stage `prepare` changed while the stage ran" in line
    with monkeypatch.context() as patch:
        line = refused_at_the_end("judge", lambda: patch.setattr(code, "version", lambda _name: "0.0"), capsys)
    assert "the code or library `PIL` changed while the stage ran" in line
    run("judge")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"# edited", "the code or library `sfd.pixels` changed while the stage ran"),
        (None, "what it was made from cannot be read any more (pixels.py: No such file or directory)"),
    ],
)
def test_a_module_that_is_edited_or_removed_while_a_stage_runs_keeps_the_result_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: bytes | None, reason: str
) -> None:
    known = code._source

    def changed(module: str) -> bytes:
        if module != "sfd.pixels":
            return known(module)
        if source is None:
            raise FileNotFoundError(2, "No such file or directory", "pixels.py")
        return source

    run("prepare")
    with monkeypatch.context() as patch:
        line = refused_at_the_end("judge", lambda: patch.setattr(code, "_source", changed), capsys)
    assert reason in line
    run("judge")


def test_images_that_come_while_they_are_read_keep_the_manifest_back(capsys: pytest.CaptureFixture[str]) -> None:
    change("data.source", "folder")
    Path("images/a").mkdir(parents=True)
    Path("images/a/1.png").write_bytes(b"1")
    line = refused_at_the_end("prepare", lambda: Path("images/a/2.png").write_bytes(b"2"), capsys)
    assert "the list of images changed while the stage ran" in line
    run("prepare")


def test_dvc_does_not_begin_a_stage_whose_code_changed_since_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stage_codes(HERE)
    run("prepare")
    record = HERE.code("judge")
    stale = json.loads(record.read_text()) | {"sfd.seeding": "other"}
    record.write_text(json.dumps(stale))
    monkeypatch.setenv("DVC_STAGE", "judge")
    assert (
        "the code or library `sfd.seeding` changed since stage `scan` looked at it; run `dvc repro scan`, then this"
        in exit_line("judge", capsys)
    )
    monkeypatch.delenv("DVC_STAGE")
    run("judge")


@pytest.mark.long
def test_dvc_records_nothing_of_a_stage_whose_parameters_changed_while_it_ran(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support import Project, small_params  # not in the processes that run this file as a script

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    made = Project(tmp_path_factory.mktemp("edited"), small_params())
    script = made.folder / "stages" / "prepare.py"
    edit = "    path.write_text(path.read_text().replace('holdout_fraction: 0.25', 'holdout_fraction: 0.3'))\n"
    script.write_text(f"{script.read_text()}    from pathlib import Path\n    path = Path('params.yaml')\n{edit}")
    status, output = made.run("dvc", "repro", "prepare")
    assert status != 0 and "Traceback" not in output
    assert "error: prepare: `data.holdout_fraction` in params.yaml changed from 0.25 to 0.3" in output
    assert not made.result("prepare").exists()
    assert "prepare" not in yaml.safe_load((made.folder / "dvc.lock").read_text())["stages"]
    status, output = made.run("dvc", "repro", "prepare")
    assert status == 0, output
    recorded = yaml.safe_load((made.folder / "dvc.lock").read_text())["stages"]["prepare"]["params"]["params.yaml"]
    assert recorded["data"]["holdout_fraction"] == 0.3


def test_an_old_result_is_replaced_whole() -> None:
    run("prepare", "old", only_old="x")
    run("prepare", "new")
    assert Path("results/prepare/result.txt").read_text() == "new"
    assert not Path("results/prepare/only_old").exists()


def test_a_stage_that_fails_leaves_the_old_result(capsys: pytest.CaptureFixture[str]) -> None:
    run("prepare", "old")
    with pytest.raises(SystemExit) as ending, stage("prepare"):
        raise UserError("no image is left; check data.root")
    assert ending.value.code == 2
    assert "error: prepare: no image is left; check data.root\n" in capsys.readouterr().err
    assert Path("results/prepare/result.txt").read_text() == "old"


def test_a_kill_between_the_two_renames_of_a_replacement_does_no_harm() -> None:
    run("prepare", "old")
    interrupt("prepare")
    shutil.move("results/prepare", ".sfd/work/prepare/replaced")
    run("prepare", "new")
    run("prepare", "newer")
    assert Path("results/prepare/result.txt").read_text() == "newer"


# --- errors ---


def test_a_missing_upstream_result_is_one_line_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the result of stage `prepare` is missing" in exit_line("judge", capsys)
    run("prepare")
    run("judge")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: [", "not valid YAML"),
        ("just text", "must be a mapping"),
        ("seed: 0", "key `data` is missing"),
    ],
)
def test_a_wrong_params_file_is_one_line_and_exit_status_2(
    capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    Path("params.yaml").write_text(text)
    assert reason in exit_line("prepare", capsys)
    assert not Path(".sfd").exists()


def test_a_value_that_breaks_its_rule_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    change("data.holdout_fraction", 1.5)
    assert "`data.holdout_fraction` is 1.5" in exit_line("prepare", capsys)


def test_a_misspelt_key_is_one_line_that_names_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    change("data.miror", True)
    line = exit_line("prepare", capsys)
    assert "unknown key `data.miror`" in line and "`data.mirror`" in line


def test_outside_a_project_folder_a_stage_says_where_to_run_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    line = exit_line("prepare", capsys)
    assert (
        f"there is no params.yaml in {tmp_path / 'elsewhere'} or a folder above it; run in the project's folder" in line
    )
    assert list(Path().iterdir()) == []


def test_a_stage_that_is_started_in_a_subfolder_makes_the_same_result_with_the_same_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change("data.source", "folder")
    change("data.root", "images")
    Path("images").mkdir()
    run("prepare")
    with_judge_file(Path("weights.pth"))
    Path("weights.pth").write_bytes(b"weights")
    at_root = stage_fingerprint(HERE, "judge", HERE.load_params())
    (tmp_path / "images" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "images" / "deep")
    workspace = Workspace.find()
    params = workspace.load_params()
    assert stage_fingerprint(workspace, "judge", params) == at_root
    with stage("judge") as s:
        assert s.upstream("prepare") == Path("../../results/prepare") and s.upstream("prepare").is_dir()
        assert s.workspace.resolve_paths(params).first_judge.file == Path("../../weights.pth")
        assert s.workspace.resolve_paths(params.data).root == "../../images"
        assert s.params.first_judge.file == Path("weights.pth"), (
            "what is recorded does not depend on the working folder"
        )
        assert s.workspace.name_of(s.upstream("prepare")) == "results/prepare"
    assert json.loads((tmp_path / "results/judge/fingerprint.json").read_text())["fingerprint"] == at_root
    assert list(Path().iterdir()) == []


def test_a_mistake_in_the_code_is_not_dressed_up_as_the_users() -> None:
    with pytest.raises(ZeroDivisionError), stage("prepare"):
        raise ZeroDivisionError


# --- fingerprints ---


def with_judge_file(file: Path) -> Params:
    change("judges", [{"kind": "inception", "source": "file", "name": "inception", "file": str(file)}])
    change("register.gates", {})
    return HERE.load_params()


def test_a_changed_gate_reruns_no_stage() -> None:
    assert not [
        name for name, inputs in STAGES.items() if any("register.gates".startswith(key) for key in inputs.params)
    ]


def test_the_content_of_a_weights_file_is_part_of_the_fingerprint() -> None:
    run("prepare")
    file = Path("weights.pth")
    file.write_bytes(b"weights")
    params = with_judge_file(file)
    first = stage_fingerprint(HERE, "judge", params)
    os.utime(file, (0, 0))
    assert stage_fingerprint(HERE, "judge", params) == first
    file.write_bytes(b"Weights")
    assert stage_fingerprint(HERE, "judge", params) != first


def test_a_missing_weights_file_is_one_line_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    run("prepare")
    with_judge_file(Path("nowhere.pth"))
    assert "nowhere.pth does not exist, but params.yaml names it" in exit_line("judge", capsys)


def test_a_folder_is_digested_by_the_names_and_content_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a").write_text("1")
    (folder / "b").write_text("2")
    first = digest_path(folder)
    (folder / "c.pyc").write_text("compiled")
    assert digest_path(folder) == first
    (folder / "b").write_text("3")
    assert digest_path(folder) != first
    (folder / "b").write_text("2")
    (folder / "b").rename(folder / "d")
    assert digest_path(folder) != first


def test_a_result_with_content_passes_that_on_and_not_options_that_left_it_the_same() -> None:
    def fingerprint_with(content: str) -> str:
        with stage("prepare") as s:
            s.content.append(content)
        return published_fingerprint(HERE, "prepare")

    first = fingerprint_with("digest of the images")
    assert fingerprint_with("digest of the images") == first
    assert fingerprint_with("digest of other images") != first
    change("seed", 5)
    assert fingerprint_with("digest of the images") == first


def test_every_stage_fingerprint_depends_on_each_of_its_parameters_and_no_other() -> None:
    for name in STAGES:
        Path("results", name).mkdir(parents=True)
        Path("results", name, "fingerprint.json").write_text('{"fingerprint": "x"}')
    before = {name: stage_fingerprint(HERE, name, HERE.load_params()) for name in STAGES}
    change("schedule.tau", 0.55)
    after = {name: stage_fingerprint(HERE, name, HERE.load_params()) for name in STAGES}
    assert {name for name in STAGES if before[name] != after[name]} == {"schedule", "tune"}
    change("seed", 9)
    seeded = {name: stage_fingerprint(HERE, name, HERE.load_params()) for name in STAGES}
    assert {name for name in STAGES if seeded[name] != after[name]} == {
        name for name, inputs in STAGES.items() if "seed" in inputs.params
    }


def fingerprint_of_diffusion() -> str:
    return stage_fingerprint(HERE, "diffusion", HERE.load_params(), ())


def test_the_model_to_start_from_takes_part_by_its_content_or_its_registered_version() -> None:
    change("diffusion.init_from", "weights")
    with pytest.raises(UserError, match="weights does not exist"):
        fingerprint_of_diffusion()
    Path("weights").mkdir()
    Path("weights/model.safetensors").write_text("1")
    first = fingerprint_of_diffusion()
    assert fingerprint_of_diffusion() == first
    Path("weights/model.safetensors").write_text("2")
    assert fingerprint_of_diffusion() != first

    change("diffusion.init_from", "models:/digits@champion")
    with pytest.raises(UserError, match="which version models:/digits@champion means is not known .*run `dvc repro"):
        fingerprint_of_diffusion()
    found = {"init_from": "models:/digits@champion", "version": "3", "run_id": "a"}
    HERE.init_from.parent.mkdir(parents=True)
    HERE.init_from.write_text(json.dumps(found))
    third = fingerprint_of_diffusion()
    assert fingerprint_of_diffusion() == third
    HERE.init_from.write_text(json.dumps(found | {"version": "4"}))
    assert fingerprint_of_diffusion() != third
    change("diffusion.init_from", "models:/digits@candidate")
    with pytest.raises(UserError, match="models:/digits@candidate means is not known"):
        fingerprint_of_diffusion()


# --- the graph ---


def test_the_graph_here_and_in_dvc_yaml_are_the_same() -> None:
    in_dvc = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    watchers = {name for name, entry in in_dvc.items() if entry.get("always_changed")}  # look, and make nothing
    assert set(in_dvc) - watchers == set(STAGES) - set(COMMANDS)
    for name, inputs in STAGES.items():
        if name in COMMANDS:
            continue
        read = {dep.split("/")[1] for dep in in_dvc[name]["deps"] if dep.startswith("results/")}
        assert in_dvc[name]["deps"][:2] == [f"stages/{name}.py", f"results/scan/code/{name}"]
        assert (name, read - watchers) == (name, set(inputs.upstream))
        assert (name, set(in_dvc[name]["params"])) == (name, set(inputs.params))
        outs = [{"results/reference": {"persist": True}}] if name == "reference" else [f"results/{name}"]
        assert in_dvc[name]["outs"] == outs
        assert in_dvc[name]["cmd"] == f"python stages/{name}.py"
        assert (REPOSITORY / "stages" / f"{name}.py").is_file()


def test_the_study_is_a_stage_of_its_own_file_that_reads_all_that_any_study_reads() -> None:
    in_dvc = yaml.safe_load((REPOSITORY / "tune" / "dvc.yaml").read_text())["stages"]
    assert set(in_dvc) == {"tune"}
    entry = in_dvc["tune"]
    assert (entry["cmd"], entry["wdir"]) == ("sfd tune", "..")
    assert "outs" not in entry, "`dvc pull` would fail until a study has run"
    assert set(entry["params"]) == set(STAGES["tune"].params)
    assert entry["deps"][0] == "results/scan/code/tune"
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    kinds = []
    for kind, space in (("sampling", "sample.num_steps"), ("training", "diffusion.loss.time_mean")):
        tree["tune"] |= {"kind": kind, "space": {space: {"low": 1, "high": 2}}}
        kinds.append(set(upstream(parse_params(tree))))
    assert set.union(*kinds) < {dep.split("/")[1] for dep in entry["deps"]}


def test_weights_from_a_file_need_no_latents_and_are_made_anew_when_the_file_changes() -> None:
    run("prepare")
    run("texture_vae")
    with pytest.raises(UserError, match="result of stage `semantic` is missing"):
        stage_fingerprint(HERE, "diffusion", HERE.load_params())
    change("diffusion.source", "file")
    change("diffusion.file", "weights")
    Path("weights").write_text("some")
    first = stage_fingerprint(HERE, "diffusion", HERE.load_params())
    Path("weights").write_text("others")
    assert stage_fingerprint(HERE, "diffusion", HERE.load_params()) != first


def test_every_stage_reads_only_results_that_come_before_it() -> None:
    names = list(STAGES)
    for place, inputs in enumerate(STAGES.values()):
        assert set(inputs.upstream) <= set(names[:place])


if __name__ == "__main__":
    run_slow_stage(float(sys.argv[1]))
