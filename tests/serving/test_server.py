"""Real `sfd serve` processes on a real model registry: start, equal images, a moving champion, memory, the end."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import RANGE, Answer, ServedProject, ServerProcess, gated, untrained, untrained_model
from support import wait_until
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.serving.address import bind, is_local, read_token, url_of
from sfd.serving.batcher import DynamicBatcher
from sfd.serving.follow import Follower
from sfd.serving.metrics import Metrics
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

SFD = Path(sys.executable).with_name("sfd")
MAX_GROWTH_MB = 50


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ServedProject:
    made = ServedProject(tmp_path_factory.mktemp("served"))
    made.register("plain", untrained_model(["lying", "upright"], {"tau": 0.3}))
    return made


@pytest.fixture(scope="module")
def server(project: ServedProject) -> Iterator[ServerProcess]:
    running = project.start("--model", "plain", "--poll-seconds", "0.1", "--max-queue", "64")
    running.wait_until_ready()
    yield running
    assert running.stop(signal.SIGINT) == (0, "")


def generate(server: ServerProcess, **body: Any) -> Answer:
    return server.ask("/generate", {"class": "lying"} | body)


def test_the_server_draws_what_the_registered_model_draws(
    project: ServedProject, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd

    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.store)
    model = mlflow.pyfunc.load_model("models:/plain@champion")
    seeds = [2**62 + 5, 3, 4]
    expected = model.predict(pd.DataFrame({"label": ["upright"] * 3, "seed": seeds}), params={"num_steps": 4})["png"]
    for seed, png in zip(seeds, expected, strict=True):
        shown, other = (
            np.asarray(Image.open(io.BytesIO(content))).astype(int)
            for content in (generate(server, **{"class": "upright"}, seed=seed, steps=4).content, png)
        )
        assert np.abs(shown - other).max() <= 1, "one grey level is the rounding allowed between shapes of batches"
        assert shown.std() > 1


def test_eight_clients_at_once_get_the_bytes_that_each_gets_alone_in_fewer_calls(server: ServerProcess) -> None:
    seeds = range(20, 28)
    alone = [generate(server, seed=seed).content for seed in seeds]
    calls = server.metric("sfd_batch_images_count")
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda seed: generate(server, seed=seed).content, seeds))
    assert together == alone and len(set(alone)) == 8
    assert server.metric("sfd_batch_images_count") - calls < 8


class Load:
    """Clients that ask until told to stop; ``answers`` are all they got."""

    def __init__(self, server: ServerProcess) -> None:
        self.answers: list[Answer] = []
        self._server, self._stop = server, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            self.answers.append(generate(self._server, seed=number, count=2, format="zip"))

    def versions(self) -> set[str]:
        return {answer.headers["X-SFD-Version"] for answer in self.answers if answer.status == 200}


def test_a_champion_that_moves_under_load_loses_no_request(project: ServedProject, server: ServerProcess) -> None:
    with Load(server) as load:
        wait_until(lambda: len(load.answers) > 8, 60)
        before = load.versions()
        new = project.copy_version("plain", "1")
        project.move_alias("plain", new)
        wait_until(lambda: new in load.versions(), 60)
    assert before == {"1"} and {answer.status for answer in load.answers} == {200}
    assert server.ask("/model").json["version"] == new
    assert server.metric('sfd_reloads_total{result="loaded"}') == 1
    assert server.metric(f'sfd_model_info{{name="plain",version="{new}"}}') == 1


def test_five_hundred_good_and_bad_requests_leave_memory_and_server_as_they_were(server: ServerProcess) -> None:
    bad = [{"class": "x"}, {"seed": -1}, {"count": 99}, {"steps": 10**6}, {"tau": 0.1}, {"nonsense": [1] * 1000}]

    def mixed(numbers: range) -> set[int]:
        return {
            (generate(server, seed=number) if number % 2 else generate(server, **bad[number // 2 % len(bad)])).status
            for number in numbers
        }

    mixed(range(50))
    before = server.metric("process_resident_memory_bytes")
    with ThreadPoolExecutor(8) as clients:
        statuses = set().union(*clients.map(mixed, [range(start, start + 50) for start in range(0, 500, 50)]))
    assert statuses == {200, 422}
    assert server.metric("process_resident_memory_bytes") - before < MAX_GROWTH_MB * 1e6


def test_asked_to_end_the_server_answers_what_it_has_admitted_and_exits_with_0(project: ServedProject) -> None:
    server = project.start("--model", "plain", "--alias", "1", "--batch-size", "1")
    assert server.wait_until_ready() == f"plain version 1 (1) at {server.url}\n"
    assert server.url.startswith("http://127.0.0.1:") and server.ask("/readyz").status == 200
    drawn_at_start = server.metric("sfd_batch_images_sum")

    def admitted() -> float:
        """All images but one that is being drawn, of which this does not know."""
        return server.metric("sfd_queue_images") + server.metric("sfd_batch_images_sum") - drawn_at_start

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(generate, server, seed=n, steps=200, count=2, format="zip") for n in range(4)]
        wait_until(lambda: admitted() >= 7, 60)
        assert server.stop(signal.SIGTERM) == (0, "")
        assert [answer.result().status for answer in asked] == [200] * 4


def test_while_it_loads_the_server_lives_without_being_ready_and_can_be_ended(project: ServedProject) -> None:
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    server = project.start("--model", "plain", "--port", str(port), forked=False)
    server.url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return server.ask("/healthz").status == 200
        except OSError:
            return False

    wait_until(answers, 120)
    assert server.ask("/readyz").status == 503
    assert server.stop() == (0, "")


def test_a_version_that_cannot_be_loaded_ends_the_start_with_its_reason(project: ServedProject) -> None:
    project.client().create_registered_model("broken")
    project.break_version("broken")
    server = project.start("--model", "broken", "--alias", "1")
    output, errors = server.process.communicate(timeout=120)
    assert (server.process.returncode, output) == (2, "loading broken version 1 (1)\n")
    assert errors.splitlines()[-1].startswith("error: version 1 of model `broken` cannot be used")
    assert "Traceback" not in errors


def test_the_params_file_names_the_model_and_a_missing_alias_is_one_line_with_its_remedy(
    project: ServedProject, tmp_path: Path
) -> None:
    def run(*options: str, **environment: str) -> str:
        given = os.environ | {"MLFLOW_TRACKING_URI": project.store} | environment
        done = subprocess.run([SFD, "serve", *options], cwd=tmp_path, env=given, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        return done.stderr

    nameless = run("--port", "0")
    assert "there is no params.yaml in" in nameless and "--model" in nameless
    shutil.copy(Path(__file__).parents[2] / "params.yaml", tmp_path)
    named = run("--port", "0")
    assert "no alias `champion` of model `sfd-digits`" in named and "`sfd models promote`" in named
    with bind("127.0.0.1", 0) as other:
        other.listen()
        taken = run("--port", str(other.getsockname()[1]))
    assert "cannot serve at 127.0.0.1 port" in taken and "--port" in taken
    limits = run("--max-images", "9", "--max-queue", "8")
    assert "--max-queue 8" in limits
    for line in (nameless, named, taken, limits):
        assert line.startswith("error: ") and line.count("\n") == 1
    assert "--batch-size" in run("--batch-size", "0")


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_addresses_that_others_can_reach_are_told_from_local_ones(host: str, local: bool) -> None:
    with bind(host, 0) as listener:
        assert is_local(listener) == local
        assert url_of(listener).startswith("http://") and not url_of(listener).endswith(":0")


def test_elsewhere_than_on_this_machine_a_missing_token_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str | None] = []
    monkeypatch.setattr("sfd.serving.server.serve", lambda *given: served.append(given[2]))

    def warning(host: str, token: str | None) -> str:
        monkeypatch.delenv("SFD_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("SFD_TOKEN", token)
        return CliRunner().invoke(cli.app, ["serve", "--model", "m", "--host", host, "--port", "0"]).stderr

    assert "everybody who reaches 0.0.0.0" in warning("0.0.0.0", None)
    assert warning("0.0.0.0", "secret") == warning("127.0.0.1", None) == ""
    assert served == [None, "secret", None]


@pytest.mark.parametrize("token", ["", " ", "secret\n"])
def test_an_empty_token_is_refused_instead_of_leaving_the_server_open(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFD_TOKEN", token)
    with pytest.raises(UserError, match="SFD_TOKEN"):
        read_token()
    monkeypatch.setenv("SFD_TOKEN", "secret")
    assert read_token() == "secret"


# The follower by itself


@pytest.fixture
def followed(project: ServedProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Follower, Metrics]]:
    """Serves a version of a model of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.store)
    metrics = Metrics()
    batcher = DynamicBatcher(2, 8, metrics)
    batcher.start()
    follower = Follower(Workspace(project.folder), "followed", "champion", batcher.try_out, metrics)
    if not project.client().search_registered_models("name = 'followed'"):
        project.register("followed", untrained_model(["a"], RANGE), {"schedule": {"kind": "offset", "tau": 0.1}})
    project.move_alias("followed", "1")
    follower.load("champion")
    yield follower, metrics
    batcher.stop(60)


def reloads(metrics: Metrics, result: str) -> float | None:
    return metrics.registry.get_sample_value("sfd_reloads_total", {"result": result})


def test_a_version_that_cannot_be_loaded_is_told_once_and_the_old_one_stays(
    project: ServedProject, followed: tuple[Follower, Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    follower, metrics = followed
    old = follower.current
    broken = project.break_version("followed")
    project.move_alias("followed", broken)
    follower.poll()
    follower.poll()
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == 1 and f"version {broken} of model `followed` cannot be used" in errors
    assert follower.current is old and reloads(metrics, "failed") == 1
    good = project.copy_version("followed", "1")
    project.move_alias("followed", good)
    follower.poll()
    assert follower.current is not None and follower.current.version == good
    assert reloads(metrics, "loaded") == 1 and capsys.readouterr().err == ""


def test_a_version_that_cannot_draw_is_not_taken(
    followed: tuple[Follower, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, _ = followed
    old = follower.current
    model, gate = gated(untrained())
    gate.open.set()
    gate.failure = RuntimeError("out of memory")
    monkeypatch.setattr("sfd.serving.follow.load_registered", lambda *_: model)
    with pytest.raises(UserError, match="out of memory"):
        follower.load("1")
    assert follower.current is old
    gate.failure = None
    follower.load("1")
    assert follower.current is model


def test_a_registry_that_is_away_is_told_once_and_what_is_loaded_goes_on(
    followed: tuple[Follower, Metrics],
    project: ServedProject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    follower, metrics = followed
    old = follower.current
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    follower.poll()
    follower.poll()
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == 1 and "is away" in errors and "so version 1 stays" in errors
    assert follower.current is old
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.store)
    follower.poll()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    follower.poll()
    assert capsys.readouterr().err.count("warning: ") == 1, "a second absence is another one"
    assert reloads(metrics, "failed") == 0 == reloads(metrics, "loaded")


def test_following_looks_again_and_again_until_it_is_stopped(
    project: ServedProject, followed: tuple[Follower, Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    follower, _ = followed
    thread = threading.Thread(target=follower.follow, args=(0.05,))
    thread.start()
    new = project.copy_version("followed", "1")
    project.move_alias("followed", new)
    wait_until(lambda: follower.current is not None and follower.current.version == new, 60)
    follower.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert capsys.readouterr().out == f"followed version {new} (champion) from now on; before: version 1\n"
