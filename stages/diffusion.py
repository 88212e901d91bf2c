"""The diffusion model, trained on composite latents: from nothing, or on from a trained model."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.diffusion import make_diffusion
from sfd.pipeline.stage import stage
from sfd.registry.source import open_source

with stage("diffusion") as s, open_source(s.workspace, s.params.diffusion.init_from) as source:
    make_diffusion(s, source)
