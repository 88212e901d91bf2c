"""Scores of the samples against their reference, with floors, and the memorisation check. Runs under torchrun on any number of processes."""

from sfd.encoders.judges.judge import load_judge
from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.protocol import Evaluation
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import stage
from sfd.processes import barrier, inference_device, rank, world_size

with stage("evaluate") as s:
    data = open_prepared(s.workspace, s.params)
    judge = load_judge(s.upstream("judge") / "model").to(inference_device())
    vae = load_texture_vae(s.upstream("texture_vae") / "model").to(inference_device())
    store = FeatureStore(s.work / "features", judge, s.params.evaluate.batch_size, rank(), world_size())
    evaluation = Evaluation.open(
        s.workspace.resolve_paths(s.params.evaluate), data, vae, s.upstream("sample"), s.params.seed, store
    )
    evaluation.extract()
    barrier()
    if rank() == 0:
        metrics, files = evaluation.measure(s.out)
        profile: dict[str, object] = {"num_images": metrics["num_images"]}
        s.log(metrics)
        if evaluation.reference is None:
            s.log_input("heldout", data.summary.digest, s.upstream("prepare"), "reference", profile)
        else:
            s.log_input("published", evaluation.reference.digest(), evaluation.reference.path, "reference", profile)
        s.log_artifacts(*files)
