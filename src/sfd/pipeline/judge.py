"""Stage ``judge``: the network whose features score samples, loaded or trained once."""

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import judge_class
from sfd.evaluation.accuracy import heldout_accuracy
from sfd.params import JudgeParams
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.training.classifier import ClassifierTask, num_outputs


def make_judge(params: JudgeParams, data: Prepared, stage: Stage) -> None:
    """Writes the judge as ``judge.source`` says; a trained one is scored on the held-out images."""
    kind, folder = judge_class(params.kind), stage.out / "model"
    if params.source != "train":
        kind.save_pretrained(folder, stage.workspace.resolve_paths(params))
        return
    outputs = num_outputs(data.num_classes)
    network = kind.trainable(params, outputs, stage.params.seed)
    task = ClassifierTask("judge", network, data.images(TRAIN), data.num_classes, data.params.mirror, stage.params.seed)
    train_stage(task, params.training, stage.params.runtime.judge, stage).copy_to(network)
    classes = data.num_classes if data.num_classes > 1 else None
    kind.save_trained(folder, params, network, outputs, classes)
    if classes is not None:
        record_quality(stage, {"heldout_accuracy": heldout_accuracy(folder, data), "classes": classes})
