"""Stage ``encoder``: the vision encoder, loaded or trained once."""

from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders import vision
from sfd.evaluation.balanced import classifier_accuracy
from sfd.params import EncoderParams
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.training.classifier import ClassifierTask, num_outputs


def make_encoder(stage: Stage) -> None:
    """Writes the encoder as ``encoder.source`` says; nothing where nothing needs features. A trained one is scored on held-out images."""
    params = stage.params.encoder
    if params.source == "train":
        _train(params, open_prepared(stage.workspace, stage.params), stage)
    elif params.source != "none":
        vision.save_encoder(stage.out / "model", vision.load_pretrained(stage.workspace.resolve_paths(params)))


def _train(params: EncoderParams, data: Prepared, stage: Stage) -> None:
    network = vision.TrainableEncoder(params, num_outputs(data.num_classes), stage.params.seed)
    task = ClassifierTask(
        "encoder", network, data.images(TRAIN), data.num_classes, data.params.mirror, stage.params.seed
    )
    train_stage(task, params.training, stage.params.runtime.encoder, stage).copy_to(network)
    accuracy = classifier_accuracy(network, data.images(HELDOUT)) if data.num_classes > 1 else None
    vision.save_encoder(stage.out / "model", vision.freeze(params, network))
    if accuracy is not None:
        record_quality(stage, {"heldout_accuracy": accuracy, "classes": data.num_classes})
