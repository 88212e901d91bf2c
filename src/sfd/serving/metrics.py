"""The server's metrics, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER_PATH = "other"
"""The label of all unknown paths. Clients can invent paths without limit, and a label must have few values."""


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("sfd_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self.images = Counter("sfd_images", "Images that were sent", registry=self.registry)
        self.queue_images = Gauge("sfd_queue_images", "Images that wait for a sampler call", registry=self.registry)
        self.batch_images = Histogram(
            "sfd_batch_images",
            "Images per sampler call, without filling",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.sampling_seconds = Histogram(
            "sfd_sampling_seconds",
            "Duration of a sampler call",
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self.model = Info("sfd_model", "The version that new requests get", registry=self.registry)
        self.reloads = Counter("sfd_reloads", "Versions that the alias moved to", ["result"], registry=self.registry)
        for result in ("loaded", "failed"):
            self.reloads.labels(result)  # shown as 0 from the start, so that an alert can be written on them

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Registers the function that gives the queue's length whenever metrics are read."""
        self.queue_images.set_function(length)


class CountRequests:
    """ASGI middleware: counts answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = OTHER_PATH if route is None else route.path
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting)
