"""Order of the tests, their independence of it, and the programs that all of them start."""

import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import warm

SLOWEST = tuple(
    """test_study test_end_to_end test_launch test_scaffold test_gpu_check test_sparse
    test_preset_twins test_gpu_path test_answer test_digits_finetuning test_kills test_generate
    test_models_command test_checkpointing test_estimate test_experiment_queue test_server test_released_graph
    test_remotes test_kept_weights test_precision test_tracking test_loop test_words_served
    test_queue test_processes test_lock test_every_source test_bench test_memory""".split()
)
"""Files that take longest, the longest first: a worker that began one of them last would keep the others waiting."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, help="tests whose turn comes later are skipped, and counted as that")


def pytest_configure(config: pytest.Config) -> None:
    """One server of warm programs for all workers; it imports nothing before a test asks for a program."""
    minutes = config.getoption("--minutes")
    config.stash[DEADLINE] = math.inf if minutes is None else time.monotonic() + 60 * minutes
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # what tests and their processes import is compiled once, not in each
    sys.dont_write_bytecode = False
    if not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="sfd-tests-"))
        config.stash[SERVER] = warm.Warm(folder)
        os.environ[warm.PROGRAMS] = str(config.stash[SERVER].programs)


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        server = config.stash[SERVER]
        server.stop()
        shutil.rmtree(server.programs.parent)


SERVER = pytest.StashKey[warm.Warm]()
DEADLINE = pytest.StashKey[float]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, then the others that have long tests: what is left for the end is short, so no worker waits for another."""
    rank = {name: number for number, name in enumerate(SLOWEST)}
    has_long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank) + (item.path not in has_long)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draws without a seed of their own, and the store that MLflow uses, do not depend on the tests before."""
    if time.monotonic() > item.config.stash[DEADLINE]:
        pytest.skip("its turn came after the minutes of --minutes")
    torch.manual_seed(0)
    told = sys.modules.get("mlflow.tracking._tracking_service.utils")
    if told is not None:
        told._tracking_uri = None  # `mlflow.set_tracking_uri` would win over the variable MLFLOW_TRACKING_URI
