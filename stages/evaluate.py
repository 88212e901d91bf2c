"""Scores of the samples against held-out images, with floors, and the memorisation check."""

from sfd.data.prepared import Prepared
from sfd.encoders.judge import load_judge
from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.stage import evaluate
from sfd.pipeline import stage
from sfd.processes import inference_device

with stage("evaluate") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    judge = load_judge(s.upstream("judge") / "model").to(inference_device())
    vae = load_texture_vae(s.upstream("texture_vae") / "model").to(inference_device())
    metrics, files = evaluate(s.params.evaluate, data, judge, vae, s.upstream("sample"), s.params.seed, s.out)
    s.log(metrics)
    s.log_input(
        "heldout", data.summary.digest, s.upstream("prepare"), "reference", {"num_images": metrics["num_images"]}
    )
    s.log_artifacts(*files)
