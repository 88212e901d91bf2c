"""The diffusion model, trained on composite latents."""

from sfd.pipeline import stage
from sfd.training.diffusion_stage import make_diffusion

with stage("diffusion") as s:
    make_diffusion(s)
