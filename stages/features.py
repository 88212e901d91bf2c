"""Patch features of training images, in shards; nothing without semantic latents. Runs under torchrun on any number of processes."""

from sfd.data.manifest import TRAIN
from sfd.data.shards import write_index
from sfd.encoders.semantic.features import FeaturesIndex, feature_order, write_features
from sfd.encoders.vision import load_encoder
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage, stage
from sfd.processes import barrier, inference_device, rank, world_size


def make_features(s: Stage) -> None:
    """Shards and their index."""
    data, mirror = open_prepared(s.workspace, s.params), s.params.data.mirror
    encoder = load_encoder(s.upstream("encoder") / "model").to(inference_device())
    images = data.images(TRAIN)
    chosen = feature_order(len(images), s.params.features, s.params.seed)
    bounds = write_features(s.out / "shards", images, encoder, chosen, s.params.features, mirror, rank(), world_size())
    barrier()
    if rank() == 0:
        facts = FeaturesIndex(1 + mirror, encoder.grid**2, encoder.feature_dim, chosen)
        write_index(s.out / "shards", bounds, facts)
        sizes = {"num_views": facts.num_views, "tokens": facts.tokens, "feature_dim": facts.feature_dim}
        s.log({"num_images": len(chosen), **sizes})
        s.log_input("train", data.summary.digest, s.upstream("prepare"), "features", {"num_images": len(chosen)})


with stage("features") as s:
    if s.params.semantic.kind != "none":
        make_features(s)
