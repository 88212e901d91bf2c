"""Stages on several real processes: what all find wrong, what one finds wrong, and deaths. As a script, this file is such a stage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sfd.data.shards import Shard, missing_shards, shard_bounds, write_index, write_shards
from sfd.errors import UserError
from sfd.pipeline.stage import stage
from sfd.processes import barrier, claim_message, in_one_piece, rank, terminable, world_size

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[1]
SOON_S = 60
"""A job ends within a minute after one of its processes."""


@dataclass(frozen=True)
class NoFacts:
    """An index that says nothing about the images."""


def make(start: int, end: int) -> Shard:
    return {"values": torch.arange(start, end).float()[:, None]}


def run_stage(what: str) -> None:
    """Shards from all processes, and on the way what the test asks for."""
    name = "prepare" if what == "serial" else "latents"
    if what == "elsewhere" and rank() == 1:
        os.chdir("elsewhere")
    with stage(name, upstream=()) as s:
        if what == "all":
            raise UserError("the images are gone; bring them back")
        bounds = shard_bounds(20, 3)
        if rank() == 1 and what == "one":
            raise UserError("image 7 has changed; rerun prepare")
        if rank() == 1 and what == "bug":
            raise ZeroDivisionError("a mistake in the code")
        write_shards(s.out, bounds, make, missing_shards(s.out, bounds, rank(), world_size()))
        if rank() == 1 and what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        barrier()
        if rank() == 0:
            write_index(s.out, bounds, NoFacts())
        if rank() == 1 and what == "edited":
            text = Path("params.yaml").read_text()
            Path("params.yaml").write_text(text.replace("statistics_images: 10000", "statistics_images: 9000"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "elsewhere")
    return tmp_path


def torchrun(project: Path, what: str) -> tuple[int, str]:
    """Exit status and output of two processes."""
    from support import environment  # not in the processes that run this file as a script

    own = {"CUDA_VISIBLE_DEVICES": "", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody listens there
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", __file__, what]
    given = environment() | own
    started = time.monotonic()
    done = subprocess.run(command, cwd=project, env=given, capture_output=True, text=True, timeout=SOON_S + 60)
    assert time.monotonic() - started < SOON_S, "a job must not hang"
    return done.returncode, done.stdout + done.stderr


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_a_mistake_that_all_processes_find_is_said_once(project: Path) -> None:
    status, output = torchrun(project, "all")
    assert status != 0
    assert errors(output) == ["error: latents: the images are gone; bring them back"]
    assert "UserError" not in output


def test_a_mistake_that_one_process_finds_ends_the_job_with_its_reason_and_without_a_traceback_of_ours(
    project: Path,
) -> None:
    status, output = torchrun(project, "one")
    assert status != 0
    assert "error: latents: image 7 has changed; rerun prepare" in errors(output)
    assert "UserError" not in output and "pipeline.py" not in output
    assert not (project / "results").exists()


def test_a_mistake_in_the_code_of_one_process_ends_the_job_with_its_traceback(project: Path) -> None:
    status, output = torchrun(project, "bug")
    assert status != 0
    assert "ZeroDivisionError: a mistake in the code" in output
    assert not (project / "results").exists()


def test_a_killed_process_ends_the_job_and_the_next_run_finishes_with_the_bytes_of_an_uninterrupted_one(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    status, output = torchrun(project, "killed")
    assert status != 0 and "Signal 9" in output
    assert not (project / "results").exists()
    assert len(list((project / ".sfd/work/latents/out").glob("*.safetensors"))) >= 3, "the killed one's are kept"
    other = tmp_path_factory.mktemp("uninterrupted")
    shutil.copy(REPOSITORY / "params.yaml", other)
    for folder in (project, other):
        assert torchrun(folder, "whole")[0] == 0
    assert content(project) == content(other)


def test_parameters_that_change_while_several_processes_work_end_the_job_with_one_line(project: Path) -> None:
    status, output = torchrun(project, "edited")
    assert status != 0 and len(errors(output)) == 1, output
    assert "`latents.statistics_images` in params.yaml changed from 10000 to 9000 while the stage ran" in output
    assert not (project / "results").exists() and (project / ".sfd/work/latents/out/index.json").is_file()


def content(project: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (project / "results" / "latents").iterdir()}


def test_processes_that_do_not_share_one_folder_are_refused(project: Path) -> None:
    status, output = torchrun(project, "elsewhere")
    assert status != 0
    assert any("process 1 on" in line and "does not see" in line for line in errors(output)), output


def test_a_stage_that_is_not_made_for_several_processes_says_which_ones_are(project: Path) -> None:
    status, output = torchrun(project, "serial")
    assert status != 0
    assert len(errors(output)) == 1
    assert "this stage runs in one process, and here are 2" in output and "diffusion" in output
    assert not (project / ".sfd").exists()


SIGNALS_AT_MANY_MOMENTS = """
import atexit, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a test run in the background
import sfd.quiet
from sfd.processes import terminable, undisturbed_end

def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

class Slow:
    def __del__(self):
        spin(0.001)

def work():
    with terminable():
        try:
            with undisturbed_end():
                os.write(1, b"entered\\n")
                for _ in range(15):
                    Slow()
                    spin(0.001)
        finally:
            spin(0.02)
            os.write(1, b"released\\n")
    atexit.register(spin, 0.02)

number, times = int(sys.argv[1]), int(sys.argv[2])

statuses = []
for moment in range(60):
    child = os.fork()
    if not child:
        work()
        sys.exit(0)
    time.sleep(moment * 0.0015)
    for _ in range(times):
        os.kill(child, number)
        time.sleep(moment * 0.0003)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(sorted(statuses))
"""


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_to_end_shows_no_traceback_and_leaves_nothing_locked_whenever_it_comes(
    number: signal.Signals, times: int
) -> None:
    command = [sys.executable, "-c", SIGNALS_AT_MANY_MOMENTS, str(int(number)), str(times)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    *marks, statuses = done.stdout.splitlines()
    assert marks.count("entered") == marks.count("released") > 10
    found = json.loads(statuses)
    assert set(found) <= {-number, 0, 128 + number}
    assert 128 + number in found
    if number == signal.SIGTERM:
        assert done.stderr == ""
        return
    said, ended_later = done.stderr.splitlines(), found.count(-number)
    assert set(said) == {"interrupted"}, "no traceback"
    assert found.count(128 + number) <= len(said) <= found.count(128 + number) + ended_later, "one line each"


def test_what_must_be_done_in_one_piece_is_done_before_a_signal_ends_the_program() -> None:
    done = []
    with pytest.raises(SystemExit) as ending, terminable():
        with in_one_piece():
            with in_one_piece():
                os.kill(os.getpid(), signal.SIGTERM)
            done.append("whole")
        done.append("more")
    assert ending.value.code == 128 + signal.SIGTERM and done == ["whole"]


def test_after_a_block_that_sigterm_ends_the_handler_that_stood_before_is_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ending, terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ending.value.code == 128 + signal.SIGTERM
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_lone_process_has_to_say_is_always_said() -> None:
    assert claim_message("x") and claim_message("x")


if __name__ == "__main__":
    run_stage(sys.argv[1])
