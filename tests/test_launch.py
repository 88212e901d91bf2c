"""The launch scripts: two processes by torchrun, two nodes by a SLURM that is played by two scripts on PATH."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from support import REPOSITORY, Project, finished_project, free_port, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SRUN = """#!/usr/bin/env python
# Two nodes with one task each. As srun does: passes SIGTERM on, ends all when one fails, returns the highest status.
import os, signal, subprocess, sys, time
command = sys.argv[1:]
ends_all = command[0] == "--kill-on-bad-exit=1"
command = command[ends_all:]
tasks = []
for node in range(2):
    own = {"SLURM_PROCID": node, "SLURM_LOCALID": 0, "SLURM_NODEID": node, "SLURM_NTASKS": 2, "SLURM_NNODES": 2}
    tasks.append(subprocess.Popen(command, env=os.environ | {name: str(value) for name, value in own.items()}))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
while any(task.poll() is None for task in tasks):
    if ends_all and any(task.poll() for task in tasks):
        time.sleep(1)
        [task.terminate() for task in tasks]
        end = time.monotonic() + 30
        while time.monotonic() < end and any(task.poll() is None for task in tasks):
            time.sleep(0.1)
        [task.kill() for task in tasks]
    time.sleep(0.1)
sys.exit(max(128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.txt; fi
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished_project(tmp_path_factory)


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A finished project with the launch scripts, and a SLURM of two nodes on PATH."""
    copied = finished.copy_to(tmp_path / "project")
    shutil.copytree(REPOSITORY / "launch", copied.folder / "launch")
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return copied


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def slurm(project: Project, *stages: str) -> "subprocess.Popen[str]":
    path = f"{project.folder.parent / 'bin'}{os.pathsep}{project.environment()['PATH']}"
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "node[0-1]"}
    job["SLURM_SUBMIT_DIR"] = str(project.folder)
    return project.start("bash", "launch/slurm.sbatch", *stages, forked=True, PATH=path, **job)


def change_training(project: Project, num_steps: int, **runtime: int) -> None:
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["diffusion"]["training"]["num_steps"] = num_steps
    params["runtime"]["diffusion"] |= {"grid_every": num_steps, **runtime}
    project.write_params(params)


def test_the_launch_scripts_pass_shellcheck() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    done = subprocess.run([checker, *(REPOSITORY / "launch").iterdir()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_torchrun_makes_the_same_bytes_on_two_processes_and_dvc_knows_them(project: Project) -> None:
    stages = ("features", "latents", "sample")
    before = {name: files(project.result(name)) for name in stages}
    status, output = project.run("launch/torchrun.sh", *stages, NPROC="2")
    assert status == 0, output
    assert {name: files(project.result(name)) for name in stages} == before
    status, output = project.run("launch/torchrun.sh", *stages, NPROC="2")
    assert status == 0 and output.count("nothing has changed since its result was made") == 3
    edited = project.folder / "src/sfd/generation/samples.py"
    edited.write_text(edited.read_text() + "\n")
    status, output = project.run("launch/torchrun.sh", *stages, NPROC="2")
    assert status == 0, output
    assert "sample: nothing has changed" not in output and "latents: nothing has changed" in output


def test_two_machines_meet_by_rendezvous_and_a_stage_that_fails_is_not_given_to_dvc(project: Project) -> None:
    before = files(project.result("latents"))
    meeting = {"NODES": "2", "NPROC": "1", "RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    machines = [project.start("launch/torchrun.sh", "latents", NODE=str(node), **meeting) for node in (0, 1)]
    outputs = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert files(project.result("latents")) == before
    assert project.run("dvc", "status", "--quiet", "latents")[0] == 0
    (project.result("texture_vae") / "fingerprint.json").unlink()
    status, output = project.run("launch/torchrun.sh", "latents", NPROC="2")
    assert status != 0 and "error: latents: the result of stage `texture_vae` is missing" in output
    assert project.run("dvc", "status", "--quiet", "latents")[0] != 0


def test_a_slurm_job_saves_a_checkpoint_before_its_limit_goes_back_into_the_queue_and_continues(
    project: Project, tmp_path: Path
) -> None:
    change_training(project, num_steps=150, checkpoint_every=1000, log_every=10)
    whole = project.copy_to(tmp_path / "whole")
    job = slurm(whole, "diffusion")
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert whole.run("dvc", "status", "--quiet", "diffusion")[0] == 0

    job = slurm(project, "diffusion")
    journals = project.folder / ".sfd" / "journal"
    before = set(journals.glob("*diffusion*.jsonl"))
    wait_until(
        lambda: any("images_per_second" in f.read_text() for f in set(journals.glob("*diffusion*.jsonl")) - before), 120
    )
    os.kill(job.pid, signal.SIGUSR1)
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert "requeue" in (project.folder / "scontrol.txt").read_text()
    stopped = torch.load(project.folder / ".sfd/work/diffusion/checkpoint.pt", weights_only=True)["step"]
    assert 0 < stopped < 150 and stopped % 5 == 0
    assert "Traceback" not in output

    (project.folder / "scontrol.txt").unlink()
    job = slurm(project, "diffusion")
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert not (project.folder / "scontrol.txt").exists()
    for name in ("model/model.safetensors", "curves.csv"):
        assert (project.result("diffusion") / name).read_bytes() == (whole.result("diffusion") / name).read_bytes()


def test_a_process_killed_in_training_ends_the_job_and_the_next_one_ends_with_the_bytes_of_an_uninterrupted_one(
    project: Project, tmp_path: Path
) -> None:
    change_training(project, num_steps=80, checkpoint_every=10, log_every=10)
    whole = project.copy_to(tmp_path / "whole")
    assert whole.run("launch/torchrun.sh", "diffusion", NPROC="2")[0] == 0
    job = project.start("launch/torchrun.sh", "diffusion", forked=True, NPROC="2")
    checkpoint = project.folder / ".sfd/work/diffusion/checkpoint.pt"
    wait_until(checkpoint.is_file, 120)
    owner = int((project.folder / ".sfd/work/diffusion/owner").read_text().split()[0])  # process 0
    os.kill(owner, signal.SIGKILL)
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and "Signal 9" in output, output
    assert "error: diffusion: a connection between the processes of this job broke" in output
    status, output = project.run("launch/torchrun.sh", "diffusion", NPROC="2")
    assert status == 0, output
    for name in ("model/model.safetensors", "curves.csv"):
        assert (project.result("diffusion") / name).read_bytes() == (whole.result("diffusion") / name).read_bytes()
