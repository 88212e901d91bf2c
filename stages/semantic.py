"""The semantic encoder: a VAE, trained on patch features."""

from sfd.data.prepared import Prepared
from sfd.pipeline import stage
from sfd.training.semantic_vae import make_semantic_vae

with stage("semantic") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    make_semantic_vae(s.params.semantic, s.upstream("features") / "shards", data, s)
