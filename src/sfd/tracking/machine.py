"""What the machine does while a stage runs: processors, memory, disk, network and GPUs, under MLflow's names for them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sfd.errors import warn
from sfd.tracking.client import import_mlflow
from sfd.tracking.journal import now_ms

INTERVAL_S = 30.0
"""Between two samples. The first one is taken after two of these, so a short stage has none."""

Log = Callable[[Mapping[str, float], int], None]


@contextmanager
def watch_machine(log: Log, began_ms: int) -> Iterator[None]:
    """Logs ``system/...`` metrics during the block.

    Args:
        log: takes the metrics and their step, the number of intervals since the run began, in whichever process.
        began_ms: when that was.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(log, began_ms, stop), name="sfd-machine", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(log: Log, began_ms: int, stop: threading.Event) -> None:
    if stop.wait(INTERVAL_S):
        return
    try:
        monitors = _monitors()
        _sample(monitors)  # processors are measured from one sample to the next
        while not stop.wait(INTERVAL_S):
            log(_sample(monitors), round((now_ms() - began_ms) / (1000 * INTERVAL_S)))
    except Exception as error:  # whatever a driver raises: training goes on without these numbers
        warn(f"the machine is not watched any more ({type(error).__name__}: {error})")


def _monitors() -> list[Any]:
    import_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):  # no NVIDIA GPU, or not the library that reads it
        pass
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values
