"""The diffusion model, trained on composite latents: from nothing, or on from a trained model."""

from sfd.pipeline import stage
from sfd.registry.source import open_source
from sfd.training.diffusion_stage import make_diffusion

with stage("diffusion") as s, open_source(s.params.diffusion.init_from) as source:
    make_diffusion(s, source)
