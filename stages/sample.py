"""Images from the trained model: PNG files and a table of condition, seed and file."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.sample import make_samples
from sfd.pipeline.stage import stage

with stage("sample") as s:
    make_samples(s)
