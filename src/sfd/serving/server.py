"""The process: address, threads, signals."""

import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn

from sfd.errors import UserError
from sfd.registry.load import find_version
from sfd.serving.address import url_of
from sfd.serving.app import Service, build_app
from sfd.serving.options import ServerOptions
from sfd.serving.protocol import protocol_of
from sfd.workspace import Workspace

GRACE_S = 5.0
"""Seconds that the server waits at its end: for ready answers to be sent, and for the current sampler call."""


class Server(uvicorn.Server):
    """uvicorn's server. It tells the service when a signal asks it to end."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            build_app(service),
            http=protocol_of(service.metrics, service.options.timeout_seconds),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(service.options.timeout_seconds + GRACE_S),
        )
        super().__init__(config)
        self.service = service
        self.failure: UserError | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by SIGTERM and SIGINT: no new requests; uvicorn then closes the address and waits for the admitted ones."""
        self.service.stopping = True
        super().handle_exit(sig, frame)

    def load_and_follow(self, address: str) -> None:
        """Loads the model, says that the server is ready, and follows the alias. A first version that fails ends the server."""
        service = self.service
        try:
            model = service.follower.load(service.options.alias)
        except UserError as error:
            if not service.stopping:
                self.failure = error
            self.should_exit = True
            return
        print(f"{model.name} version {model.version} ({service.options.alias}) at {address}", flush=True)
        service.follower.follow(service.options.poll_seconds)


def serve(workspace: Workspace, options: ServerOptions, token: str | None, listener: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, and then ends the process with status 0.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    # uvicorn raises a signal again when it is done, for the handler that stood before: this one makes the exit status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    found = find_version(workspace, options.model, options.alias)
    print(f"loading {found.name} version {found.version} ({options.alias})", flush=True)
    service = Service(workspace, options, token)
    server = Server(service)
    follower = threading.Thread(
        target=server.load_and_follow, args=(url_of(listener),), name="sfd-follower", daemon=True
    )
    service.batcher.start()
    follower.start()
    try:
        server.run(sockets=[listener])
    finally:
        service.stopping = True
        service.follower.stop()
        service.batcher.stop(GRACE_S)
        follower.join(GRACE_S)
    if server.failure is not None:
        raise server.failure
