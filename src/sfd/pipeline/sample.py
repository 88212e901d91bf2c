"""Stage ``sample``: images from the trained model."""

from pathlib import Path

from sfd.generation.images import ImageGenerator
from sfd.generation.samples import finish_samples, write_facts, write_samples
from sfd.generation.swaps import finish_swaps, plan_swaps, write_swaps
from sfd.pipeline.inference import start_inference
from sfd.pipeline.stage import Stage
from sfd.precision import Inference
from sfd.processes import barrier, rank, world_size


def load_generator(stage: Stage, model: Path, inference: Inference) -> ImageGenerator:
    """The model in this folder with its decoder, its text encoder if it is told words, and the weak model that the parameters name."""
    weak = stage.params.sample.guidance.weak_model
    return ImageGenerator.load(
        model,
        stage.upstream("texture_vae") / "model",
        stage.workspace.resolve(weak) if weak else None,
        stage.params.sample.other_networks,
        inference,
        stage.workspace.text_encoder,
    )


def make_samples(stage: Stage) -> None:
    """Draws this process's share of the images; process 0 writes the table, the grid and the facts."""
    params, size = stage.params.sample, stage.params.runtime.sample.batch_size
    resolved = stage.workspace.resolve_sample(stage.params)
    (inference,) = start_inference(stage, "sample")
    images = load_generator(stage, stage.workspace.sampled_model(stage.params), inference)
    table = write_samples(stage.out, images, resolved, size, stage.params.seed, rank(), world_size())
    barrier()
    if rank() == 0:
        facts = write_facts(stage.out, table, params, stage.params.seed, inference.computed_in)
        grid = finish_samples(stage.out, table, images.model.condition, resolved)
        stage.log_artifacts(grid, stage.out / "samples.csv", facts)
        stage.log({"num_images": len(table)})
    make_swaps(stage, images)


def make_swaps(stage: Stage, images: ImageGenerator) -> None:
    """Draws this process's share of the attribute swaps of `evaluate.swaps`, if there are any; process 0 writes their table."""
    asked, size = stage.params.evaluate, stage.params.runtime.sample.batch_size
    if asked.swaps is None:
        return
    table = plan_swaps(asked.swap_words, asked.swap_images, stage.params.seed)
    write_swaps(stage.out, images, table, stage.params.sample, size, rank(), world_size())
    barrier()
    if rank() == 0:
        stage.log_artifacts(finish_swaps(stage.out, table))
