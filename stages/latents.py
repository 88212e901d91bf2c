"""Composite latents of the training images, in shards, with statistics. Runs under torchrun on any number of processes."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.latents import make_latents
from sfd.pipeline.stage import stage

with stage("latents") as s:
    make_latents(s)
