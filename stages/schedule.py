"""The schedule that all later stages follow: as the parameters give it, or learnt from the latents."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.schedule import make_schedule
from sfd.pipeline.stage import stage

with stage("schedule") as s:
    make_schedule(s)
