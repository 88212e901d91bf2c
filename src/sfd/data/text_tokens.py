"""Captions in shards beside the latents, one per image and sample: their token embeddings, ragged, which are read as words; or the texts alone,
which whoever trains encodes.

Legend of shapes: n images, C captions, T tokens in a shard; E numbers per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sfd.class_mix import evenly_spaced
from sfd.data.batches import in_batches
from sfd.data.shards import Shard, ShardReader, missing_shards, shard_bounds, write_index, write_shards
from sfd.errors import UserError
from sfd.models.words import Words, stack_words
from sfd.names import HELDOUT
from sfd.network_files import write_tensors
from sfd.params import Params
from sfd.progress import progress
from sfd.seeding import derive_seed

TOKENS, TEXTS, SPANS, CAPTIONS = "tokens", "texts", "spans", "captions"
"""Tensors of a shard: all tokens, fp16 ``(T, E)``, or all texts, their bytes in UTF-8, uint8; first entry of these and number of entries of each
caption, int64 ``(C, 2)``; first caption and number of captions of each image, int64 ``(n, 2)``."""
TEXTS_OF = {"shards": "captions", HELDOUT: "captions-heldout"}
"""The folder of the texts that takes the place of a folder of tokens."""
PADDING = 0xFF
"""Stands behind a text of a batch; no text in UTF-8 has this byte."""
NULL = "null.safetensors"
"""The tokens of the empty caption, fp16 ``(L, E)``, in the folder above the shards."""
EXAMPLES = 1000
"""The most captions that the index has as examples."""
BATCH = 256
Encode = Callable[[list[str]], Words]


@dataclass(frozen=True)
class TokensIndex:
    """What holds for all stored captions.

    Attributes:
        width: E.
        max_tokens: the most tokens of a caption.
        encoder: digest of the text encoder.
        num_captions: all captions.
        truncated: captions that the encoder cut.
        examples: captions of held-out images, evenly spaced.
    """

    width: int
    max_tokens: int
    encoder: str
    num_captions: int
    truncated: int
    examples: list[str]


def write_tokens(
    folder: Path, captions: Sequence[Sequence[str]], encode: Encode, shard_size: int, what: str
) -> list[tuple[int, int]]:
    """Writes the tokens of all captions of all images; returns the bounds of the shards. A shard that is there is kept.

    Args:
        folder: of the shards.
        captions: of each image, one or more.
        encode: texts to words.
        shard_size: images per shard.
        what: names the images in the line of progress.

    Raises:
        UserError: a token is NaN, or infinite in fp16.
    """
    bounds = shard_bounds(len(captions), shard_size)

    def make(start: int, end: int) -> Shard:
        texts = [text for image in captions[start:end] for text in image]
        parts: list[Tensor] = []
        lengths: list[int] = []
        for batch in in_batches(range(len(texts)), BATCH):
            words = encode([texts[number] for number in batch])
            tokens = words.tokens[words.mask].half().cpu()
            check_finite(tokens, f"{what} {start} to {end - 1}")
            parts.append(tokens)
            lengths += words.mask.sum(dim=1).tolist()
        shown.update(end - start)
        return {
            TOKENS: torch.cat(parts),
            SPANS: _spans(lengths),
            CAPTIONS: _spans([len(image) for image in captions[start:end]]),
        }

    with progress(f"captions of {what}", "image", len(captions)) as shown:
        write_shards(folder, bounds, make, missing_shards(folder, bounds, 0, 1, shown))
    return bounds


def check_finite(tokens: Tensor, whose: str) -> None:
    """Raises :class:`UserError` if a token in fp16 is NaN or infinite. ``whose``: the images of the captions."""
    if not tokens.isfinite().all():
        raise UserError(f"a token of the captions of {whose} is not finite in fp16; take another text encoder")


def write_texts(folder: Path, captions: Sequence[Sequence[str]], shard_size: int) -> list[tuple[int, int]]:
    """As :func:`write_tokens`: the texts of all captions, which are not encoded."""
    bounds = shard_bounds(len(captions), shard_size)

    def make(start: int, end: int) -> Shard:
        texts = [text.encode() for image in captions[start:end] for text in image]
        return {
            TEXTS: torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy()),
            SPANS: _spans([len(text) for text in texts]),
            CAPTIONS: _spans([len(image) for image in captions[start:end]]),
        }

    write_shards(folder, bounds, make, missing_shards(folder, bounds, 0, 1))
    return bounds


def close_tokens(folder: Path, bounds: list[tuple[int, int]], facts: TokensIndex, null: Words) -> None:
    """Writes the index of the shards, of tokens or of texts, and the empty caption beside their folder. ``null``: a single text."""
    write_tensors(folder.parent / NULL, {TOKENS: null.tokens[0][null.mask[0]].half().cpu()})
    write_index(folder, bounds, facts)


def examples_of(captions: Sequence[Sequence[str]]) -> list[str]:
    """Different captions, evenly spaced, at most :data:`EXAMPLES`."""
    texts = list(dict.fromkeys(text for image in captions for text in image))
    return [texts[place] for place in evenly_spaced(len(texts), EXAMPLES)]


def _spans(lengths: Sequence[int]) -> Tensor:
    """First place and length of things that lie one behind the other, int64 ``(N, 2)``."""
    counts = torch.tensor(lengths, dtype=torch.int64)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=1)


class StoredCaptions:
    """The captions of a set of images, as stage ``text`` left them.

    Attributes:
        reader: of the shards; whether they are whole, ``reader.check`` says.
        seed: of the draws.
        null_words: the empty caption, fp16.
        encoder: folder of the text encoder.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        """Opens the shards in ``folder``. Raises :class:`UserError` if one is missing."""
        self.reader = ShardReader(folder, TokensIndex)
        self.seed = seed
        self.null_words = stack_words([load_file(folder.parent / NULL)[TOKENS]])
        self.encoder = folder.parent / "model"

    @property
    def facts(self) -> TokensIndex:
        """What holds for all captions."""
        return self.reader.facts

    def __len__(self) -> int:
        return len(self.reader)

    def drawn(self, entries: str, images: Sequence[int], numbers: Sequence[int]) -> list[Tensor]:
        """The entries of a caption of each of these images. Which one, depends on the seed and the sample's number alone.

        Args:
            entries: :data:`TOKENS` or :data:`TEXTS`.
            images: places of the images.
            numbers: of the samples, which go on over the epochs; so every epoch draws anew.
        """
        return [self._caption(entries, image, number) for image, number in zip(images, numbers, strict=True)]

    def _caption(self, entries: str, image: int, number: int) -> Tensor:
        first, count = self.reader.rows(CAPTIONS, [image])[0].tolist()
        chosen = first + (choose_caption(self.seed, number, count))
        start, length = self.reader.span(SPANS, image, chosen, 1)[0].tolist()
        return self.reader.span(entries, image, start, length)


class TextTokens(StoredCaptions):
    """Captions that were encoded once."""

    def words(self, images: Sequence[int], numbers: Sequence[int]) -> Words:
        """A caption of each image, as :meth:`drawn` says, fp16, padded to the longest."""
        return stack_words(self.drawn(TOKENS, images, numbers))


class CaptionTexts(StoredCaptions):
    """Captions that are encoded whenever they are read."""

    def texts(self, images: Sequence[int], numbers: Sequence[int]) -> Tensor:
        """A caption of each image, as :meth:`drawn` says: its bytes, uint8 ``(B, N)``, padded to the longest. :func:`decoded` reads them."""
        return pad_sequence(self.drawn(TEXTS, images, numbers), batch_first=True, padding_value=PADDING)


def decoded(texts: Tensor) -> list[str]:
    """The texts of a batch of :meth:`CaptionTexts.texts`, which is on the CPU."""
    return [bytes(row).rstrip(bytes([PADDING])).decode() for row in texts.numpy()]


def open_captions(params: Params, latents: Path, shards: str = "shards") -> TextTokens | CaptionTexts | None:
    """The captions of the images whose latents stage ``latents`` left in this folder; stage ``text`` left them beside it.

    Args:
        params: None is given unless their condition is `text`.
        latents: the folder of the latents.
        shards: which of its folders: `shards` or `heldout`.
    """
    if params.diffusion.model.condition != "text":
        return None
    return open_text(params, latents.with_name("text"), shards)


def open_text(params: Params, text: Path, shards: str) -> TextTokens | CaptionTexts:
    """As :func:`open_captions`; ``text``: the folder of stage ``text``."""
    if params.text.store_tokens:
        return TextTokens(text / shards, params.seed)
    return CaptionTexts(text / TEXTS_OF[shards], params.seed)


def choose_caption(seed: int, number: int, count: int) -> int:
    """Which of ``count`` captions the sample of this number has."""
    return derive_seed(seed, "caption", number) % count if count > 1 else 0
