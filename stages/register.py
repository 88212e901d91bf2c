"""A self-contained model version in the MLflow registry, with an alias."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.stage import stage
from sfd.registry.register import register_results

with stage("register") as s:
    register_results(s)
