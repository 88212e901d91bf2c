"""Stage ``judge``: the network whose features score samples, loaded or trained once."""

import math

from torch import Tensor

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, judge_class, load_judge
from sfd.encoders.timm_networks import encoder_network, judge_network
from sfd.errors import UserError
from sfd.evaluation.accuracy import heldout_accuracy
from sfd.evaluation.fidelity import extract
from sfd.evaluation.views import ImageBatches
from sfd.params import JudgeParams
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.processes import inference_device
from sfd.progress import track
from sfd.training.classifier import ClassifierTask, num_outputs

BATCH = 50
"""Training images that a judge with a fitted classifier sees at a time."""


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
            seen = _training_features(load_judge(folder).to(inference_device()), data)
            kind.fit_classes(folder, seen, data.images(TRAIN).class_indices, classes)
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


def _training_features(judge: Judge, data: Prepared) -> Tensor:
    """Features ``(N, D)`` of all training images."""
    train = data.images(TRAIN)
    batches = ImageBatches(BATCH, judge).of_images(train, range(len(train)))
    return extract(judge, track(batches, "features", "batch", math.ceil(len(train) / BATCH))).features
