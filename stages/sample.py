"""Images from the trained model: PNG files and a table of class, seed and file."""

from sfd.generation.images import ImageGenerator
from sfd.generation.samples import finish_samples, write_facts, write_samples
from sfd.pipeline.stage import stage
from sfd.processes import barrier, rank, world_size

with stage("sample") as s:
    weak = s.params.sample.guidance.weak_model
    images = ImageGenerator.load(
        s.upstream("diffusion") / "model",
        s.upstream("texture_vae") / "model",
        s.workspace.resolve(weak) if weak else None,
    )
    table = write_samples(s.out, images, s.params.sample, s.params.seed, rank(), world_size())
    barrier()
    if rank() == 0:
        facts = write_facts(s.out, table, s.params.sample, s.params.seed)
        s.log_artifacts(finish_samples(s.out, table), s.out / "samples.csv", facts)
        s.log({"num_images": len(table)})
