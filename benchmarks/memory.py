"""Does the memory of a training grow with its data set? Runs the real training on few and on many synthetic latents.

    python benchmarks/memory.py                                  # 2,000 and 200,000 latents, about 0.7 GB in the temporary folder
    python benchmarks/memory.py --num-workers 2 --json out.json

Each training runs in a fresh process, with the model and the loss of params.yaml. Two numbers are measured: the peak of the process's
resident memory, which includes mapped file pages; and the part that is the process's own (anonymous pages).
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

SHARD_SIZE, GRID, TEXTURE, SEMANTIC = 1000, 4, 8, 4
"""Latents of the digits: 12 x 4 x 4 in half precision."""
app = typer.Typer(add_completion=False)


@app.command()
def compare(
    small: Annotated[int, typer.Option(help="latents of the small data set")] = 2_000,
    large: Annotated[int, typer.Option(help="latents of the large data set")] = 200_000,
    num_steps: Annotated[int, typer.Option(help="steps of each training")] = 300,
    feature_dim: Annotated[int, typer.Option(help="channels of the stored features, for REPA")] = 96,
    num_workers: Annotated[int, typer.Option(help="processes that read batches ahead")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the numbers there as well")] = None,
) -> None:
    """Prints the peaks of both trainings, and their ratio."""
    rows = []
    for num_images in (small, large):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "train", folder, str(num_images), str(num_steps), str(feature_dim)]
            done = subprocess.run([*command, str(num_workers)], stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"| {num_steps} steps, {num_workers} reading processes | {small:,} latents | {large:,} latents | ratio |")
    print("|---|---|---|---|")
    for key in rows[0]:
        values = [row[key] for row in rows]
        ratio = f"{values[1] / values[0]:.3f}" if values[0] else "-"
        print(f"| {key} | {values[0]:.1f} | {values[1]:.1f} | {ratio} |")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


def write_latents(folder: Path, num_images: int, feature_dim: int) -> None:
    """Writes random latents, classes and features in the layout of stage ``latents``, one shard at a time."""
    import torch

    from sfd.data.latents import STATISTICS, ChannelStatistics, LatentsIndex
    from sfd.data.shards import Shard, shard_bounds, write_index, write_shards
    from sfd.seeding import generator

    def make(start: int, end: int) -> Shard:
        random = generator(0, "benchmark/latents", start)
        shapes = {"latents": (TEXTURE + SEMANTIC, GRID, GRID), "features": (GRID**2, feature_dim)}
        shard = {name: torch.randn(end - start, 1, *shape, generator=random).half() for name, shape in shapes.items()}
        return shard | {"labels": torch.arange(start, end) % 10}

    bounds = shard_bounds(num_images, SHARD_SIZE)
    write_shards(folder, bounds, make, range(len(bounds)))
    classes = [str(n) for n in range(10)]
    write_index(
        folder, bounds, LatentsIndex(1, GRID, TEXTURE, SEMANTIC, feature_dim, classes, [num_images // 10] * 10, {}, 1)
    )
    channels = TEXTURE + SEMANTIC
    ChannelStatistics(torch.zeros(channels), torch.ones(channels)).save(folder / STATISTICS)


@app.command()
def write(folder: Path, num_images: int, feature_dim: int) -> None:
    """Writes the data set in a process of its own, so that this does not count as memory of the training."""
    write_latents(folder / "shards", num_images, feature_dim)


@app.command()
def train(folder: Path, num_images: int, num_steps: int, feature_dim: int, num_workers: int) -> None:
    """Has another process write the data set, then trains on it in this one; prints the peaks in MiB as JSON."""
    subprocess.run([sys.executable, __file__, "write", str(folder), str(num_images), str(feature_dim)], check=True)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    from sfd.pipeline.diffusion import build_network, build_task, open_latents
    from sfd.training.loop import train as run
    from sfd.workspace import Workspace

    workspace = Workspace.find()
    params = workspace.load_params()
    training = params.diffusion.training.model_copy(update={"num_steps": num_steps})
    changes = {"num_workers": num_workers, "log_every": 10, "compile": False}
    runtime = params.runtime.diffusion.model_copy(update=changes)
    dataset = open_latents(params, folder)
    task = build_task(workspace, params, build_network(params, dataset, 0), dataset, 0)
    own: list[float] = []
    run(task, training, 0, folder, "memory", lambda _row, _step: own.append(resident("RssAnon")), runtime)
    peaks: dict[str, Any] = {
        "peak resident memory, MiB": resident("VmHWM"),
        "of which its own (anonymous), MiB": max(own),
    }
    if num_workers:
        readers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        # The largest child so far may have been the one that made the data set.
        peaks["largest reading process, MiB"] = readers if readers > children else 0.0
    print(json.dumps(peaks))


def resident(key: str) -> float:
    """The value of ``key`` in Linux's /proc/self/status, in MiB."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "memory is read from Linux's /proc"
    return int(found[1]) / 1024


if __name__ == "__main__":
    app(sys.argv[1:] if sys.argv[1:2] in (["train"], ["write"], ["compare"]) else ["compare", *sys.argv[1:]])
