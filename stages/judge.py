"""The judges: Inception-v3, networks of timm with a classifier fitted here, or small ResNets trained here."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.judge import make_judges
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import stage

with stage("judge") as s:
    make_judges(open_prepared(s.workspace, s.params), s)
