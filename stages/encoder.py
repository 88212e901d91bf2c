"""The frozen vision encoder: pretrained, from a file or a package, or trained here; nothing where nothing needs features."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.encoder import make_encoder
from sfd.pipeline.stage import stage

with stage("encoder") as s:
    make_encoder(s)
