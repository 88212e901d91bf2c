"""The semantic encoder on patch features: a VAE trained here or from a file, principal components, or nothing."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.semantic import make_semantic
from sfd.pipeline.stage import stage

with stage("semantic") as s:
    make_semantic(s.params.semantic, s.upstream("features") / "shards", open_prepared(s.workspace, s.params), s)
