"""Stage ``latents``: composite latents of the training images, in shards, with statistics; and of some held-out images."""

import sys
from dataclasses import replace

from sfd.data.latents import STATISTICS, LatentsIndex, channel_statistics, heldout_rows, write_latents
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.networks import START_REMEDY, Networks, check_networks, compared_at_start, read_networks
from sfd.data.prepared import Prepared
from sfd.data.shards import ShardReader, write_index
from sfd.encoders.composite import CompositeEncoder
from sfd.network_files import read_config
from sfd.pipeline.inference import start_inference
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.processes import barrier, rank, world_size


def make_latents(stage: Stage) -> None:
    """Writes this process's share of the shards; process 0 writes index and statistics.

    Raises:
        UserError: the latents would not be those that the model of ``diffusion.init_from`` knows.
    """
    data, mirror = open_prepared(stage.workspace, stage.params), stage.params.data.mirror
    (inference,) = start_inference(stage, "latents")
    encode = CompositeEncoder.load(stage.params, stage.workspace.results, stage.params.seed, inference)
    grid = encode.check_grid(stage.params.data.image_size)
    networks = CompositeEncoder.networks(stage.params, stage.workspace.results)
    _check_start(stage, networks, encode.semantic_channels)
    images, folder = data.images(TRAIN), stage.out / "shards"
    params, runtime, rows = stage.params.latents, stage.params.runtime.latents, range(len(images))
    bounds = write_latents(folder, images, rows, encode, encode.device, params, runtime, mirror, rank(), world_size())
    heldout_bounds, heldout_counts = _write_heldout(stage, data, encode)
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
            precision=inference.computed_in,
        )
        write_index(folder, bounds, facts)
        statistics = channel_statistics(ShardReader(folder, LatentsIndex), params.statistics_images)
        statistics.save(folder / STATISTICS)
        write_index(stage.out / HELDOUT, heldout_bounds, replace(facts, num_views=1, class_counts=heldout_counts))
        statistics.save(stage.out / HELDOUT / STATISTICS)
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


def _write_heldout(stage: Stage, data: Prepared, encode: CompositeEncoder) -> tuple[list[tuple[int, int]], list[int]]:
    """This process's share of the held-out latents, unmirrored; returns the bounds of the shards and the images of each class."""
    images = data.images(HELDOUT)
    first_draw, rows = 2 * len(data.images(TRAIN)), heldout_rows(len(images))
    bounds = write_latents(
        stage.out / HELDOUT,
        images,
        rows,
        lambda batch, draws: encode(batch, [first_draw + draw for draw in draws]),  # after those of the training images
        encode.device,
        stage.params.latents,
        stage.params.runtime.latents,
        mirror=False,
        rank=rank(),
        world_size=world_size(),
        split="held-out",
    )
    return bounds, images.class_indices[rows].bincount(minlength=data.num_classes).tolist()
