"""The connections. To uvicorn's own they add a time limit for headers; what is no HTTP is answered in words, and counted."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sfd.serving.metrics import OTHER_PATH, Metrics


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol of h11, which bounds the size of headers, with limits of time and counts of what never reaches the application.

    Attributes:
        metrics: the server's.
        limit_seconds: a connection that has not sent the headers of its next request within this time is closed, and one that has
            not read anything of its answer. uvicorn itself limits only the time between two requests.
    """

    metrics: ClassVar[Metrics]
    limit_seconds: ClassVar[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit: asyncio.TimerHandle | None = None
        self.reading_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called when the client has connected."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called with a part of what the client sends."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Called when the client does not read, and the buffers are full."""
        super().pause_writing()
        self.reading_limit = self.loop.call_later(self.limit_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Called when the client reads again."""
        super().resume_writing()
        if self.reading_limit is not None:
            self.reading_limit.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection has ended."""
        super().connection_lost(exc)
        self.resume_writing()
        self._watch()

    def _watch(self) -> None:
        """Starts the limit when headers are awaited, and stops it when they are there."""
        waits = (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()
        if self.limit is not None and not waits:
            self.limit.cancel()
            self.limit = None
        if self.limit is None and waits:
            self.limit = self.loop.call_later(self.limit_seconds, self._too_slow)

    def _too_slow(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, f"the headers did not arrive within {self.limit_seconds:g} s; send them again")
        self.transport.close()  # who has sent nothing, as browsers do in advance, is not answered

    def send_400_response(self, _: str) -> None:
        """uvicorn calls it for what is no HTTP, in the middle of a body as well."""
        self._refuse(400, "this is no valid HTTP request")
        self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        if self.conn.our_state is h11.IDLE:  # else the request has got as far as the application, which counts it
            self.metrics.requests.labels(OTHER_PATH, str(status)).inc()
        elif self.conn.our_state is not h11.SEND_RESPONSE:
            return  # it is being answered
        body = json.dumps({"error": sentence}).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        events = (
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")


def protocol_of(metrics: Metrics, limit_seconds: float) -> type[LimitedProtocol]:
    """The protocol for one server; uvicorn takes a class."""
    return type("Protocol", (LimitedProtocol,), {"metrics": metrics, "limit_seconds": limit_seconds})
