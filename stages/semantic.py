"""The semantic encoder on patch features: a VAE trained here, principal components, or nothing."""

from sfd.data.prepared import Prepared
from sfd.pipeline.semantic import make_semantic
from sfd.pipeline.stage import stage

with stage("semantic") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    make_semantic(s.params.semantic, s.upstream("features") / "shards", data, s)
