"""REPA with stored features against REPA with decoded ones: disk space, time, and the metrics of the two models.

    python benchmarks/repa_target.py                       # three seeds of 800 steps, on the finished stages of the digits (`make repro`)
    python benchmarks/repa_target.py --steps 20 --seeds 1  # a quick try

Both trainings of a seed start with the same weights and see the same images, noise and times. At the end both models are measured
on the same draws, against the stored features. So their REPA losses can be compared, although the trainings had different targets.
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import safe_open

from sfd.generation.model import DiffusionModel
from sfd.params import Params
from sfd.pipeline.diffusion import build_task, open_latents
from sfd.training.backbone import build_network
from sfd.training.loop import log_nothing, train
from sfd.tuning.evaluator import STUDY, CandidateEvaluator
from sfd.workspace import Workspace

PROJECT = Workspace(Path())
WORK = Path(".sfd/repa_target")
TARGETS = ("stored", "decoded")
MEASURED_BATCHES, MEASURED_BATCH = 10, 100
MEASURES = {
    "step": "time per step, ms",
    "velocity": "velocity loss",
    "repa": "REPA loss against stored features",
    "class_accuracy": "class accuracy",
    "fd": "Frechet distance",
}


def options(target: str, steps: int, num_images: int) -> Params:
    """The project's parameters with this target and this number of training steps."""
    params = PROJECT.load_params()
    training = params.diffusion.training.model_copy(update={"num_steps": steps})
    loss = params.diffusion.loss.model_copy(update={"repa_target": target, "repa_weight": 1.0})
    changed = {
        "diffusion": params.diffusion.model_copy(update={"training": training, "loss": loss}),
        "sample": params.sample.model_copy(update={"sampler": "heun", "num_steps": 10}),
        "tune": params.tune.model_copy(update={"num_images": num_images, "kind": "training", "repeats": 1}),
    }
    return params.model_copy(update=changed)


@torch.no_grad()
def final_losses(params: Params, model: DiffusionModel) -> dict[str, float]:
    """Velocity and REPA losses of the averaged weights on the first training images, against stored features."""
    dataset = open_latents(params, PROJECT.result("latents"))
    task = build_task(PROJECT, params, model.network, dataset, params.seed)
    sums = dict.fromkeys(("velocity", "repa"), 0.0)
    for number in range(MEASURED_BATCHES):
        first = number * MEASURED_BATCH
        data = dataset.__getitems__([(first + n) % len(dataset) for n in range(MEASURED_BATCH)])
        noise = task.noise(10**9 + number, MEASURED_BATCH, torch.device("cpu"))  # draws that no training has seen
        terms = task.losses(model.network, data, noise)
        sums = {name: value + float(terms[name]) / MEASURED_BATCHES for name, value in sums.items()}
    return sums


def measure(evaluator: CandidateEvaluator, target: str, seed: int, steps: int, num_images: int) -> dict[str, float]:
    """Trains one model and measures it."""
    params = options(target, steps, num_images)
    dataset = open_latents(params, PROJECT.result("latents"))
    network = build_network(params, dataset, seed)
    model = DiffusionModel(network, params.schedule, dataset.statistics)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    task = build_task(PROJECT, params, network, dataset, seed)
    began = time.perf_counter()
    trained = train(task, params.diffusion.training, seed, WORK, "f", log_nothing, params.runtime.diffusion)
    seconds = time.perf_counter() - began
    trained.copy_to(network)
    scored = evaluator.score(model, params, STUDY, 0).metrics
    found = {"step": 1000.0 * seconds / steps, **final_losses(options("stored", steps, num_images), model)}
    found |= {name: scored[name] for name in ("class_accuracy", "fd")}
    print(f"seed {seed}, {target}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)
    return found


def disk_bytes() -> dict[str, int]:
    """Bytes of the latents' shards, with features (``stored``) and without (``decoded``)."""
    total = features = 0
    for file in sorted((PROJECT.result("latents") / "shards").glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            sizes = {name: shard.get_tensor(name).nbytes for name in shard.keys()}  # noqa: SIM118  # no mapping
        total += sum(sizes.values())
        features += sizes.get("features", 0)
    return {"stored": total, "decoded": total - features}


def main(
    steps: Annotated[int, typer.Option(help="steps of each training")] = 800,
    seeds: Annotated[int, typer.Option(help="number of seeds, each with both targets")] = 3,
    num_images: Annotated[int, typer.Option(help="images that a model is scored with")] = 500,
) -> None:
    """Prints the means of both targets over the seeds, and the mean difference within a seed with its standard error."""
    evaluator, disk = CandidateEvaluator(PROJECT, options("stored", steps, num_images)), disk_bytes()
    found: dict[str, list[dict[str, float]]] = {target: [] for target in TARGETS}
    for seed in range(seeds):
        for target in TARGETS:
            found[target].append(measure(evaluator, target, seed, steps, num_images))
    print(f"\n| {steps} steps, {seeds} seeds | stored | decoded | decoded - stored |\n|---|---|---|---|")
    ratio = disk["decoded"] / disk["stored"]
    print(f"| latents on disk, bytes | {disk['stored']:,} | {disk['decoded']:,} | x {ratio:.2f} |")
    for name, text in MEASURES.items():
        pairs = [(a[name], b[name]) for a, b in zip(*found.values(), strict=True)]
        gaps = [decoded - stored for stored, decoded in pairs]
        error = f" ± {statistics.stdev(gaps) / seeds**0.5:.4f}" if seeds > 1 else ""
        means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
        print(f"| {text} | {means[0]:.4f} | {means[1]:.4f} | {statistics.fmean(gaps):+.4f}{error} |")


if __name__ == "__main__":
    typer.run(main)
