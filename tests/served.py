"""Registered models with random weights, and real `sfd serve` processes of them."""

import json
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import environment, give_store, wait_until
from torch import Tensor

from sfd.data.latents import ChannelStatistics
from sfd.encoders.texture_vae import KlVae, TextureVae, TrainableAutoencoder
from sfd.generation.images import ImageGenerator
from sfd.generation.model import DiffusionModel
from sfd.generation.settings import Settings
from sfd.models.attention import AttentionSum
from sfd.models.conditions import ClassCondition, Condition, Value
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.network_files import network_digest
from sfd.params import SampleParams, ScheduleParams, TextureVaeParams
from sfd.registry.load import RegisteredModel
from sfd.registry.register import create_version, log_model
from sfd.serving.address import bind, url_of
from sfd.serving.app import Service
from sfd.serving.options import ServerOptions
from sfd.serving.server import Server
from sfd.workspace import Workspace

SAMPLE = {"batch_size": 5, "sampler": "heun", "num_steps": 3, "guidance": {"kind": "cfg", "scale_texture": 1.5}}
RANGE = {"kind": "offset", "tau": {"low": 0.0, "high": 0.5}}


def untrained_model(classes: list[str], schedule: dict[str, Any], use_null_class: bool = True) -> DiffusionModel:
    """A tiny backbone whose random weights are zero nowhere, so that every input matters."""
    return model_of(ClassCondition(tuple(classes), use_null_class), schedule)


def model_of(condition: Condition, schedule: dict[str, Any], **options: Any) -> DiffusionModel:
    """:func:`untrained_model` that is told something else than a class, or has other options."""
    config = LightningDiTConfig(4, 6, 32, 2, 2, condition, semantic_channels=2, two_times=True, **options)
    network, random = LightningDiT(config), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    statistics = ChannelStatistics(torch.zeros(6), torch.ones(6))
    schedule_params = ScheduleParams.model_validate(schedule)
    return DiffusionModel(network.eval().requires_grad_(False), schedule_params, statistics)


def untrained_decoder() -> TextureVae:
    """Decodes latents of 4 x 4 to images of 16 x 16."""
    fields = {"source": "train", "channels": (8, 8, 8), "layers_per_block": 1, "latent_channels": 4}
    return KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), seed=0).autoencoder).eval()


def untrained(
    classes: list[str] | None = None, schedule: dict[str, Any] | None = None, sample: dict[str, Any] | None = None
) -> RegisteredModel:
    """A version as it is in a server's memory."""
    model = untrained_model(classes or ["lying", "upright"], schedule or {"tau": 0.3})
    settings = Settings.model_validate(SAMPLE | (sample or {}))
    return RegisteredModel("sfd-test", "1", ImageGenerator(model, untrained_decoder()), settings)


class Gate:
    """An image generator whose calls wait until the gate is open; ``calls`` are the seeds of each."""

    def __init__(self, model: RegisteredModel) -> None:
        self.real = model.images
        self.model, self.network, self.words = model.images.model, model.images.network, model.images.words
        self.open = threading.Event()
        self.entered = threading.Event()
        self.calls: list[list[int]] = []
        self.failure: Exception | None = None

    def sample(
        self,
        values: Sequence[Value],
        seeds: Sequence[int],
        params: SampleParams,
        batch_size: int,
        fill: bool,
        sums: Sequence[AttentionSum | None],
    ) -> Iterator[Tensor]:
        self.calls.append(list(seeds))
        self.entered.set()
        assert self.open.wait(60)
        if self.failure is not None:
            raise self.failure
        return self.real.sample(values, seeds, params, batch_size, fill, sums)


def gated(model: RegisteredModel) -> tuple[RegisteredModel, Gate]:
    """The version behind a gate of its own."""
    gate: Any = Gate(model)
    return replace(model, images=gate), gate


class ServedProject:
    """A folder with a model registry, in which servers are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
        give_store(folder / "mlruns" / "mlflow.db")

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.store)

    def register(self, name: str, model: DiffusionModel, sample: dict[str, Any] | None = None) -> str:
        """Registers a version and makes it champion; returns its number."""
        folder = self.folder / "networks" / name
        untrained_decoder().save(folder / "texture_vae")
        replace(model, networks={"texture_vae": network_digest(folder / "texture_vae")}).save(folder / "diffusion")
        folders = {part: folder / part for part in ("diffusion", "texture_vae")}
        settings = Settings.model_validate(SAMPLE | (sample or {}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.store)
            client = self.client()
            experiment = client.get_experiment_by_name("sfd")
            place = (self.folder / "mlruns" / "artifacts").as_uri()
            number = experiment.experiment_id if experiment else client.create_experiment("sfd", place)
            run_id = client.create_run(number).info.run_id
            workspace = Workspace(self.folder)
            version = create_version(workspace, name, log_model(workspace, settings, folders, run_id, name), {})
        self.move_alias(name, version)
        return version

    def copy_version(self, name: str, version: str) -> str:
        """The same model as a new version; returns its number."""
        client = self.client()
        source = client.get_model_version(name, version).source
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(
                "MLFLOW_TRACKING_URI", self.store
            )  # where the registry looks a logged model up, whatever the client's store
            return str(client.create_model_version(name, source).version)

    def break_version(self, name: str) -> str:
        """A new version without a model in it; returns its number."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        return str(self.client().create_model_version(name, empty.as_uri()).version)

    def move_alias(self, name: str, version: str) -> None:
        self.client().set_registered_model_alias(name, "champion", version)

    @contextmanager
    def serve(self, *options: str, **changes: str) -> Iterator["ServerProcess"]:
        """A server that is ready, at a free port; ended at the end of the block."""
        server = self.start(*options, **changes)
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()

    def start(self, *options: str, forked: bool = True, **changes: str) -> "ServerProcess":
        process = subprocess.Popen(
            ["sfd", "serve", "--port", "0", *options],
            cwd=self.folder,
            env=environment(forked=forked) | {"MLFLOW_TRACKING_URI": self.store} | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background ignore Ctrl-C, and their children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return ServerProcess(process)


class ServerProcess:
    """A running `sfd serve`. ``url`` is known once it is ready."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.url = ""

    def wait_until_ready(self) -> str:
        """The line that says so."""
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if "http://" in line), "")
        assert line, self.process.communicate()[1]
        self.url = line.split()[-1]
        return line

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> "Answer":
        """Sends one request; a body that is not bytes is sent as JSON."""
        return ask(self.url + path, body, method, **headers)

    def metric(self, sample: str) -> float:
        """The value of one line of /metrics."""
        lines = dict(line.rsplit(" ", 1) for line in self.ask("/metrics").text.splitlines() if line[0] != "#")
        return float(lines[sample])


class Answer:
    """Status, headers and content of an answer."""

    def __init__(self, status: int, headers: Any, content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, content

    @property
    def text(self) -> str:
        return self.content.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        """The one sentence of an error, which has nothing beside it."""
        (sentence,) = self.json.values()
        assert self.headers["content-type"] == "application/json" and "Traceback" not in sentence
        return str(sentence)


def ask(url: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


SMALL_SERVER = ServerOptions("sfd-test", batch_size=4, max_images=4, max_queue=6, timeout_seconds=60.0)


class Running:
    """A service at ``url``."""

    def __init__(self, service: Service, url: str) -> None:
        self.service, self.url = service, url

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
        return ask(self.url + path, body, method, **headers)

    def generate(self, **body: Any) -> Answer:
        return self.ask("/generate", {"class": "lying"} | body)

    def queued(self) -> int:
        return int(self.service.metrics.registry.get_sample_value("sfd_queue_images") or 0)


@contextmanager
def running(
    model: RegisteredModel | None, options: ServerOptions = SMALL_SERVER, token: str | None = None
) -> Iterator[Running]:
    """A server without a registry, at a free port."""
    service = Service(Workspace(Path()), options, token)
    service.follower.current = model
    service.batcher.start()
    with bind("127.0.0.1", 0) as listener:
        server = Server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started, 60)
        try:
            yield Running(service, url_of(listener))
        finally:
            server.should_exit = True
            thread.join()
            service.batcher.stop(60)
