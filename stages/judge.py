"""The judge: Inception-v3, a network of timm with a classifier fitted here, or a small ResNet trained here."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.judge import make_judge
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import stage

with stage("judge") as s:
    make_judge(s.params.judge, open_prepared(s.workspace, s.params), s)
