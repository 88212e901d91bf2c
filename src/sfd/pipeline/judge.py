"""Stage ``judge``: the network whose features score samples, loaded or trained once."""

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, judge_class, load_judge
from sfd.encoders.timm_networks import encoder_network, judge_network
from sfd.errors import UserError
from sfd.evaluation.accuracy import heldout_accuracy, judge_images
from sfd.params import JudgeParams
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.processes import inference_device
from sfd.training.classifier import ClassifierTask, num_outputs


def make_judge(params: JudgeParams, data: Prepared, stage: Stage) -> None:
    """Writes the judge as ``judge.source`` says; one that knows the classes is scored on the held-out images.

    Raises:
        UserError: the weights cannot be had, or they are those of the encoder.
    """
    kind, folder = judge_class(params.kind), stage.out / "model"
    classes = data.num_classes if data.num_classes > 1 else None
    if params.source == "train":
        _train(kind, params, data, classes, stage)
    else:
        _check_another(params, stage)
        kind.save_pretrained(folder, stage.workspace.resolve_paths(params))
        if classes is not None and kind.fits_classes:
            judge, train = load_judge(folder).to(inference_device()), data.images(TRAIN)
            kind.fit_classes(folder, judge_images(judge, train).features, train.class_indices, classes)
    if load_judge(folder).knows_classes:
        record_quality(stage, {"heldout_accuracy": heldout_accuracy(folder, data), "classes": data.num_classes})


def _check_another(params: JudgeParams, stage: Stage) -> None:
    """The rule of the parameters compares names; here are copies of a file, and names with and without a tag."""
    encoder = stage.params.encoder if params.kind == "timm" else None
    if encoder is None or encoder.source in ("train", "none"):
        return
    networks = (
        judge_network(stage.workspace.resolve_paths(params)),
        encoder_network(stage.workspace.resolve_paths(encoder)),
    )
    if networks[0].weights() == networks[1].weights():
        raise UserError(
            f"judge.model {params.model} has the weights of encoder.name {encoder.name}: choose another judge.model, because samples that "
            "were trained towards a network's features cannot be judged by them"
        )


def _train(kind: type[Judge], params: JudgeParams, data: Prepared, classes: int | None, stage: Stage) -> None:
    outputs = num_outputs(data.num_classes)
    network = kind.trainable(params, outputs, stage.params.seed)
    task = ClassifierTask("judge", network, data.images(TRAIN), data.num_classes, data.params.mirror, stage.params.seed)
    train_stage(task, params.training, stage.params.runtime.judge, stage).copy_to(network)
    kind.save_trained(stage.out / "model", params, network, outputs, classes)
