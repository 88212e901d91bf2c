"""Stage ``evaluate``: scores of the samples with floors, and the memorisation check."""

import sys
from pathlib import Path

from sfd.encoders.judges.judge import load_judge
from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.protocol import Evaluation
from sfd.names import too_few
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.processes import barrier, inference_device, rank, world_size


def open_evaluation(stage: Stage, samples: Path, features: Path) -> Evaluation:
    """The evaluation of a folder of samples as the parameters say, which keeps its features in the folder ``features``."""
    data = open_prepared(stage.workspace, stage.params)
    judge = load_judge(stage.workspace.judge(stage.params.first_judge.name)).to(inference_device())
    vae = load_texture_vae(stage.upstream("texture_vae") / "model").to(inference_device())
    size = stage.params.runtime.evaluate.batch_size
    store = FeatureStore(features, judge, size, rank(), world_size())
    return Evaluation.open(
        stage.workspace.resolve_paths(stage.params.evaluate), data, vae, samples, stage.params.seed, store
    )


def tell(evaluation: Evaluation, metrics: dict[str, float]) -> None:
    """Prints which metrics rest on too few images, and why fewer are compared than there are samples."""
    flagged = [f"{metric}: {said}" for metric in metrics if (said := too_few(metric, metrics))]
    for line in [*evaluation.notes, *flagged]:
        print(f"evaluate: {line}", file=sys.stderr)


def evaluate(stage: Stage) -> None:
    """Extracts this process's share of the features; process 0 computes and writes the metrics."""
    evaluation = open_evaluation(stage, stage.upstream("sample"), stage.work / "features")
    evaluation.extract()
    barrier()
    if rank() == 0:
        metrics, files = evaluation.measure(stage.out)
        tell(evaluation, metrics)
        profile: dict[str, object] = {"num_images": metrics["num_images"]}
        stage.log_result(metrics)
        if evaluation.reference is None:
            stage.log_input("heldout", evaluation.data.summary.digest, stage.upstream("prepare"), "reference", profile)
        else:
            stage.log_input("published", evaluation.reference.digest(), evaluation.reference.path, "reference", profile)
        stage.log_artifacts(*files)
