"""The promise of the stage contract: however often a training is killed, it ends with the bytes of one that never was."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml
from support import Project, finished_project, wait_until

pytestmark = pytest.mark.long
KILLS = 20
NUM_STEPS = 280


def change(project: Project, num_steps: int = NUM_STEPS, **runtime: int) -> None:
    """Another length of the training, with a learning rate that does not depend on it, and other options of `runtime`."""
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["diffusion"]["training"] |= {"num_steps": num_steps, "decay": "constant"}
    params["runtime"]["diffusion"] |= runtime
    project.write_params(params)


def kill_once(project: Project, moments: random.Random) -> None:
    """Starts the training and kills it a moment after it wrote its next checkpoint."""
    work = project.folder / ".sfd/work/diffusion"
    checkpoint, begun = work / "checkpoint.pt", time.time()
    process = project.start("python", "stages/diffusion.py", forked=True)
    wait_until(lambda: checkpoint.is_file() and checkpoint.stat().st_mtime > begun, 60)
    time.sleep(moments.uniform(0.0, 0.1))
    os.kill(int((work / "owner").read_text().split()[0]), signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode != 0 and "starts from the beginning" not in output, output


def train(project: Project) -> str:
    """Trains to the end; returns what was printed."""
    status, output = project.run("python", "stages/diffusion.py")
    assert status == 0, output
    return output


def model_of(project: Project) -> dict[str, bytes]:
    folder: Path = project.result("diffusion") / "model"
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_training_killed_20_times_with_other_runtime_options_and_an_unrelated_edit_and_continued_ends_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("kills")
    whole = finished_project(tmp_path_factory).copy_to(folder / "whole")
    change(whole, log_every=50, checkpoint_every=1000, grid_every=1000)
    killed, longer = whole.copy_to(folder / "killed"), whole.copy_to(folder / "longer")
    train(whole)

    moments = random.Random(0)
    for number in range(KILLS):
        every = {name: moments.randint(2, 9) for name in ("log_every", "checkpoint_every")}
        change(killed, grid_every=moments.randint(30, 90), **every)
        if number == KILLS // 2:
            page, module = (killed.folder / "src/sfd/serving" / name for name in ("page.html", "app.py"))
            page.write_text(page.read_text() + "\n")
            module.write_text(module.read_text() + "\n")
        kill_once(killed, moments)
    assert "starts from the beginning" not in train(killed)
    assert model_of(killed) == model_of(whole)
    assert not (killed.folder / ".sfd/old").exists()

    for project in (killed, longer):
        change(project, 2 * NUM_STEPS)
    assert f"goes on after step {NUM_STEPS}" in train(killed)
    assert "goes on" not in train(longer)
    assert model_of(killed) == model_of(longer)
