"""The memory of a training, measured in fresh processes by the benchmark that the README quotes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"),
]
REPOSITORY = Path(__file__).parents[2]
FEATURE_DIM = 512
ROW_MIB = 16 * FEATURE_DIM * 2 / 2**20
"""Stored features of one image."""


def test_memory_does_not_grow_with_the_number_of_latents(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "src"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "benchmarks/memory.py", "--small", "200", "--large", "5000", "--num-steps", "40"]
    command += ["--feature-dim", str(FEATURE_DIM), "--json", str(tmp_path / "peaks.json")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many = json.loads((tmp_path / "peaks.json").read_text())
    for key, peak in many.items():
        assert peak - few[key] < 0.4 * (5000 - 200) * ROW_MIB, f"{key}: as if the data set were loaded or mapped"
