"""Stage ``latents``: composite latents of the training images, in shards, with statistics."""

import sys

from sfd.data.latents import STATISTICS, LatentsIndex, channel_statistics, write_latents
from sfd.data.manifest import TRAIN
from sfd.data.networks import START_REMEDY, Networks, check_networks, compared_at_start, read_networks
from sfd.data.shards import ShardReader, write_index
from sfd.encoders.composite import CompositeEncoder
from sfd.network_files import read_config
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.processes import barrier, inference_device, rank, world_size


def make_latents(stage: Stage) -> None:
    """Writes this process's share of the shards; process 0 writes index and statistics.

    Raises:
        UserError: the latents would not be those that the model of ``diffusion.init_from`` knows.
    """
    data, mirror, device = open_prepared(stage.workspace, stage.params), stage.params.data.mirror, inference_device()
    encode = CompositeEncoder.load(stage.params, stage.workspace.results, stage.params.seed, device)
    grid = encode.check_grid(stage.params.data.image_size)
    networks = CompositeEncoder.networks(stage.params, stage.workspace.results)
    _check_start(stage, networks, encode.semantic_channels)
    images, folder = data.images(TRAIN), stage.out / "shards"
    params, size = stage.params.latents, stage.params.runtime.latents.batch_size
    bounds = write_latents(folder, images.__getitems__, len(images), encode, params, size, mirror, rank(), world_size())
    barrier()
    if rank() == 0:
        facts = LatentsIndex(
            num_views=1 + mirror,
            grid=grid,
            texture_channels=encode.texture_vae.latent_channels,
            semantic_channels=encode.semantic_channels,
            feature_dim=encode.feature_dim,
            classes=data.summary.classes,
            class_counts=images.class_indices.bincount(minlength=data.num_classes).tolist(),
            networks=networks,
            tiles=encode.tiles,
        )
        write_index(folder, bounds, facts)
        channel_statistics(ShardReader(folder, LatentsIndex), params.statistics_images).save(folder / STATISTICS)
        stage.log({"num_images": len(images), "num_views": facts.num_views})
        stage.log_input("train", data.summary.digest, stage.upstream("prepare"), "latents", {"num_images": len(images)})


def _check_start(stage: Stage, networks: Networks, semantic_channels: int) -> None:
    """Stage ``diffusion`` compares again; but latents take hours, and a folder can be read now."""
    params, folder = stage.params.diffusion, stage.params.diffusion.init_folder
    if folder is None:
        return
    folder = stage.workspace.resolve(folder)
    theirs = int(read_config(folder).get("model", {}).get("semantic_channels", 0))
    said = check_networks(
        f"the model of diffusion.init_from {folder}",
        read_networks(folder),
        "results/latents",
        networks,
        compared_at_start(theirs, semantic_channels),
        START_REMEDY,
        params.other_networks,
    )
    if said and rank() == 0:
        print(f"latents: {said}", file=sys.stderr)
