"""Trainings of two processes under torchrun, and their comparison with one process."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import script_environment

from sfd.training.loop import Trained


def torchrun(script: str, *arguments: str) -> None:
    """Two processes that run a test file as a script, with ``arguments``."""
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", script, *arguments]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


def keep(trained: Trained, place: Path) -> None:
    """In each of the processes: the weights and the curve, of process 0."""
    if int(torch.distributed.get_rank()) == 0:
        save_file(trained.network.state_dict(), place / "model.safetensors")
        (place / "curve.json").write_text(json.dumps(trained.curve))


def assert_kept_losses(place: Path, losses: list[float], rel: float) -> None:
    curve = json.loads((place / "curve.json").read_text())
    assert [row["total"] for row in curve] == pytest.approx(losses, rel=rel), place.name


def assert_like_one(place: Path, alone: Trained, *, rtol: float, atol: float, rel: float) -> None:
    """What two processes kept is what one process gives. ``rel``: of the losses; the others: of the weights."""
    together = load_file(place / "model.safetensors")
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(together[name], value, rtol=rtol, atol=atol)
    assert_kept_losses(place, [row["total"] for row in alone.curve], rel)
