"""Runs the parts of gpu_check_parts.py, each in a process of its own with a time limit, and prints what they found as one table.

`benchmarks/gpu_check.sh` says how it is called. A part that fails, or takes too long, is a line of the table; what it found before stays.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PARTS_FILE = Path(__file__).with_name("gpu_check_parts.py")
TORCH_ONLY: tuple[str, ...] = ("torch",)
PARAMS = ("torch", "accelerate", "safetensors", "pydantic", "ruamel", "tqdm")
BENCH = (*PARAMS, "timm")
STAGES = (*BENCH, "diffusers", "mlflow", "pandas", "pandera", "pyarrow", "sklearn", "filelock", "grimp")
PARTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "machine": (60, TORCH_ONLY),
    "network": (90, TORCH_ONLY),
    "samplers": (60, TORCH_ONLY),
    "processes": (60, TORCH_ONLY),
    "encoders": (60, ("torch", "timm")),
    "train": (130, BENCH),
    "pair": (100, TORCH_ONLY),
    "sample": (80, BENCH),
    "stages": (220, STAGES),
    "vae": (60, ("torch", "diffusers")),
    "latents": (60, (*BENCH, "diffusers")),
    "load": (40, BENCH),
}
"""Seconds that a part may take, and the modules that it needs, in the order in which they run: what needs least and says most comes first."""
CPU_PATIENCE = 6
"""With the CPU in the GPU's place, parts may take so many times as long."""
DEADLINE_S = 530.0
"""Of all parts together."""
LEAST_S = 10.0
"""With less time left, a part is not started."""


def main() -> None:
    """Runs the parts, prints the table, writes the file. The exit status is 1 if a check failed or a part did not end well."""
    options = parse()
    if options.json is not None and options.json.exists():
        sys.exit(f"error: --json {options.json} exists, and nothing is overwritten; remove it, or name another file")
    environment = dict(os.environ)
    if options.wheels is not None:
        environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}{os.pathsep}{options.wheels.resolve()}"
        sys.path.append(str(options.wheels.resolve()))
    if not options.cpu and not has_gpu():
        sys.exit("error: torch finds no GPU here; --cpu tests this script without one")
    end = time.monotonic() + DEADLINE_S * (CPU_PATIENCE if options.cpu else 1)
    rows: list[Row] = []
    for name in options.only:
        rows += run_part(name, options.cpu, environment, end)
    ceilings = {row["name"]: row["flops_per_second"] for row in rows if row["kind"] == "ceiling"}
    for row in rows:
        if row["kind"] == "speed" and row.get("flops_per_second") and ceilings.get(row["dtype"]):
            row["share_of_ceiling"] = row["flops_per_second"] / ceilings[row["dtype"]]
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"cpu": options.cpu, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(row["kind"] in ("check", "failure") and not row["ok"] for row in rows))


def parse() -> argparse.Namespace:
    """The options. Ends the program with a line for one that is wrong."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu_check.sh", description=__doc__)
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="a folder of packages, as `pip install --target` makes it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="a new file for all numbers")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, and the CPU in the GPU's place")
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = [name for name in options.only if name not in PARTS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels {options.wheels} is no folder")
    return options


def has_gpu() -> bool:
    """Asked in a process of its own, so that this one holds no memory of the GPU."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


def run_part(name: str, cpu: bool, environment: dict[str, str], end: float) -> Iterator[Row]:
    """The rows of one part; a last one says what went wrong."""
    limit, modules = PARTS[name]
    missing = [module for module in modules if find_spec(module) is None]
    left = end - time.monotonic()
    if missing:
        yield {"kind": "skipped", "part": name, "why": f"needs {', '.join(missing)}"}
        return
    if left < LEAST_S:
        yield failure(name, "no time was left for it")
        return
    limit_s, started = min(float(limit * (CPU_PATIENCE if cpu else 1)), left), time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found, said = Path(folder) / "rows", Path(folder) / "said"
        command = [sys.executable, str(PARTS_FILE), name, str(found), *(["--cpu"] if cpu else [])]
        with said.open("wb") as stream:
            child = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
            try:
                status: int | None = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        if found.is_file():
            yield from (json.loads(line) | {"part": name} for line in found.read_text(encoding="utf-8").splitlines())
        last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        if status is None:
            yield failure(name, f"stopped after {limit_s:.0f} s")
        elif status:
            yield failure(name, f"status {status}: {' '.join(last)[:200]}")
    yield {"kind": "time", "part": name, "seconds": round(time.monotonic() - started, 1)}


def failure(name: str, why: str) -> Row:
    """A part that did not end well."""
    return {"kind": "failure", "part": name, "ok": False, "why": why}


def table(rows: list[Row]) -> str:
    """All rows for a reader."""
    lines = [["part", "what", "found", "allowed", ""]]
    for row in rows:
        kind, part = row["kind"], row["part"]
        if kind == "fact":
            lines.append([part, row["name"], str(row["value"]), "", ""])
        elif kind == "ceiling":
            lines.append(
                [part, f"matrix products in {row['name']}", f"{row['flops_per_second'] / 1e12:.4g} TFLOP/s", "", ""]
            )
        elif kind == "check":
            lines.append(
                [part, row["name"], f"{row['value']:.1e}", f"{row['limit']:.0e}", "ok" if row["ok"] else "WRONG"]
            )
        elif kind == "speed":
            lines.append([part, row["name"], speed(row), "", ""])
        elif kind in ("failure", "skipped"):
            lines.append([part, "FAILED" if kind == "failure" else "not run", row["why"], "", ""])
    lines.append(["all", "seconds", f"{sum(row['seconds'] for row in rows if row['kind'] == 'time'):.0f}", "", ""])
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def speed(row: Row) -> str:
    """Images per second, and what they mean."""
    parts = [f"{row['images_per_second']:.4g} images/s", f"batch {row['batch_size']}", row["dtype"]]
    if "share_of_ceiling" in row:
        parts.append(f"{100 * row['share_of_ceiling']:.0f} % of ceiling")
    parts.append(f"{row['peak_memory_gib']:.1f} GiB")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
