"""Stage ``text``: where the model is told words, the text encoder and the tokens of all captions; elsewhere nothing, in no time."""

import json

from sfd.pipeline.stage import Stage

TEXT_CONDITION = "text"
"""The condition that needs this stage (``diffusion.model.condition``)."""
RECORD = "text.json"


def make_text(stage: Stage) -> None:
    """Writes the text encoder, the tokens of the captions, and how well they tell images apart; a record alone with another condition."""
    if stage.params.diffusion.model.condition != TEXT_CONDITION:
        (stage.out / RECORD).write_text(json.dumps({"captions": None}) + "\n", encoding="utf-8")
        stage.content.append("no text")  # always the same, so that nothing reruns for an option that nothing reads
        return
    from sfd.pipeline.text_encoder import make_text_encoder  # torch is imported only where it is used

    make_text_encoder(stage)
