"""The judge: Inception-v3, or a small ResNet trained here."""

from sfd.data.prepared import Prepared
from sfd.pipeline.networks import make_judge
from sfd.pipeline.stage import stage

with stage("judge") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    make_judge(s.params.judge, data, s)
