"""Composite latents of the training images, in shards, with statistics. Runs under torchrun on any number of processes."""

from sfd.data.latents import STATISTICS, LatentsIndex, channel_statistics, write_latents
from sfd.data.manifest import TRAIN
from sfd.data.shards import ShardReader, write_index
from sfd.encoders.composite import CompositeEncoder
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import stage
from sfd.processes import barrier, inference_device, rank, world_size

with stage("latents") as s:
    data, mirror, device = open_prepared(s.workspace, s.params), s.params.data.mirror, inference_device()
    encode = CompositeEncoder.load(s.params, s.workspace.results, s.params.seed, device)
    grid = encode.check_grid(s.params.data.image_size)
    images, folder = data.images(TRAIN), s.out / "shards"
    bounds = write_latents(
        folder, images.__getitems__, len(images), encode, s.params.latents, mirror, rank(), world_size()
    )
    barrier()
    if rank() == 0:
        facts = LatentsIndex(
            num_views=1 + mirror,
            grid=grid,
            texture_channels=encode.texture_vae.latent_channels,
            semantic_channels=encode.semantic_channels,
            feature_dim=encode.feature_dim,
            classes=data.summary.classes,
        )
        write_index(folder, bounds, facts)
        channel_statistics(ShardReader(folder, LatentsIndex), s.params.latents.statistics_images).save(
            folder / STATISTICS
        )
        s.log({"num_images": len(images), "num_views": facts.num_views})
        s.log_input("train", data.summary.digest, s.upstream("prepare"), "latents", {"num_images": len(images)})
