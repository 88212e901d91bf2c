"""The frozen texture VAE: pretrained, from a folder, or trained here."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.stage import stage
from sfd.pipeline.texture_vae import make_texture_vae

with stage("texture_vae") as s:
    make_texture_vae(s)
