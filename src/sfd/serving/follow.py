"""The version that the server draws with: loaded at the start, and replaced when its alias moves."""

import threading
import time
from collections.abc import Callable

from sfd.errors import UserError, warn
from sfd.registry.load import RegisteredModel, find_version, load_registered
from sfd.serving.metrics import Metrics
from sfd.workspace import Workspace

RETRY_FAILED_S = 300.0
"""Seconds after which a version that could not be loaded is tried again: the cause may have been elsewhere."""


class Follower:
    """Holds the version of an alias.

    Attributes:
        current: the version that new requests get; None until the first one is loaded.
    """

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        alias: str,
        try_out: Callable[[RegisteredModel], None],
        metrics: Metrics,
    ) -> None:
        """``try_out`` draws with a version before clients do, and raises if that fails."""
        self.current: RegisteredModel | None = None
        self._workspace, self._name, self._alias = workspace, name, alias
        self._try_out, self._metrics = try_out, metrics
        self._stopped = threading.Event()
        self._away = False
        self._failed, self._retry_at = "", 0.0

    def load(self, version: str) -> RegisteredModel:
        """Loads a version by number or alias, draws an image with it, and makes it the current one; returns it.

        Raises:
            UserError: it cannot be loaded or cannot draw; the current one stays.
        """
        try:
            model = load_registered(self._workspace, self._name, version)
            self._try_out(model)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # a broken artifact raises nearly every type; the reason is shown, and serving goes on
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"version {version} of model `{self._name}` cannot be used ({reason})") from error
        self.current = model
        self._metrics.model.info({"name": model.name, "version": model.version})
        return model

    def follow(self, poll_seconds: float) -> None:
        """Polls the alias until :meth:`stop`."""
        while not self._stopped.wait(poll_seconds):
            self.poll()

    def stop(self) -> None:
        """Ends :meth:`follow` after its current poll."""
        self._stopped.set()

    def poll(self) -> None:
        """Looks the alias up once, and loads its version if that is another one. A failure is printed once and changes nothing else."""
        try:
            version = str(find_version(self._workspace, self._name, self._alias).version)
        except Exception as error:  # each driver of MLflow fails in its own way; the loaded model does not need it
            if not self._away:
                reason = " ".join(str(error).split())[:300]
                warn(f"alias `{self._alias}` cannot be looked up, so version {self._version()} stays: {reason}")
            self._away = True
            return
        self._away = False
        waits = version == self._failed and time.monotonic() < self._retry_at
        if version != self._version() and not waits:
            self._exchange(version)

    def _exchange(self, version: str) -> None:
        before = self._version()
        try:
            self.load(version)
        except UserError as error:
            if self._stopped.is_set():  # which cancels its trial
                return
            self._metrics.reloads.labels("failed").inc()
            if version != self._failed:
                warn(f"{error}; version {self._version()} stays")
            self._failed, self._retry_at = version, time.monotonic() + RETRY_FAILED_S
            return
        self._failed = ""
        self._metrics.reloads.labels("loaded").inc()
        print(f"{self._name} version {version} ({self._alias}) from now on; before: version {before}", flush=True)

    def _version(self) -> str:
        return self.current.version if self.current is not None else ""
