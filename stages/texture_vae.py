"""The frozen texture VAE: pretrained, from a folder, or trained here."""

from sfd.data.prepared import Prepared
from sfd.encoders.texture_vae import save_texture_vae
from sfd.pipeline.networks import make_texture_vae
from sfd.pipeline.stage import stage

with stage("texture_vae") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    save_texture_vae(s.out / "model", make_texture_vae(s.params.texture_vae, data, s))
