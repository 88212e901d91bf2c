"""What the floor of the cosine term's length does (`diffusion.loss.cosine_floor`): the paper's 1e-8 against ours, 0.1, on the finished stages
of a project.

    python benchmarks/cosine_floor.py    # the digits (`make repro`): six trainings of 1,600 steps, by estimate 12 minutes on two cores
    python benchmarks/cosine_floor.py --steps 20 --seeds 1 --num-images 60    # a quick try

On a folder of images: `sfd init emo --images FOLDER`, `dvc repro latents reference` in `emo`, then the same command there. Its plan leaves the
cosine term out; here it has weight 1, and REPA is left as it is.

Both trainings of a seed start with the same weights and see the same images, noise and times. The averaged weights are measured four times on
the way: the velocity loss on draws that no training has seen, and metrics of samples.
"""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.utils._pytree import tree_map_only

from sfd.data.latents import LatentDataset
from sfd.generation.model import DiffusionModel
from sfd.models.backbone import Backbone
from sfd.params import Params
from sfd.pipeline.diffusion import build_task, open_latents
from sfd.tuning.evaluator import STUDY, CandidateEvaluator
from sfd.workspace import Workspace

PROJECT = Workspace(Path())
FLOORS = {"paper": 1e-8, "ours": 0.1}
LOOKS = 4
MEASURED_BATCHES, MEASURED_BATCH = 5, 100
UNSEEN = 10**9
"""Steps from here on are in no training, so their draws are new."""
METRICS = {"velocity": "velocity loss", "fd": "Frechet distance", "fid": "FID", "class_accuracy": "class accuracy"}


def options(floor: float, steps: int, num_images: int) -> Params:
    """The project's parameters with this floor and this number of training steps."""
    params = PROJECT.load_params()
    training = params.diffusion.training.model_copy(
        update={"num_steps": steps, "decay_start": None, "keep_every": None}
    )
    loss = params.diffusion.loss.model_copy(update={"cosine_floor": floor, "cosine_weight": 1.0})
    tune = {
        "num_images": num_images,
        "kind": "training",
        "objectives": (),
        "repeats": 1,
        "report_every": max(1, steps // LOOKS),
    }
    changed = {
        "diffusion": params.diffusion.model_copy(update={"training": training, "loss": loss}),
        "sample": params.sample.model_copy(update={"step": None}),
        "tune": params.tune.model_copy(update=tune),
    }
    return params.model_copy(update=changed)


@torch.no_grad()
def velocity_loss(params: Params, network: Backbone, dataset: LatentDataset) -> float:
    """The velocity loss on training images with unseen noise and times."""
    device = next(network.parameters()).device
    task = build_task(PROJECT, params, network, dataset, params.seed)
    losses = []
    for number in range(MEASURED_BATCHES):
        rows = [(number * MEASURED_BATCH + n) % len(dataset) for n in range(MEASURED_BATCH)]
        data = tree_map_only(torch.Tensor, lambda value: value.to(device), dataset.__getitems__(rows))
        noise = task.noise(UNSEEN + number, MEASURED_BATCH, device)
        losses.append(float(task.losses(network, data, noise)["velocity"]))
    return statistics.fmean(losses)


def measure(
    evaluator: CandidateEvaluator, dataset: LatentDataset, params: Params, seed: int
) -> dict[int, dict[str, float]]:
    """Trains one model; step to what was measured then."""
    found: dict[int, dict[str, float]] = {}

    def look(model: DiffusionModel, step: int) -> None:
        scored = evaluator.score(model, params, STUDY, seed).metrics
        kept = {name: value for name, value in scored.items() if name in METRICS}
        found[step] = {"velocity": velocity_loss(params, model.network, dataset), **kept}

    with tempfile.TemporaryDirectory() as work:
        model = evaluator.train(params, seed, Path(work), look)
    look(model, params.diffusion.training.num_steps)
    return found


def rows(found: dict[str, list[dict[int, dict[str, float]]]]) -> Iterator[str]:
    """A row per metric and step: the means of both floors, and the mean difference within a seed with its standard error."""
    paper, ours = found.values()
    for step, first in paper[0].items():
        for name in first:
            pairs = [(a[step][name], b[step][name]) for a, b in zip(paper, ours, strict=True)]
            gaps = [mine - theirs for theirs, mine in pairs]
            error = f" ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.4f}" if len(gaps) > 1 else ""
            means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
            yield f"| {step:,} | {METRICS[name]} | {means[0]:.4f} | {means[1]:.4f} | {statistics.fmean(gaps):+.4f}{error} |"


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 1600,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, each with both floors.")] = 3,
    num_images: Annotated[int, typer.Option(min=10, help="Images that a model is scored with.")] = 450,
) -> None:
    """Prints one table, for the README or a page of the docs."""
    ours = options(FLOORS["ours"], steps, num_images)
    evaluator, dataset = CandidateEvaluator(PROJECT, ours), open_latents(ours, PROJECT.result("latents"))
    found: dict[str, list[dict[int, dict[str, float]]]] = {name: [] for name in FLOORS}
    for seed in range(seeds):
        for name, floor in FLOORS.items():
            found[name].append(measure(evaluator, dataset, options(floor, steps, num_images), seed))
            last = ", ".join(f"{key} {value:.4f}" for key, value in found[name][-1][steps].items())
            print(f"seed {seed}, floor {floor:g}: {last}", flush=True)
    print(
        f"\n| step of {steps:,}, {seeds} seeds | | floor {FLOORS['paper']:g} | floor {FLOORS['ours']:g} | ours - paper |"
    )
    print("\n".join(["|---|---|---|---|---|", *rows(found)]))


if __name__ == "__main__":
    typer.run(main)
