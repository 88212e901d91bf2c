"""Do two processes give the results of one? Compares diffusion, samples and their metrics with the spread over three seeds.

    python benchmarks/processes.py                     # needs `make repro`; leaves the project alone
    python benchmarks/processes.py --num-steps 800     # shorter trainings

Trains on the project's finished latents in a temporary copy: with every seed in one process, and with the first seed also under torchrun.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

UPSTREAM = ("prepare", "texture_vae", "judge", "semantic", "latents")
SEEDS = (0, 1, 2)


def main(
    num_steps: Annotated[int, typer.Option(help="steps of each training")] = 1600,
    num_images: Annotated[int, typer.Option(help="samples that are scored")] = 450,
    processes: Annotated[int, typer.Option(help="processes under torchrun")] = 2,
) -> None:
    """Prints one row per metric: each seed on one process, their mean and standard deviation, and the first seed on several processes."""
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path.cwd(), Path(folder) / "project")
        tree = yaml.safe_load((project / "params.yaml").read_text())
        tree["diffusion"]["training"]["num_steps"] = num_steps
        tree["runtime"]["diffusion"]["grid_every"] = num_steps
        tree["sample"]["num_images"] = num_images
        alone = [measure(project, tree, seed, 1) for seed in SEEDS]
        together = measure(project, tree, SEEDS[0], processes)
    seeds = " | ".join(f"seed {seed}" for seed in SEEDS)
    print(f"| {num_steps} steps, {num_images} samples | {seeds} | mean | deviation | {processes} processes, seed 0 |")
    print("|" + "---|" * (len(SEEDS) + 4))
    for name, value in together.items():
        found = [metrics[name] for metrics in alone]
        cells = [*found, statistics.fmean(found), statistics.stdev(found), value]
        print(f"| {name} | " + " | ".join(f"{cell:.4g}" for cell in cells) + " |")


def copy_project(project: Path, folder: Path) -> Path:
    """Copies code and parameters, and links finished results; returns the folder."""
    for name in ("src", "stages"):
        shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(project / "params.yaml", folder)
    (folder / "results").mkdir()
    for name in UPSTREAM:
        if not (project / "results" / name / "fingerprint.json").is_file():
            raise SystemExit(f"results/{name} is missing; run `make repro` first")
        (folder / "results" / name).symlink_to((project / "results" / name).resolve())
    if (project / "images").exists():
        (folder / "images").symlink_to((project / "images").resolve())
    return folder


def measure(project: Path, tree: dict[str, Any], seed: int, processes: int) -> dict[str, float]:
    """Trains, samples and scores; returns the metrics of the samples, and the last loss."""
    (project / "params.yaml").write_text(yaml.safe_dump(tree | {"seed": seed}, sort_keys=False))
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": str(threads)}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{project}/mlruns/mlflow.db"
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    for command in (
        [*launcher, "stages/diffusion.py"],
        [*launcher, "stages/sample.py"],
        [sys.executable, "stages/evaluate.py"],
    ):
        subprocess.run(command, cwd=project, env=environment, check=True)
    metrics = json.loads((project / "results" / "evaluate" / "metrics.json").read_text())
    curve = (project / "results" / "diffusion" / "curves.csv").read_text().splitlines()
    chosen = {name: value for name, value in metrics.items() if name.startswith(("fd_", "fid", "class_acc", "memo"))}
    floors = ("_heldout", "_reconstruction")
    return {name: value for name, value in chosen.items() if not name.endswith(floors)} | {
        "last loss": float(curve[-1].rsplit(",", 1)[1])
    }


if __name__ == "__main__":
    typer.run(main)
