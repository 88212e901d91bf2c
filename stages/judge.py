"""The judge: Inception-v3, or a small ResNet trained here."""

from sfd.data.prepared import Prepared
from sfd.pipeline import stage
from sfd.training.frozen import make_judge

with stage("judge") as s:
    data = Prepared.load(s.params.data, s.upstream("prepare"))
    make_judge(s.params.judge, data, s)
