"""The frozen texture VAE: pretrained, from a folder, or trained here."""

from sfd.encoders.texture_vae import save_texture_vae
from sfd.pipeline.networks import make_texture_vae
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import stage

with stage("texture_vae") as s:
    data = open_prepared(s.workspace, s.params)
    save_texture_vae(s.out / "model", make_texture_vae(s.params.texture_vae, data, s))
