"""Fine-tuning against training from scratch: after how many training images does a model draw new classes recognisably?

    python benchmarks/finetune.py                  # all methods, three seeds, on the finished stages of the digits (`make repro`)
    python benchmarks/finetune.py --steps 100 --seeds 1    # a quick try

A model learns digits 0 to 4. Then each method learns 5 to 9: from scratch, with all weights of that model, or with adapters on it.
All methods share the schedule, the learning rate and the noise. Every ``--every`` steps the averaged weights draw images, and the judge
classifies them. The result is the number of training images until the class accuracy reaches ``--goal``.
"""

import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from sfd.data.latents import LatentBatch, LatentDataset, LatentsIndex
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.encoders.texture_vae import TextureVae, load_texture_vae
from sfd.evaluation.fidelity import class_accuracy, extract
from sfd.generation.images import ImageGenerator, image_seed
from sfd.generation.model import DiffusionModel
from sfd.models.lightningdit import LightningDiT
from sfd.params import LoraParams, Params
from sfd.pipeline.diffusion import build_task, open_latents, prepare_network
from sfd.processes import inference_device
from sfd.training.finetuning import Start
from sfd.training.loop import Callback, log_nothing, train
from sfd.workspace import Workspace

PROJECT = Workspace(Path())
WORK = Path(".sfd/finetune")
OLD, NEW = ["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]
METHODS = ("from scratch", "all weights", "adapters")
EMA_DECAY = 0.98
"""An average over about the last 50 steps, because the averaged weights are used from early on."""


class ClassesOf(LatentDataset):
    """The latents of some classes, as if there were no others."""

    def __init__(self, whole: LatentDataset, classes: list[str]) -> None:
        self.whole, self.statistics = whole, whole.statistics
        indices = [whole.index.classes.index(name) for name in classes]
        self.classes = classes
        labels = whole.reader.rows("labels", list(range(len(whole.reader))))
        self.rows = [n for n, label in enumerate(labels) if int(label) in indices]
        self.new_label = {index: place for place, index in enumerate(indices)}

    @property
    def index(self) -> LatentsIndex:
        return replace(self.whole.index, classes=self.classes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        batch = self.whole.__getitems__([self.rows[index] for index in indices])
        latents = self.statistics.normalise(self.whole.statistics.restore(batch.latents))
        labels = torch.tensor([self.new_label[label] for label in batch.class_indices.tolist()])
        return LatentBatch(latents, labels, batch.features)


class Reached(Exception):
    """Ends a training that has reached the goal."""


class Watch:
    """Draws images with the averaged weights now and then, and keeps their class accuracies."""

    def __init__(self, params: Params, start: Start, dataset: ClassesOf, judge: Judge, decoder: TextureVae) -> None:
        self.params, self.start, self.dataset, self.judge, self.decoder = params, start, dataset, judge, decoder
        self.names = dataset.index.classes
        self.accuracies: list[tuple[int, float]] = []
        self.goal: float | None = None
        self.trained = start.trainable

    def __call__(self, network: nn.Module, step: int) -> None:
        assert isinstance(network, LightningDiT)
        model = DiffusionModel(network.eval(), self.params.schedule, self.dataset.statistics)
        wanted = [n % len(self.names) for n in range(self.params.tune.num_images)]
        seeds = [image_seed(self.params.seed, n) for n in range(len(wanted))]
        images = list(ImageGenerator(model, self.decoder).sample(wanted, seeds, self.params.sample, len(wanted)))
        network.train()
        known = self.dataset.whole.index.classes
        labels = torch.tensor([known.index(self.names[index]) for index in wanted])
        seen = extract(self.judge, (batch.to(inference_device()) for batch in images))
        self.accuracies.append((step, class_accuracy(seen, labels, self.judge)))
        if self.goal is not None and self.accuracies[-1][1] >= self.goal:
            raise Reached


def options(steps: int, num_images: int, seed: int) -> Params:
    """The project's parameters with a constant learning rate, so that a longer training begins as a shorter one."""
    params = PROJECT.load_params()
    training = params.diffusion.training.model_copy(
        update={"num_steps": steps, "decay": "constant", "ema_decay": EMA_DECAY}
    )
    guidance = params.sample.guidance.model_copy(update={"kind": "cfg", "scale_texture": 1.25, "scale_semantic": 1.25})
    changed = {
        "seed": seed,
        "diffusion": params.diffusion.model_copy(update={"training": training}),
        "sample": params.sample.model_copy(update={"sampler": "heun", "num_steps": 10, "guidance": guidance}),
        "tune": params.tune.model_copy(update={"num_images": num_images}),
    }
    return params.model_copy(update=changed)


def learn(
    params: Params, source: DiffusionModel | None, classes: list[str], every: int, goal: float | None, tools: Any
) -> tuple[Start, Watch, float]:
    """One training from scratch or from ``source``, which ends early when ``goal`` is reached. The last value is the seconds per step."""
    dataset = ClassesOf(open_latents(params, PROJECT.result("latents")), classes)
    start = prepare_network(params, dataset, params.seed, source)
    watch = Watch(params, start, dataset, *tools)
    watch.goal = goal
    folder = WORK / "training"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    try:
        task = build_task(PROJECT, params, start.network, dataset, params.seed)
        runtime = params.runtime.diffusion
        start.finish(
            train(
                task,
                params.diffusion.training,
                params.seed,
                folder,
                "f",
                log_nothing,
                runtime,
                [Callback(watch, every)],
            )
        )
    except Reached:
        pass
    return start, watch, (time.perf_counter() - began) / watch.accuracies[-1][0]


def measure(seed: int, steps: int, every: int, num_images: int, rank: int, goal: float) -> dict[str, dict[str, Any]]:
    """All methods with one seed."""
    params = options(steps, num_images, seed)
    tools = (
        load_judge(PROJECT.judge(PROJECT.load_params().first_judge.name)).to(inference_device()),
        load_texture_vae(PROJECT.result("texture_vae") / "model"),
    )
    begun, watch, _ = learn(params, None, OLD, steps, None, tools)
    source = DiffusionModel(begun.network, params.schedule, watch.dataset.statistics)
    print(f"seed {seed}: digits 0 to 4 after {steps} steps: class accuracy {watch.accuracies[-1][1]:.3f}", flush=True)
    rows = {}
    for method in METHODS:
        lora = LoraParams(rank=rank, alpha=rank) if method == "adapters" else None
        diffusion = params.diffusion.model_copy(update={"lora": lora})
        _, watch, seconds = learn(
            params.model_copy(update={"diffusion": diffusion}),
            None if method == "from scratch" else source,
            NEW,
            every,
            goal,
            tools,
        )
        step, accuracy = watch.accuracies[-1]
        images = step * params.diffusion.training.batch_size if accuracy >= goal else None
        rows[method] = {"images": images, "accuracy": accuracy, "trained": watch.trained, "seconds": seconds}
        print(f"seed {seed}, {method}: {[(step, round(value, 3)) for step, value in watch.accuracies]}", flush=True)
    return rows


def main(
    steps: Annotated[int, typer.Option(help="steps of the first training, and at most of each method")] = 1600,
    seeds: Annotated[int, typer.Option(help="number of seeds")] = 3,
    every: Annotated[int, typer.Option(help="steps between two measurements of the class accuracy")] = 50,
    num_images: Annotated[int, typer.Option(help="images per measurement")] = 200,
    rank: Annotated[int, typer.Option(help="rank of the adapters")] = 16,
    goal: Annotated[float, typer.Option(help="class accuracy to reach")] = 0.9,
) -> None:
    """Prints the training images that each method needed, with the standard error over the seeds."""
    found = [measure(seed, steps, every, num_images, rank, goal) for seed in range(seeds)]
    print(
        f"\n| digits 5 to 9 | trained parameters | images to class accuracy {goal:g} | each seed |\n|---|---|---|---|"
    )
    for method in METHODS:
        rows = [row[method] for row in found]
        counts = [row["images"] for row in rows]
        if None in counts:
            mean = f"not within {steps} steps in {counts.count(None)} of {seeds} seeds"
        elif seeds > 1:
            mean = f"{statistics.fmean(counts):,.0f} ± {statistics.stdev(counts) / seeds**0.5:,.0f}"
        else:
            mean = f"{counts[0]:,}"
        print(f"| {method} | {rows[0]['trained']:,} | {mean} | {', '.join(str(count) for count in counts)} |")


if __name__ == "__main__":
    typer.run(main)
