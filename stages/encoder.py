"""The frozen vision encoder: pretrained, from a file, or trained here; nothing where nothing needs features."""

from sfd.encoders.vision import save_encoder
from sfd.pipeline.networks import make_encoder
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import stage

with stage("encoder") as s:
    if s.params.encoder.source != "none":
        data = open_prepared(s.workspace, s.params)
        save_encoder(s.out / "model", make_encoder(s.params.encoder, data, s))
