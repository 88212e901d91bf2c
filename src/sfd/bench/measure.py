"""What is measured: seconds per step, floating-point operations, memory, and the fastest matrix product of the device."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

WARM_UP_STEPS = 3
"""Steps before the measured ones: compilation, memory pools, caches."""


@dataclass(frozen=True)
class Measurement:
    """One measured job. ``step_seconds``: of each measured step. ``flops``: floating-point operations per step; None if no network runs.

    ``evaluations``: forward passes of the backbone per step of sampling, else None. ``peak_memory_gib``: on a GPU the peak of torch's
    allocations; on a CPU the peak of the whole process.
    """

    name: str
    batch_size: int
    step_seconds: tuple[float, ...]
    peak_memory_gib: float
    dtype: torch.dtype
    flops: int | None = None
    evaluations: int | None = None

    @property
    def median_seconds(self) -> float:
        """Seconds per step, median."""
        return statistics.median(self.step_seconds)

    @property
    def middle_half_seconds(self) -> tuple[float, float]:
        """Lower and upper quartile: half of the steps took a time between these two."""
        if len(self.step_seconds) == 1:
            return self.step_seconds[0], self.step_seconds[0]
        low, _, high = statistics.quantiles(self.step_seconds, n=4, method="inclusive")
        return low, high

    @property
    def images_per_second(self) -> float:
        """Images per second, at the median step."""
        return self.batch_size / self.median_seconds

    @property
    def flops_per_second(self) -> float | None:
        """Floating-point operations per second, at the median step; None if no network runs."""
        return None if self.flops is None else self.flops / self.median_seconds


def time_steps(step: Callable[[], object], num_steps: int) -> tuple[float, ...]:
    """Seconds of each of ``num_steps`` steps after :data:`WARM_UP_STEPS`. Each step ends when the GPU has finished it."""
    seconds = []
    for _ in range(WARM_UP_STEPS + num_steps):
        started = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return tuple(seconds[WARM_UP_STEPS:])


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in ``call``, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def reset_peak_memory() -> None:
    """Resets the peak of the GPU's memory. The peak of a CPU process cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib() -> float:
    """The peak of torch's allocations on the GPU; without a GPU, the peak of this process since it started."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def matmul_ceiling(dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest of several products of two large square matrices in ``dtype``.

    Other work on the machine only slows them.
    """
    size, device, number = (8192, "cuda", 20) if torch.cuda.is_available() else (2048, "cpu", 3)
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()
    return 2 * size**3 / min(time_steps(lambda: torch.mm(a, b), number))
