"""Does a model that is told words listen? Samples for captions of held-out images, by several noises, against shuffled captions.

    python benchmarks/words.py words                                  # in a finished project with captions
    python benchmarks/words.py words --seeds 3 --num-images 500       # the defaults

A sample finds its prompt if an image with that caption is among the K held-out images that are nearest to it, by the first judge
(docs/evaluation.md, "Agreement by retrieval"). Shuffled: the mean over all prompts of other samples, which is exact. The noise of a seed is in
no sample of the project.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sfd.data.images import Pixels
from sfd.data.manifest import HELDOUT
from sfd.encoders.judges.judge import load_judge
from sfd.errors import UserError
from sfd.evaluation.agreement import Asked, Retrieval, carriers_of, retrieve
from sfd.evaluation.fidelity import extract
from sfd.evaluation.views import judge_images
from sfd.evaluation.words import captions_of
from sfd.generation.images import ImageGenerator
from sfd.generation.prompts import plan_values
from sfd.names import RECALLED
from sfd.pipeline.prepare import open_prepared
from sfd.precision import Inference
from sfd.progress import track
from sfd.seeding import derive_seed
from sfd.statistics import compare, estimate
from sfd.workspace import Workspace


def found_by(project: Path, seeds: int, num_images: int) -> Iterator[Retrieval]:
    """What each seed's samples find. Raises :class:`UserError` if a result is missing, or the model is told no words."""
    workspace = Workspace.find(project)
    params, data = workspace.load_params(), open_prepared(workspace, workspace.load_params())
    if not params.is_told_words:
        raise UserError(f"the model of {project} is told no words: set diffusion.model.condition to `text`")
    judge = Inference.float32().place(load_judge(workspace.judge(params.first_judge.name)))
    images, size = data.images(HELDOUT), params.runtime.sample.batch_size
    heldout = judge_images(judge, Pixels(images), range(len(images)), size).features
    generator = ImageGenerator.load(
        workspace.sampled_model(params),
        workspace.result("texture_vae") / "model",
        text_folder=workspace.text_encoder,
    )
    sample = workspace.resolve_sample(params).model_copy(update={"num_images": num_images})
    prompts = plan_values(generator.model.condition, sample)
    asked = Asked.of([str(prompt) for prompt in prompts], carriers_of(captions_of(data, HELDOUT)))
    for seed in range(seeds):
        noises = [derive_seed(params.seed, f"words/{seed}", number) for number in range(num_images)]
        starts = range(0, num_images, size)
        drawn = (
            next(generator.sample(prompts[start : start + size], noises[start : start + size], sample, size))
            for start in track(starts, f"seed {seed}", "batch", len(starts))
        )
        features = extract(judge, (pixels.to(judge.device) for pixels in drawn)).features
        yield retrieve(features[asked.rows], asked.prompts, heldout, asked.carriers)


def report(found: list[Retrieval]) -> Iterator[str]:
    """A table: a row per K, with means over the seeds, and the interval of the difference."""
    yield f"{len(found)} seeds of {len(found[0].ranks)} samples, {int(found[0].prompts.max()) + 1} prompts\n"
    yield "| its prompt is among the nearest | own prompts | shuffled | difference, 95 % interval | |\n|---|---|---|---|---|"
    for k in RECALLED:
        own, shuffled = [each.recall(k) for each in found], [each.chance_recall(k) for each in found]
        chance = [value for value in shuffled if value is not None]
        if len(chance) != len(own):
            raise UserError("all samples have one prompt, so none can be shuffled: give images with different captions")
        gap = compare(own, chance, "maximize")
        interval = gap.difference.interval
        shown = "not known" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
        yield f"| {k} | {estimate(own).mean:.3f} | {estimate(chance).mean:.3f} | {gap.difference.mean:+.3f}, {shown} | {gap.verdict} |"


def main(
    project: Annotated[Path, typer.Argument(help="A finished project whose model is told words.")],
    seeds: Annotated[int, typer.Option(min=1, help="Sets of samples, each from noise of its own.")] = 3,
    num_images: Annotated[int, typer.Option(min=2, help="Samples per seed.")] = 500,
) -> None:
    """Prints the table."""
    try:
        print("\n".join(report(list(found_by(project, seeds, num_images)))))
    except UserError as problem:
        raise SystemExit(f"error: {problem}") from None


if __name__ == "__main__":
    typer.run(main)
