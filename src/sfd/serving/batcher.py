"""Dynamic batching: a queue of requested images, and one thread that draws them in batches."""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from sfd.data.images import png_bytes
from sfd.models.attention import AttentionSum
from sfd.models.conditions import Value
from sfd.names import SAMPLERS
from sfd.params import SampleParams
from sfd.registry.load import RegisteredModel
from sfd.serving.metrics import Metrics

COMPANY_S = 0.005
"""Seconds that the oldest image waits for others that can share its sampler call."""

SPEED_MEMORY = 0.8
"""Weight of the past in the running mean of seconds per image."""


class QueueFull(Exception):
    """The queue has no room for a request's images. ``retry_after``: seconds until it should have."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"no room for about {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, eq=False)  # two images of one value and seed are still two jobs
class Job:
    """One image to draw, with the version that admitted it. ``attention``: what notes where the image looks at its prompt; None: not asked."""

    model: RegisteredModel
    settings: SampleParams
    value: Value
    seed: int
    attention: AttentionSum | None = None
    png: Future[bytes] = field(default_factory=Future)
    admitted: float = field(default_factory=time.monotonic)

    def can_join(self, other: "Job") -> bool:
        """Whether both can be drawn by one sampler call."""
        return self.model is other.model and self.settings == other.settings


class DynamicBatcher:
    """Admits images and draws them in batches: the oldest image first, together with waiting ones of equal model and settings.

    Every call contains the oldest image. So an image waits for at most as many calls as there were images before it.
    """

    def __init__(self, batch_size: int, max_queue: int, metrics: Metrics) -> None:
        self._batch_size, self._max_queue, self._metrics = batch_size, max_queue, metrics
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._seconds_per_image = 0.0
        self._worker = threading.Thread(target=self._run, name="sfd-sampler", daemon=True)
        metrics.watch_queue(lambda: len(self._waiting))

    def start(self) -> None:
        """Starts the worker."""
        self._worker.start()

    @property
    def works(self) -> bool:
        """Whether the worker runs."""
        return self._worker.is_alive() and not self._stopped

    def stop(self, wait_s: float) -> None:
        """Ends the worker after its current call, waiting for it at most ``wait_s``; images that still wait are cancelled."""
        with self._changed:
            self._stopped = True
            left = list(self._waiting)
            self._changed.notify()
        for job in left:
            job.png.cancel()
        if self._worker.is_alive():
            self._worker.join(wait_s)

    def submit(
        self,
        model: RegisteredModel,
        settings: SampleParams,
        value: Value,
        seeds: Sequence[int],
        attention: Sequence[AttentionSum] = (),
    ) -> list[Future[bytes]]:
        """Admits one image per seed, all or none; returns their PNG files to be. Cancelling one takes it from the queue.

        ``attention``: one per seed, complete once the image's PNG file is there; empty: it is not asked for. Such an image shares calls with
        others as all do, for what is noted changes none of them.

        Raises:
            QueueFull: with them, more than ``max_queue`` images would wait.
        """
        with self._changed:
            excess = len(self._waiting) + len(seeds) - self._max_queue
            if excess > 0:
                raise QueueFull(self.seconds_for(excess))
            sums: Sequence[AttentionSum | None] = attention or [None] * len(seeds)
            return self._admit([Job(model, settings, value, *pair) for pair in zip(seeds, sums, strict=True)])

    def try_out(self, model: RegisteredModel) -> None:
        """Draws one image with the registered settings and discards it. Raises whatever drawing raises.

        The image waits in the queue like all others, but the queue's limit does not apply to it.
        """
        with self._changed:
            (value,) = model.images.model.condition.plan(1)
            (png,) = self._admit([Job(model, model.sample, value, 0)])
        png.result()

    def seconds_for(self, images: int) -> int:
        """Seconds that drawing so many images takes at the measured speed, rounded up, at least 1."""
        return max(1, math.ceil(images * self._seconds_per_image))

    def _admit(self, jobs: list[Job]) -> list[Future[bytes]]:
        for job in jobs:
            self._waiting.append(job)
            job.png.add_done_callback(self._withdraw)
        self._changed.notify()
        return [job.png for job in jobs]

    def _withdraw(self, png: Future[bytes]) -> None:
        """Called when an image is done or cancelled. Only a cancelled one can still be in the queue."""
        if png.cancelled():
            with self._changed:
                self._waiting = deque(job for job in self._waiting if job.png is not png)
                self._changed.notify()

    def _run(self) -> None:
        while jobs := self._take():
            self._draw(jobs)

    def _take(self) -> list[Job]:
        """The jobs of the next call: waits until they fill a batch or the oldest has waited long enough. Empty once stopped."""
        with self._changed:
            while not self._stopped:
                if not self._waiting:
                    self._changed.wait()
                    continue
                oldest = self._waiting[0]
                size = self._shape(oldest.settings)
                jobs = [job for job in self._waiting if job.can_join(oldest)][:size]
                patience = oldest.admitted + COMPANY_S - time.monotonic()
                if len(jobs) == size or patience <= 0.0:
                    self._waiting = deque(job for job in self._waiting if job not in jobs)
                    jobs = [job for job in jobs if job.png.set_running_or_notify_cancel()]
                    if jobs:
                        return jobs
                else:
                    self._changed.wait(patience)
        return []

    def _shape(self, settings: SampleParams) -> int:
        """Images per call. Batches are always filled up to it, because matrix products round by the shape of their batch.

        An adaptive sampler chooses its steps by the error over the whole batch, so that an image would depend on the others: it is drawn alone.
        """
        return 1 if SAMPLERS[settings.sampler].adaptive else self._batch_size

    def _draw(self, jobs: list[Job]) -> None:
        model, settings = jobs[0].model, jobs[0].settings
        started = time.monotonic()
        try:
            values, seeds = [job.value for job in jobs], [job.seed for job in jobs]
            sums = [job.attention for job in jobs]
            (pixels,) = model.images.sample(values, seeds, settings, self._shape(settings), fill=True, sums=sums)
            pngs = [png_bytes(image) for image in pixels]
        except Exception as error:  # the requests answer it; the worker has others to serve
            for job in jobs:
                job.png.set_exception(error)
            return
        seconds = time.monotonic() - started
        self._metrics.batch_images.observe(len(jobs))
        self._metrics.sampling_seconds.observe(seconds)
        past = self._seconds_per_image or seconds / len(jobs)
        self._seconds_per_image = SPEED_MEMORY * past + (1.0 - SPEED_MEMORY) * seconds / len(jobs)
        for job, png in zip(jobs, pngs, strict=True):
            job.png.set_result(png)
