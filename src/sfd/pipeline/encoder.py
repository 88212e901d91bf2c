"""Stage ``encoder``: the vision encoder, loaded or trained once."""

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders import vision
from sfd.params import EncoderParams
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.training.classifier import ClassifierTask, num_outputs


def make_encoder(stage: Stage) -> None:
    """Writes the encoder as ``encoder.source`` says; nothing where nothing needs features."""
    params = stage.params.encoder
    if params.source != "none":
        data = open_prepared(stage.workspace, stage.params)
        vision.save_encoder(stage.out / "model", _build(params, data, stage))


def _build(params: EncoderParams, data: Prepared, stage: Stage) -> vision.VisionEncoder:
    if params.source != "train":
        return vision.load_pretrained(stage.workspace.resolve_paths(params))
    network = vision.TrainableEncoder(params, num_outputs(data.num_classes), stage.params.seed)
    task = ClassifierTask(
        "encoder", network, data.images(TRAIN), data.num_classes, data.params.mirror, stage.params.seed
    )
    train_stage(task, params.training, stage.params.runtime.encoder, stage).copy_to(network)
    return vision.freeze(params, network)
