"""What the judges see of real images, for evaluations and studies. Runs under torchrun on any number of processes."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.reference import make_reference
from sfd.pipeline.stage import stage

with stage("reference") as s:
    make_reference(s)
