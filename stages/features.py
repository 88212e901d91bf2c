"""Patch features of training images, in shards; nothing without semantic latents. Runs under torchrun on any number of processes."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.features import make_features
from sfd.pipeline.stage import stage

with stage("features") as s:
    make_features(s)
