"""The text encoder and the tokens of all captions, where the model is told words; nothing elsewhere."""

import sfd.quiet  # noqa: F401
from sfd.pipeline.stage import stage
from sfd.pipeline.text import make_text

with stage("text") as s:
    make_text(s)
