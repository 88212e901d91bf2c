"""Scores of the samples against their reference, with floors, and the memorisation check. Runs under torchrun on any number of processes."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.evaluate import evaluate
from sfd.pipeline.stage import stage

with stage("evaluate") as s:
    evaluate(s)
