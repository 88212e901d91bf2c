"""What bf16 does to a model: training and sampling in float32 and in bf16, on the finished stages of a project.

    python benchmarks/precision.py    # the digits (`make repro`): eight trainings as params.yaml says
    python benchmarks/precision.py --steps 20 --seeds 1 --num-images 60 --file try.json    # a quick try

Both trainings of a seed start with the same weights and see the same images, noise and times, and both sets of samples start from the same
noise. The judge computes in float32 for both, and compares with what stage `reference` left. Each finished training is kept in a file, so that
the command can be ended and goes on when it is run again.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sfd.errors import UserError
from sfd.generation.images import ImageGenerator, image_seed
from sfd.generation.model import DiffusionModel
from sfd.network_files import network_digest
from sfd.params import ComputedIn, GuidanceParams, Params
from sfd.pipeline.diffusion import open_latents
from sfd.pipeline.inputs import digest_facts
from sfd.precision import cpu_flags, probe_cpu
from sfd.text_file import replace_text
from sfd.tuning.evaluator import STUDY, CandidateEvaluator
from sfd.workspace import Workspace

PROJECT = Workspace(Path())
TYPES: tuple[ComputedIn, ...] = ("fp32", "bf16")
QUALITY = {"fd": "Frechet distance", "fid": "FID", "class_accuracy": "class accuracy", "kid": "kernel distance"}
COSTS = {
    "training_seconds": "seconds of training",
    "seconds_per_image": "seconds per sampled image",
    "dopri5_evaluations": "evaluations of dopri5, unguided",
}
DRAWN = 20
"""Images that dopri5 draws, to count how often it evaluates the network: it chooses its steps by their errors, and rounding is one."""

Point = dict[str, float]


def options(computed_in: ComputedIn, steps: int | None, num_images: int) -> Params:
    """The project's parameters with this precision of training and sampling, and this number of training steps."""
    params = PROJECT.load_params()
    training, runtime = params.diffusion.training, params.runtime
    changed_training: dict[str, Any] = {"precision": computed_in, "keep_every": None}
    if steps is not None:
        changed_training |= {"num_steps": steps, "decay_start": None}
    last = steps or training.num_steps
    tune = {"num_images": num_images, "kind": "training", "objectives": (), "repeats": 1, "report_every": last}
    precisions = {
        "sample": runtime.sample.model_copy(update={"precision": computed_in}),
        "evaluate": runtime.evaluate.model_copy(update={"precision": "fp32"}),
    }
    changed = {
        "diffusion": params.diffusion.model_copy(update={"training": training.model_copy(update=changed_training)}),
        "sample": params.sample.model_copy(update={"step": None, "ema_decay": None}),
        "tune": params.tune.model_copy(update=tune),
        "runtime": runtime.model_copy(update=precisions),
    }
    return params.model_copy(update=changed)


def measure(evaluator: CandidateEvaluator, params: Params, seed: int) -> Point:
    """Trains one model, and scores its samples."""
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        model = evaluator.train(params, seed, Path(work))
        seconds = time.perf_counter() - started
    scored = evaluator.score(model, params, STUDY, seed).metrics
    scored |= {"training_seconds": seconds, "dopri5_evaluations": float(count_evaluations(evaluator, model, params))}
    return {name: scored[name] for name in (*QUALITY, *COSTS) if name in scored}


def count_evaluations(evaluator: CandidateEvaluator, model: DiffusionModel, params: Params) -> int:
    """Calls of the network for a batch of images by dopri5."""
    changed = {"sampler": "dopri5", "guidance": GuidanceParams.model_validate({"kind": "none"})}
    calls: list[None] = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(None))
    images = ImageGenerator(model, evaluator.scorer.decoder, inference=evaluator.scorer.inference)
    values, seeds = model.condition.plan(DRAWN), [image_seed(params.seed, number) for number in range(DRAWN)]
    for _ in images.sample(values, seeds, params.sample.model_copy(update=changed), DRAWN):
        pass
    hook.remove()
    return len(calls)


def read_points(file: Path, of: str) -> dict[str, Point]:
    """The finished trainings, by precision and seed. Raises :class:`UserError` if they are of another project or of other options."""
    if not file.is_file():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept["of"] != of:
        raise UserError(f"{file} holds trainings of other options or another project; name another --file")
    found: dict[str, Point] = kept["points"]
    return found


def table(points: dict[str, Point], seeds: int) -> list[str]:
    """A row per metric: the means of both types, and the mean difference within a seed with its standard error."""
    rows = [f"| {seeds} seeds | fp32 | bf16 | bf16 - fp32 | standard error |", "|---|---|---|---|---|"]
    for name, shown in (QUALITY | COSTS).items():
        if name not in points[f"{TYPES[0]}-0"]:
            continue
        columns = [[points[f"{each}-{seed}"][name] for seed in range(seeds)] for each in TYPES]
        gaps = [after - before for before, after in zip(*columns, strict=True)]
        error = f"{statistics.stdev(gaps) / seeds**0.5:.4f}" if seeds > 1 else "-"
        means = " | ".join(f"{statistics.fmean(column):.4f}" for column in columns)
        rows.append(f"| {shown} | {means} | {statistics.fmean(gaps):+.4f} | {error} |")
    return rows


def main(
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each training; without it, those of params.yaml.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, each in both types.")] = 4,
    num_images: Annotated[int, typer.Option(min=10, help="Images that a model is scored with.")] = 450,
    file: Annotated[Path, typer.Option(help="Where finished trainings are kept.")] = Path("precision.json"),
) -> None:
    """Prints one table, for docs/benchmarks.md."""
    on_gpu = torch.cuda.is_available()
    print(
        "GPU" if on_gpu else f"CPU with {', '.join(sorted(cpu_flags())) or 'no bf16'}; trial: {probe_cpu()}", flush=True
    )
    try:
        points = train_all(steps, seeds, num_images, file)
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None
    print("\n" + "\n".join(table(points, seeds)))


def train_all(steps: int | None, seeds: int, num_images: int, file: Path) -> dict[str, Point]:
    """All points; those that ``file`` does not hold are trained and put there. Raises :class:`UserError` if the project lacks results."""
    chosen = {each: options(each, steps, num_images) for each in TYPES}
    open_latents(chosen["fp32"], PROJECT.result("latents"))  # says in words what is missing
    judged, latents = PROJECT.judge(chosen["fp32"].first_judge.name), PROJECT.result("latents") / "shards/index.json"
    facts = {
        "params": chosen["fp32"].model_dump(mode="json", exclude={"runtime", "tracking"}),
        "judge": network_digest(judged),
        "latents": latents.read_text(encoding="utf-8"),
    }
    of = digest_facts(facts)
    points = read_points(file, of)
    evaluators = {each: CandidateEvaluator(PROJECT, params) for each, params in chosen.items()}
    for seed in range(seeds):
        for each in TYPES if seed % 2 == 0 else reversed(TYPES):  # what slows the machine for a while concerns both
            name = f"{each}-{seed}"
            if name not in points:
                points[name] = measure(evaluators[each], chosen[each], seed)
                replace_text(file, json.dumps({"of": of, "points": points}, indent=1) + "\n")
            print(f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in points[name].items())}", flush=True)
    return points


if __name__ == "__main__":
    typer.run(main)
