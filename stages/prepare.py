"""Images in: a checked manifest, and the list of refused files."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.prepare import make_manifest
from sfd.pipeline.stage import stage

with stage("prepare") as s:
    make_manifest(s)
