"""How few network evaluations give the distance that dopri5 gives? All samplers draw from the trained digits model on the same noise.

    python benchmarks/samplers.py              # needs `make repro`; two CPU cores, under 10 minutes
    python benchmarks/samplers.py --quick      # a try: two seeds and few images
    python benchmarks/samplers.py --solution   # the error of dopri5 by both rules, on a random network; needs nothing, about a minute

With each seed, every sampler draws the same classes from the same noise, and the judge compares the images with the held-out ones. The
difference from dopri5 is taken within each seed; its standard error is that of the mean difference over the seeds.
"""

import datetime
import os
import statistics
import time
from typing import Annotated, Any, NamedTuple

import torch
import typer

STEPS = {"euler": (7, 14, 20), "heun": (4, 10, 20), "ab2": (4, 5, 6, 7, 8, 10)}


class Score(NamedTuple):
    """One sampler with one seed. ``evaluations``: forward passes of the network per batch of images, including those for guidance."""

    fd: float
    class_accuracy: float
    evaluations: float
    seconds: float


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Sets of images per sampler.")] = 4,
    num_images: Annotated[int, typer.Option(min=20, help="Images per set.")] = 450,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds of 50 images, few samplers.")] = False,
    solution: Annotated[
        bool, typer.Option("--solution", help="How far dopri5 ends from the true solution, instead.")
    ] = False,
) -> None:
    """Measures all samplers and prints the table."""
    from sfd.workspace import Workspace

    if solution:
        print("\n".join(distance_rows()))
        return

    workspace = Workspace.find()
    params = workspace.load_params()
    steps = {"euler": (10,), "heun": (5,), "ab2": (10,)} if quick else STEPS
    if quick:
        seeds, num_images = 2, 50
    bench = Bench(workspace, params, num_images)
    print(
        "| sampler | steps | evaluations | fewer | fd | fd - dopri5's | class accuracy | accuracy - dopri5's | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    reference = [bench.score("dopri5", 1, seed) for seed in range(seeds)]
    print(row("dopri5", None, reference, reference), flush=True)
    for method, counts in steps.items():
        for count in counts:
            scores = [bench.score(method, count, seed) for seed in range(seeds)]
            print(row(method, count, scores, reference), flush=True)
    noise = statistics.stdev(score.fd for score in reference)
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"\n{seeds} seeds of {num_images} images, {bench.guidance}; from one seed to another dopri5's fd moves by {noise:.2f} ",
        end="",
    )
    print(
        f"(standard deviation). {place} of {os.cpu_count()} cores, torch {torch.__version__}, {datetime.date.today()}"
    )


@torch.no_grad()
def distance_rows(num_images: int = 10, true_steps: int = 2000) -> list[str]:
    """A table of how far dopri5 (atol 1e-6, rtol 1e-3) ends from the true solution by each rule, and with how many evaluations.

    The network is the digits' with random weights, unguided. The true solution is Heun's with ``true_steps`` steps and a float64 state.
    """
    from sfd.bench.networks import latent_shape, random_backbone
    from sfd.diffusion.samplers.dopri5 import Dopri5
    from sfd.diffusion.samplers.heun import Heun
    from sfd.diffusion.sampling import Sampler
    from sfd.generation.schedules import build_schedule
    from sfd.preset import load_preset
    from sfd.seeding import generator

    params = load_preset("digits")
    shape = latent_shape(params)
    network = random_backbone(params, shape).eval()
    told = network.config.condition.batch(
        [index % shape.num_classes for index in range(num_images)], torch.device("cpu")
    )
    noise = torch.randn(num_images, *shape.latent, generator=generator(params.seed, "samplers/noise"))
    calls = 0

    def velocity(x: torch.Tensor, t_tex: torch.Tensor, t_sem: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        found: torch.Tensor = network(x.float(), t_tex.float(), t_sem.float(), told).velocity
        return found.to(x.dtype)

    schedule = build_schedule(params.schedule)
    true = Sampler(Heun, true_steps)(velocity, noise.double(), schedule, shape.semantic_channels)
    rows = ["| rule | evaluations | root mean square error | largest error |", "|---|---|---|---|"]
    for rule in ("exact", "published"):
        calls = 0
        sampler = Sampler(Dopri5, published_rule=rule == "published")
        gap = sampler(velocity, noise, schedule, shape.semantic_channels).double() - true
        rows.append(f"| `{rule}` | {calls} | {float(gap.square().mean().sqrt()):.1e} | {float(gap.abs().max()):.1e} |")
    return [*rows, "", f"root mean square of the true solution: {float(true.square().mean().sqrt()):.2f}"]


class Bench:
    """Loads model, decoder, judge and the held-out images' features once."""

    def __init__(self, workspace: Any, params: Any, num_images: int) -> None:
        from sfd.data.images import Pixels
        from sfd.data.manifest import HELDOUT
        from sfd.encoders.judges.judge import load_judge
        from sfd.evaluation.fidelity import Reference
        from sfd.evaluation.views import judge_images
        from sfd.generation.images import ImageGenerator
        from sfd.pipeline.inputs import check_current
        from sfd.pipeline.prepare import open_prepared
        from sfd.processes import inference_device

        check_current(workspace, ("prepare", "texture_vae", "judge", "diffusion"), params)
        self.params, self.device = params, inference_device()
        self.classes = [index % 10 for index in range(num_images)]
        self.judge = load_judge(workspace.judge(params.first_judge.name)).to(self.device)
        self.images = ImageGenerator.load(workspace.model(), workspace.result("texture_vae") / "model")
        heldout = open_prepared(workspace, params).images(HELDOUT)
        size = params.runtime.evaluate.batch_size
        self.reference = Reference.of(judge_images(self.judge, Pixels(heldout), range(len(heldout)), size))
        self.calls = 0
        self.images.network.register_forward_hook(self._count)
        guidance = params.sample.guidance
        self.guidance = f"guidance {guidance.kind} {guidance.scale_texture:g}, {guidance.scale_semantic:g}"

    def _count(self, *_: object) -> None:
        self.calls += 1

    def score(self, method: str, num_steps: int, seed: int) -> Score:
        """Draws a set of images and compares it with the held-out ones."""
        from sfd.evaluation.fidelity import class_accuracy, compare, extract
        from sfd.generation.images import image_seed
        from sfd.seeding import derive_seed

        sample = self.params.sample.model_copy(update={"sampler": method, "num_steps": num_steps})
        base = derive_seed(self.params.seed, "samplers", seed)
        seeds = [image_seed(base, index) for index in range(len(self.classes))]
        self.calls, started = 0, time.perf_counter()
        batches = list(self.images.sample(self.classes, seeds, sample, self.params.runtime.sample.batch_size))
        seconds = time.perf_counter() - started
        features = extract(self.judge, (batch.to(self.device) for batch in batches))
        fd = compare(features, self.reference, self.params.evaluate, self.params.seed)["fd"]
        accuracy = class_accuracy(features, torch.tensor(self.classes), self.judge)
        return Score(fd, accuracy, self.calls / len(batches), seconds)


def row(method: str, steps: int | None, scores: list[Score], reference: list[Score]) -> str:
    """One row of the table: means over the seeds, and mean differences from dopri5 with the same seed."""
    evaluations = statistics.fmean(score.evaluations for score in scores)
    fewer = statistics.fmean(score.evaluations for score in reference) / evaluations
    cells = [method, "-" if steps is None else str(steps), f"{evaluations:.0f}", f"{fewer:.1f} x"]
    for field, digits in (("fd", 2), ("class_accuracy", 4)):
        values = [getattr(score, field) for score in scores]
        gaps = [value - getattr(other, field) for value, other in zip(values, reference, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        cells.append(f"{statistics.fmean(values):.{digits}f}")
        cells.append("-" if steps is None else f"{statistics.fmean(gaps):+.{digits}f} ± {error:.{digits}f}")
    return "| " + " | ".join([*cells, f"{statistics.fmean(score.seconds for score in scores):.1f}"]) + " |"


if __name__ == "__main__":
    typer.run(main)
