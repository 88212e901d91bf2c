"""Stage ``features``: patch features of training images, in shards."""

from sfd.data.manifest import TRAIN
from sfd.data.shards import write_index
from sfd.encoders.semantic.features import REPORT_IMAGES, FeaturesIndex, feature_order, write_features
from sfd.encoders.semantic.given import check_given
from sfd.encoders.vision import load_encoder
from sfd.pipeline.inference import start_inference
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.processes import barrier, rank, world_size


def make_features(stage: Stage) -> None:
    """Writes this process's share of the shards; process 0 writes the index. Nothing without semantic latents.

    Raises:
        UserError: ``semantic.file`` is not what section ``semantic`` and the encoder ask for.
    """
    params, semantic = stage.params.features, stage.params.semantic
    if semantic.kind == "none":
        return
    (inference,) = start_inference(stage, "features")
    encoder = inference.place(load_encoder(stage.upstream("encoder") / "model"))
    if semantic.file is not None:
        check_given(stage.workspace.resolve(semantic.file), semantic, encoder.feature_dim)
    data, mirror = open_prepared(stage.workspace, stage.params), stage.params.data.mirror and params.mirror
    centre = encoder.patches[0] if params.crop == "centre" else None
    images = data.images(TRAIN, centre)
    most = min(params.max_images, REPORT_IMAGES) if semantic.source == "file" else params.max_images
    chosen = feature_order(len(images), most, stage.params.seed)
    runtime, folder = stage.params.runtime.features, stage.out / "shards"
    bounds = write_features(folder, images, encoder, chosen, params, runtime, mirror, rank(), world_size())
    barrier()
    if rank() == 0:
        facts = FeaturesIndex(1 + mirror, encoder.grid**2, encoder.feature_dim, chosen, centre, inference.computed_in)
        write_index(folder, bounds, facts)
        sizes = {"num_views": facts.num_views, "tokens": facts.tokens, "feature_dim": facts.feature_dim}
        stage.log({"num_images": len(chosen), **sizes})
        stage.log_input(
            "train", data.summary.digest, stage.upstream("prepare"), "features", {"num_images": len(chosen)}
        )
