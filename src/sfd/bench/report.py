"""``sfd bench``: checks the options, measures one job, and reports it as a table and as JSON."""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfd.errors import UserError
from sfd.params import Params, load_params
from sfd.preset import load_preset
from sfd.tables import as_text
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from sfd.bench.measure import Measurement

Job = Literal["train", "sample", "latents", "load"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, with the parameters of ``file`` or of ``preset``; the other one is None. ``batch_size`` None: that of the parameters."""

    job: Job
    file: Path | None
    device: Device = "auto"
    batch_size: int | None = None
    num_steps: int = 20
    with_decoder: bool = True
    preset: str | None = None

    @property
    def origin(self) -> str:
        """Where the parameters come from."""
        return str(self.file) if self.preset is None else f"preset {self.preset}"

    def load_params(self) -> Params:
        """The parameters, with paths as seen from the working folder. Raises :class:`UserError` as :func:`load_params` does."""
        if self.file is None:
            return load_preset(self.preset or "")
        return Workspace(self.file.parent).resolve_paths(load_params(self.file))


def bench(options: BenchOptions, json_file: Path | None) -> str:
    """Measures and returns the table; writes all numbers to ``json_file``.

    Raises:
        UserError: the params file or the options are wrong, the device is missing, the batch does not fit into its memory, or
            ``json_file`` exists or has no folder.
    """
    params = options.load_params()
    if not options.with_decoder and options.job != "sample":
        raise UserError(
            f"--without-decoder belongs to `sfd bench sample`; `{options.job}` decodes nothing: leave it out"
        )
    if json_file is not None:
        _check_new(json_file)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # set before torch looks for GPUs, so that all code uses the CPU
    import torch

    from sfd.bench import workloads
    from sfd.bench.measure import matmul_ceiling

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no GPU; use --device cpu, or install torch for your GPU")
    arguments: dict[str, Any] = {"batch_size": options.batch_size, "num_steps": options.num_steps}
    if options.job == "sample":
        arguments["with_decoder"] = options.with_decoder
    measure = {
        "train": workloads.measure_train,
        "sample": workloads.measure_sample,
        "latents": workloads.measure_latents,
        "load": workloads.measure_load,
    }[options.job]
    try:
        measured = measure(params, **arguments)
        ceiling = matmul_ceiling(measured[0].dtype) if measured[0].flops is not None else None
    except RuntimeError as error:
        # torch has an exception of its own for the memory of a GPU, but not for that of a CPU.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            f"a batch of {options.batch_size or 'the size in ' + options.origin} does not fit into memory "
            f"({' '.join(str(error).split())[:120]}); give a smaller --batch-size"
        ) from None
    facts = _facts(options)
    rows = [_row(measurement, ceiling) for measurement in measured]
    if json_file is not None:
        json_file.write_text(
            json.dumps(facts | {"matmul_ceiling_flops": ceiling, "measured": rows}, indent=2) + "\n", encoding="utf-8"
        )
    return f"{_table(rows)}\n\n{_legend(facts, ceiling, str(measured[0].dtype))}"


def _check_new(json_file: Path) -> None:
    if json_file.exists():
        raise UserError(f"--json {json_file} exists, and nothing is overwritten; remove it, or name another file")
    if not json_file.parent.is_dir():
        raise UserError(f"--json {json_file} lies in a folder that does not exist; create {json_file.parent} first")


def _facts(options: BenchOptions) -> dict[str, Any]:
    """The circumstances of the measurement: device, threads, versions, time."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "job": options.job,
        "params": options.origin,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "torch": torch.__version__,
    }


def _row(measurement: "Measurement", ceiling: float | None) -> dict[str, Any]:
    speed = measurement.flops_per_second
    return {
        "name": measurement.name,
        "batch_size": measurement.batch_size,
        "images_per_second": measurement.images_per_second,
        "step_seconds_median": measurement.median_seconds,
        "step_seconds_quartiles": measurement.middle_half_seconds,
        "step_seconds": measurement.step_seconds,
        "peak_memory_gib": measurement.peak_memory_gib,
        "flops_per_step": measurement.flops,
        "model_flop_utilisation": speed / ceiling if speed is not None and ceiling is not None else None,
        "network_evaluations": measurement.evaluations,
        "dtype": str(measurement.dtype).removeprefix("torch."),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = [
        "job",
        "batch",
        "images/s",
        "ms per step",
        "middle half",
        "peak GiB",
        "TFLOP/s",
        "of ceiling",
        "evaluations",
    ]
    cells = [head]
    for row in rows:
        low, high = row["step_seconds_quartiles"]
        flops, used = row["flops_per_step"], row["model_flop_utilisation"]
        cells.append(
            [
                row["name"],
                str(row["batch_size"]),
                f"{row['images_per_second']:.4g}",
                f"{1e3 * row['step_seconds_median']:.4g}",
                f"{1e3 * low:.4g} to {1e3 * high:.4g}",
                f"{row['peak_memory_gib']:.2f}",
                "-" if flops is None else f"{flops / row['step_seconds_median'] / 1e12:.3g}",
                "-" if used is None else f"{100 * used:.1f} %",
                "-" if row["network_evaluations"] is None else str(row["network_evaluations"]),
            ]
        )
    return as_text(cells)


def _legend(facts: dict[str, Any], ceiling: float | None, dtype: str) -> str:
    parts = [facts["device"], f"{facts['threads']} threads of {facts['cores']} cores", f"torch {facts['torch']}"]
    if ceiling is not None:
        parts.append(f"ceiling {ceiling / 1e12:.3g} TFLOP/s (matrix product, {dtype.removeprefix('torch.')})")
    return ", ".join([*parts, facts["params"], facts["date"]])
