"""Captions whose tokens are not stored: the frozen text encoder reads those of each batch (``text.store_tokens: false``)."""

from collections.abc import Callable

import torch
from torch import Tensor

from sfd.data.latents import LatentBatch, LatentDataset
from sfd.data.text_tokens import CaptionTexts, decoded
from sfd.encoders.text.encoder import TextEncoder, load_text_encoder
from sfd.models.words import Words, join_words
from sfd.precision import Inference

BATCH = 32
"""Captions that are encoded at a time, so that a large batch takes little memory in float32."""
WordsOf = Callable[[Tensor], Words]
"""The captions of a batch, uint8 ``(B, N)`` on the CPU as :meth:`CaptionTexts.texts` gives them -> words, fp16, on the device."""


class CaptionReader:
    """The frozen text encoder on this process's device: a :data:`WordsOf`.

    It computes in float32, whatever the precision of the training, and rounds to fp16. So words are those that stage ``text`` would have
    stored, up to rounding: a text is padded to the longest of its neighbours, and those are others here.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.inference = Inference.float32()
        self.encoder = encoder.to(self.inference.device)

    @torch.no_grad()
    def __call__(self, texts: Tensor) -> Words:
        """As :data:`WordsOf` says."""
        with self.inference.arithmetic():
            parts = [self.encoder.encode(part).to(dtype=torch.float16) for part in map(decoded, texts.split(BATCH))]
        return join_words(parts)


def words_of(dataset: LatentDataset) -> CaptionReader | None:
    """The reader of captions for a data set without words; None for one that has them, or that needs none.

    Raises:
        UserError: the text encoder that stage ``text`` left is missing or does not fit.
    """
    text = dataset.text
    return CaptionReader(load_text_encoder(text.encoder)) if isinstance(text, CaptionTexts) else None


def with_words(data: LatentBatch, words_of: WordsOf | None) -> LatentBatch:
    """The batch with words in place of texts; the same batch if it has none. ``words_of``: needed where it has some."""
    if data.texts is None:
        return data
    assert words_of is not None, "the data set has texts, and the task reads none"
    return data._replace(words=words_of(data.texts), texts=None)
