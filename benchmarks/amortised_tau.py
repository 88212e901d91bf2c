"""One model for all offsets: does it rank them as one training for each offset does?

    python benchmarks/amortised_tau.py measure     # run it in several shells at once to use more cores; kill and rerun it at will
    python benchmarks/amortised_tau.py report      # docs/amortised-tau.md and .png

``measure`` needs a C++ compiler and the finished stages of the digits (``make repro``). It trains, for every seed,
one model for each tau and one with tau drawn from [0, 1] for every image, refines the latter at each tau, and scores all of them alike.
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock, Timeout

WORK = Path(".sfd/amortised_tau")
TAUS, SEEDS, REPEATS = (0.0, 0.1, 0.3, 0.5, 0.8), (0, 1, 2), 2
TRAIN_STEPS, REFINE_STEPS = 1600, 200
METHODS = {"point": "one training a tau", "shared": "one training for all", "refined": "the same, refined at each tau"}
app = typer.Typer(no_args_is_help=True, add_completion=False)


def tasks() -> list[tuple[str, int]]:
    """Trainings, the shared ones first: refining needs them."""
    return [("shared", seed) for seed in SEEDS] + [(f"{tau:g}", seed) for seed in SEEDS for tau in TAUS]


@app.command()
def measure() -> None:
    """Does what no other process has done or is doing."""
    import torch

    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    for name, seed in tasks():
        result = WORK / f"{name}-{seed}.json"
        try:
            with FileLock(result.with_suffix(".lock"), timeout=0):
                if not result.exists():
                    rows = run(name, seed)
                    result.write_text(json.dumps(rows, indent=1))
                    print(f"{name} seed {seed}: {rows}", flush=True)
        except Timeout:
            continue


def run(name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one model and scores it; the shared one at every tau, plain and refined."""
    from sfd.params import load_params, parse_params
    from sfd.tuning.workbench import Workbench

    tree = load_params(Path("params.yaml")).model_dump(mode="json", by_alias=True)
    tree["schedule"] |= {"kind": "offset", "tau": {"low": 0.0, "high": 1.0} if name == "shared" else float(name)}
    tree["sample"] |= {"guidance": {"kind": "none"}, "sampler": "heun", "num_steps": 10}
    tree["diffusion"]["training"] |= {"num_steps": TRAIN_STEPS, "compile": True}
    tree["tune"] |= {"refine_steps": REFINE_STEPS, "report_every": 10**9, "num_images": 500, "kind": "sampling"}

    def with_tau(tau: float) -> Any:
        tree["sample"]["schedule"] = tree["schedule"] | {"tau": tau}
        return parse_params(tree)

    bench = Workbench(with_tau(0.5 if name == "shared" else float(name)))
    folder = WORK / f"{name}-{seed}"
    started = time.perf_counter()
    model = bench.train(bench.params, seed, fresh(folder))
    cost = {"steps": bench.params.diffusion.training.num_steps, "seconds": time.perf_counter() - started}
    rows = []
    for tau in TAUS if name == "shared" else (float(name),):
        rows.append(row("shared" if name == "shared" else "point", tau, seed, cost, bench, model, with_tau(tau)))
    if name == "shared":
        for tau in TAUS:
            started = time.perf_counter()
            refined = bench.refine(model, with_tau(tau), seed, fresh(folder))
            cost = {"steps": REFINE_STEPS, "seconds": time.perf_counter() - started}
            rows.append(row("refined", tau, seed, cost, bench, refined, with_tau(tau)))
    shutil.rmtree(folder)
    return rows


def fresh(folder: Path) -> Path:
    """An empty folder: a checkpoint of another training must not be continued."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def row(
    method: str, tau: float, seed: int, cost: dict[str, float], bench: Any, model: Any, params: Any
) -> dict[str, Any]:
    """Means over the sampling seeds."""
    found = [bench.score(model, params, "study", repeat).metrics for repeat in range(REPEATS)]
    means = {key: statistics.fmean(metrics[key] for metrics in found) for key in ("fd", "kid", "class_accuracy")}
    return {"method": method, "tau": tau, "seed": seed, **cost, **means}


if __name__ == "__main__":
    app()
