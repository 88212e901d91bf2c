"""Stage ``evaluate``: scores of the samples with floors, and the memorisation check."""

import sys
from pathlib import Path

from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.protocol import Evaluation
from sfd.names import distance_name, too_few
from sfd.pipeline.inference import start_inference
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.reference import load_judges, open_kept
from sfd.pipeline.stage import Stage
from sfd.precision import Inference
from sfd.processes import barrier, rank, world_size


def open_evaluation(stage: Stage, samples: Path, features: Path, inference: Inference) -> Evaluation:
    """The evaluation of a folder of samples as the parameters say, which keeps its features in the folder ``features``."""
    params, data = stage.params, open_prepared(stage.workspace, stage.params)
    judges = load_judges(stage.workspace, params.judges, inference)
    vae = inference.place(load_texture_vae(stage.upstream("texture_vae") / "model"))
    size, num_workers = params.runtime.evaluate.batch_size, params.runtime.evaluate.num_workers
    return Evaluation.open(
        stage.workspace.resolve_paths(params.evaluate),
        data,
        vae,
        samples,
        params.seed,
        [FeatureStore(features / judge.name, judge, size, rank(), world_size(), num_workers) for judge in judges],
        open_kept(stage.workspace, judges),
        [judge.name for judge in params.counted_judges],
    )


def tell(evaluation: Evaluation, metrics: dict[str, float]) -> None:
    """Prints which metrics rest on too few images or on the encoder, and why fewer are compared than there are samples."""
    flagged = [f"{metric}: {said}" for metric in metrics if (said := too_few(metric, metrics))]
    flagged += [
        f"{distance_name(judge.name)}: for reporting only, because samples were trained towards the features of this judge, the encoder"
        for judge in evaluation.judges
        if judge.name not in evaluation.counted
    ]
    words = [evaluation.words.note] if evaluation.words is not None and evaluation.words.note is not None else []
    for line in [*evaluation.comparison.notes, *words, *flagged]:
        print(f"evaluate: {line}", file=sys.stderr)


def evaluate(stage: Stage) -> None:
    """Extracts this process's share of the features; process 0 computes and writes the metrics."""
    (inference,) = start_inference(stage, "evaluate")
    evaluation = open_evaluation(stage, stage.upstream("sample"), stage.work / "features", inference)
    evaluation.extract()
    barrier()
    if rank() == 0:
        metrics, files = evaluation.measure(stage.out)
        tell(evaluation, metrics)
        profile: dict[str, object] = {"num_images": metrics["num_images"]}
        stage.log_result(metrics)
        if evaluation.reference is None:
            stage.log_input(
                "heldout", evaluation.comparison.data.summary.digest, stage.upstream("prepare"), "reference", profile
            )
        else:
            stage.log_input("published", evaluation.reference.digest(), evaluation.reference.path, "reference", profile)
        stage.log_artifacts(*files)
