"""The semantic encoder on patch features: a VAE trained here, principal components, or nothing."""

from sfd.data.prepared import Prepared
from sfd.pipeline import stage
from sfd.training.semantic import make_semantic

with stage("semantic") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    make_semantic(s.params.semantic, s.upstream("features") / "shards", data, s)
