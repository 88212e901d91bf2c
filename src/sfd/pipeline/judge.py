"""Stage ``judge``: the networks whose features score samples, loaded or trained once, each in a folder of its name."""

import json
from dataclasses import replace

from sfd.data.images import Pixels
from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, judge_class, load_judge
from sfd.encoders.timm_networks import encoder_network, judge_network
from sfd.errors import UserError
from sfd.evaluation.accuracy import JUDGE_BATCH, heldout_accuracy
from sfd.evaluation.views import judge_images
from sfd.params import JudgeParams
from sfd.pipeline.inputs import judge_facts
from sfd.pipeline.quality import QUALITY, check_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.precision import Inference
from sfd.seeding import derive_seed
from sfd.training.classifier import ClassifierTask, num_outputs


def make_judges(data: Prepared, stage: Stage) -> None:
    """Writes every judge as ``judges.N.source`` says; those that know the classes are scored on the held-out images.

    Raises:
        UserError: the weights cannot be had, or they are those of the encoder; or a judge is too poor.
    """
    accuracies: dict[str, float] = {}
    for number, params in enumerate(stage.params.judges):
        part = replace(
            stage,
            part=params.name,
            prefix="" if number == 0 else f"{params.name}/",
            facts=judge_facts(stage.facts, number),
        )
        for folder in (part.work, part.out):
            folder.mkdir(parents=True, exist_ok=True)
        accuracy = make_judge(params, number, data, part)
        if accuracy is not None:
            accuracies[params.name] = accuracy
    found = {
        name: {"heldout_accuracy": value, "classes": float(data.num_classes)} for name, value in accuracies.items()
    }
    (stage.out / QUALITY).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, values in found.items():
        check_quality(stage, values, f"judge `{name}`: " if len(stage.params.judges) > 1 else "")


def make_judge(params: JudgeParams, number: int, data: Prepared, stage: Stage) -> float | None:
    """Writes one judge; returns its accuracy on the held-out images, or None if it does not know the classes.

    Only the first judge tells classes apart by a classifier that is fitted here, because only its classes are read.

    Args:
        params: the judge.
        number: its place in the list.
        data: the images.
        stage: its part of the stage.

    Raises:
        UserError: the weights cannot be had, or they are those of the encoder.
    """
    kind, folder = judge_class(params.kind), stage.out / "model"
    classes = data.num_classes if data.num_classes > 1 else None
    num_workers = stage.params.runtime.judge.num_workers
    if params.source == "train":
        # The first judge's seed is that of a project with one judge.
        seed = stage.params.seed if number == 0 else derive_seed(stage.params.seed, "judge", number)
        _train(kind, params, data, classes, seed, stage)
    else:
        _check_another(params, number, stage)
        kind.save_pretrained(folder, stage.workspace.resolve_paths(params))
        if classes is not None and kind.fits_classes and number == 0:
            judge, train = Inference.float32().place(load_judge(folder)), data.images(TRAIN)
            seen = judge_images(judge, Pixels(train), range(len(train)), JUDGE_BATCH, num_workers)
            kind.fit_classes(folder, seen.features, train.class_indices, classes)
    if not load_judge(folder).knows_classes:
        return None
    accuracy = heldout_accuracy(folder, data, num_workers)
    stage.log({"heldout_accuracy": accuracy, "classes": data.num_classes})
    return accuracy


def _check_another(params: JudgeParams, number: int, stage: Stage) -> None:
    """The rules of the parameters compare names; here are copies of a file, and names with and without a tag."""
    encoder = stage.params.encoder if params.kind == "timm" else None
    if encoder is None or encoder.source in ("train", "none") or stage.params.is_encoder(params):
        return
    networks = (
        judge_network(stage.workspace.resolve_paths(params)),
        encoder_network(stage.workspace.resolve_paths(encoder)),
    )
    if networks[0].weights() == networks[1].weights():
        remedy = (
            "choose another model, because samples that were trained towards a network's features cannot be judged by them"
            if number == 0
            else "write source, model and file as those of the encoder, so that the distance is known to be for reporting only"
        )
        raise UserError(
            f"judges.{number}.model {params.model} has the weights of encoder.name {encoder.name}: {remedy}"
        )


def _train(
    kind: type[Judge], params: JudgeParams, data: Prepared, classes: int | None, seed: int, stage: Stage
) -> None:
    outputs = num_outputs(data.num_classes)
    network = kind.trainable(params, outputs, seed)
    task = ClassifierTask("judge", network, data.images(TRAIN), data.num_classes, data.params.mirror, seed)
    train_stage(task, params.training, stage.params.runtime.judge, stage).copy_to(network)
    kind.save_trained(stage.out / "model", params, network, outputs, classes)
