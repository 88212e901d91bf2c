"""Real servers and folders that several tests need."""

import copy
import functools
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import warm
import yaml
from filelock import FileLock
from PIL import Image

from sfd.tracking.address import relocate, sqlite_uri


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """An MLflow server on its own port that can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.home / 'server.db'}"]
        command += ["--artifacts-destination", str(self.home / "artifacts")]
        log = (self.home / "server.log").open("ab")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_until(self.answers, 180)

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)


def wait_until(condition: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not true within {limit_s} s"
        time.sleep(0.05)


def own_time(thread: str = "thread-self") -> float:
    """A clock in seconds that stands while a thread waits for a busy processor, and runs while it waits for anything else."""
    scheduled = Path("/proc") / thread / "schedstat"
    waited_ns = int(scheduled.read_text().split()[1]) if scheduled.exists() else 0
    return time.monotonic() - waited_ns / 1e9


REPOSITORY = Path(__file__).parents[1]


def give_store(file: Path) -> None:
    """An embedded store of MLflow with its tables. Making them takes 2 s, so it is done once in a test run, and copied."""
    template = Path(os.environ[warm.PROGRAMS]).with_name("store.db")
    with FileLock(template.with_suffix(".lock")):
        if not template.is_file():
            from mlflow import MlflowClient

            made = template.with_name("store.made")
            MlflowClient(sqlite_uri(made)).search_experiments()
            made.rename(template)
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, file)


@functools.cache
def warm_programs() -> str:
    """The folder of programs whose server has imported everything, which no time limit of a test should count."""
    folder = os.environ[warm.PROGRAMS]
    subprocess.run([f"{folder}/python", "-c", ""], check=True)
    return folder


def environment(source: Path = REPOSITORY / "src", forked: bool = True) -> dict[str, str]:
    """For programs of one thread that import `sfd` from ``source`` and know no tracking server.

    Args:
        forked: `python`, `sfd`, `dvc` and `torchrun` are forks of one warm process (``warm``), and start in milliseconds;
            else they are this interpreter's own, as a user starts them.
    """
    ours = ("MLFLOW_", "_MLFLOW_", "SFD_TOKEN")  # the second kind is MLflow's own, from this process
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    folders = [warm_programs()] if forked else []
    path = os.pathsep.join([*folders, str(Path(sys.executable).parent), kept["PATH"]])
    return kept | {"PATH": path, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}


def script_environment(forked: bool = True) -> dict[str, str]:
    """:func:`environment` for a test file that runs as a script, without a GPU: it finds the modules beside the tests."""
    given = environment(forked=forked)
    return given | {
        "PYTHONPATH": os.pathsep.join([given["PYTHONPATH"], str(Path(__file__).parent)]),
        "CUDA_VISIBLE_DEVICES": "",
    }


def small_params() -> dict[str, Any]:
    """The shipped params with trainings of a few steps."""
    tree: dict[str, Any] = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    short = {"num_steps": 4, "batch_size": 8, "warmup_steps": 0}
    for name in ("encoder", "texture_vae", "semantic", "diffusion"):
        tree[name]["training"] |= short
    for judge in tree["judges"]:
        judge["training"] |= short
        judge["channels"] = [8, 8, 8, 8]
    for name in ("encoder", "texture_vae", "judge", "semantic", "diffusion"):
        tree["runtime"][name] |= {"checkpoint_every": 2, "log_every": 2}
    tree["data"]["image_size"] = tree["encoder"]["input_size"] = 16
    tree["encoder"] |= {"patch_size": 4, "width": 16, "depth": 1, "num_heads": 2}
    tree["texture_vae"] |= {"channels": [8, 8, 8], "latent_channels": 4}
    tree["features"]["shard_size"] = tree["latents"]["shard_size"] = 20
    for name, size in {"features": 16, "latents": 16, "sample": 5, "evaluate": 8}.items():
        tree["runtime"][name]["batch_size"] = size
    tree["semantic"] |= {"width": 16, "depth": 1, "num_heads": 2, "latent_channels": 2}
    tree["diffusion"]["loss"]["repa_width"] = 16
    tree["runtime"]["diffusion"] |= {"grid_every": 2, "grid_images": 4, "heldout_every": 2}
    tree["sample"] |= {"num_images": 12, "num_steps": 3}
    tree["quality"] = dict.fromkeys(tree["quality"])  # a few steps teach nothing
    # A dozen images say nothing, but these tests are not about what they say; and untrained models pass these gates.
    tree["evaluate"] |= {
        "kid_subsets": 4,
        "kid_subset_size": 8,
        "min_images": dict.fromkeys(tree["evaluate"]["min_images"]),
    }
    tree["register"]["gates"] = {
        "class_accuracy": {"limit": 0.0, "improve": False},
        "fd_digits_judge": {"limit": None, "improve": True},
    }
    tree["tune"] |= {"trials": 4, "num_images": 12, "repeats": 2, "confirm_repeats": 2, "heartbeat_seconds": 2}
    return tree


def draw_images(folder: Path, num_images: int, seed: int, vertical: bool) -> None:
    """Stripes of random place and colour: upright in one class, lying in the other."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(num_images):
        pixels = np.zeros((20, 24, 3), dtype=np.uint8)
        start = int(random.integers(2, 14))
        colour = random.integers(100, 255, 3)
        if vertical:
            pixels[:, start : start + 5] = colour
        else:
            pixels[start : start + 5] = colour
        Image.fromarray(pixels).save(folder / f"bild {number}.png")


class Project:
    """A copy of the repository in which stages run as users run them."""

    def __init__(self, folder: Path, params: dict[str, Any]) -> None:
        self.folder = folder
        for name in ("src", "stages", "tune", ".dvc", "dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"):
            source, target = REPOSITORY / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("cache", "tmp", "*.egg-info"))
            else:
                shutil.copy(source, target)
        self.write_params(params)
        give_store(folder / "mlruns" / "mlflow.db")
        for command in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start"],
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)

    @contextmanager
    def entered(self) -> Iterator["Project"]:
        """This process works in the project for the block, with the project's own tracking store."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            # Absolute, for MLflow keeps one connection a process for each address.
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder}/mlruns/mlflow.db")
            yield self

    def copy_to(self, folder: Path) -> "Project":
        """Results, runs, registered models and all."""
        shutil.copytree(self.folder, folder, symlinks=True)
        if (folder / "mlruns" / "mlflow.db").is_file():
            relocate(sqlite_uri(folder / "mlruns" / "mlflow.db"))
        copied = copy.copy(self)
        copied.folder = folder
        return copied

    def write_params(self, params: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def environment(self, forked: bool = True) -> dict[str, str]:
        """With the project's own source."""
        return environment(self.folder / "src", forked)

    def start(self, *command: str, forked: bool = False, **changes: str) -> "subprocess.Popen[str]":
        """A process in the project, its output merged."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(forked) | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that run in the background ignore Ctrl-C, and their children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *command: str, **changes: str) -> tuple[int, str]:
        """Exit status and output of a command whose programs are forked."""
        process = self.start(*command, forked=True, **changes)
        output, _ = process.communicate()
        return process.returncode, output

    def run_alone(self, *command: str) -> tuple[int, str, float]:
        """Exit status, output and seconds (:func:`own_time`) of a command that starts as users start it."""
        started = time.monotonic()
        process = self.start(*command)
        assert process.stdout is not None
        output = process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = own_time(str(process.pid)) - started
        return process.wait(), output, seconds

    def repro(self, *arguments: str, folder: str = ".") -> str:
        """``dvc repro`` of the graph in ``folder``, which must succeed."""
        status, output = self.run("dvc", "--cd", folder, "repro", *arguments)
        assert status == 0, output
        return output

    def commit_results(self) -> None:
        """DVC records the results as they are, and git has `dvc.lock`; git ignores the images."""
        status, output = self.run("dvc", "commit", "--force")
        assert status == 0, output
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
        with (self.folder / ".gitignore").open("a") as ignored:
            ignored.write("/images/\n")
        subprocess.run([*git, "add", "dvc.lock", ".gitignore"], cwd=self.folder, check=True)
        subprocess.run([*git, "commit", "-qm", "results"], cwd=self.folder, check=True)

    def result(self, name: str) -> Path:
        return self.folder / "results" / name


def benchmark(name: str) -> ModuleType:
    """The module of a script in benchmarks/, which may import others there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        return importlib.import_module(name)


IN_ONE_PROCESS = "import runpy, sys\nfor name in sys.argv[1:]: runpy.run_path(f'stages/{name}.py')"
STAGES = ("scan", "prepare", "encoder", "text", "texture_vae", "judge", "features", "semantic", "latents", "schedule")
STAGES += ("diffusion", "sample", "reference", "evaluate", "register")


def run_stages(project: Project, *names: str) -> str:
    """The output of stages that one process runs in turn; none may fail."""
    status, output = project.run("python", "-c", IN_ONE_PROCESS, *names)
    assert status == 0, output
    return output


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Project]) -> Project:
    """A project that is made once for all processes of a test run, in a folder of this name: copy it, and change the copy."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".finished").is_file():
            folder.mkdir()
            made = make(folder)
            folder.with_suffix(".finished").touch()
            return made
    made = object.__new__(Project)
    made.folder = folder
    return made


def finished_project(factory: pytest.TempPathFactory) -> Project:
    """A project with two classes of 40 images, run to the end; its model version 1 has the alias `champion`. As :func:`made_once`."""
    return made_once(factory, "finished project", _finished_project)


def _finished_project(folder: Path) -> Project:
    from mlflow import MlflowClient

    params = small_params()
    params["data"] |= {"source": "folder", "root": "images", "mirror": True}
    made = Project(folder, params)
    draw_images(folder / "images" / "quer", 40, 1, vertical=False)
    draw_images(folder / "images" / "hoch ü", 40, 2, vertical=True)
    run_stages(made, *STAGES)
    MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db").set_registered_model_alias("sfd-digits", "champion", "1")
    return made
