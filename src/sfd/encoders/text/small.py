"""A small transformer over byte-level subwords, trained here beside the vision encoder's features. It reads any script and downloads nothing."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from sfd.data.transfer import send
from sfd.encoders.text.places import PlacedWord, place_words
from sfd.errors import UserError
from sfd.models.words import Words, join_words
from sfd.network_files import CONFIG, load_weights, read_config, save_network
from sfd.seeding import seeded_initialisation

TOKENIZER = "tokenizer.json"
END = "<end>"
"""The token behind each text, and the only one of the empty text."""
END_ID = 0
BATCH = 256
"""Texts that are encoded at a time."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte pair encoding of bytes (BPE, arXiv 1508.07909), in lower case, of at most ``vocabulary`` tokens. The same texts give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return tokenizer


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(B, L, E)`` and the real tokens ``(B, L)`` -> ``(B, L, E)``."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.proj(heads.transpose(1, 2).reshape(batch, length, width))
        mixed: Tensor = x + self.fc2(gelu(self.fc1(self.norm2(x))))
        return mixed


class TextTransformer(nn.Module):
    """Token numbers to embeddings; each token sees all others."""

    def __init__(self, vocabulary: int, max_tokens: int, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Numbers int64 ``(B, L)`` and the real tokens ``(B, L)`` -> ``(B, L, E)``, zero where a token is padding."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        padded: Tensor = self.norm(x) * mask[..., None]
        return padded


class SmallTextEncoder:
    """A :class:`TextTransformer` with its tokenizer (:class:`sfd.encoders.text.encoder.TextEncoder`)."""

    kind: ClassVar[str] = "small"

    def __init__(self, tokenizer: Tokenizer, network: TextTransformer, config: dict[str, Any]) -> None:
        self.tokenizer, self.network, self.config = tokenizer, network, config

    @classmethod
    def build(cls, tokenizer: Tokenizer, max_tokens: int, width: int, depth: int, num_heads: int, seed: int) -> Self:
        """One with random weights."""
        config = {"vocabulary": tokenizer.get_vocab_size(), "max_tokens": max_tokens, "width": width}
        config |= {"depth": depth, "num_heads": num_heads}
        with seeded_initialisation(seed, "text/initialisation"):
            return cls(tokenizer, TextTransformer(**config), config)

    @property
    def width(self) -> int:
        """As :class:`TextEncoder` says."""
        return int(self.config["width"])

    @property
    def max_tokens(self) -> int:
        """As :class:`TextEncoder` says."""
        return int(self.config["max_tokens"])

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.network.positions.device

    def ids(self, text: str) -> list[int]:
        """The numbers of a text's tokens, the last of which ends it, ``max_tokens`` at most."""
        found: list[int] = self.tokenizer.encode(text).ids[: self.max_tokens - 1] if text.strip() else []
        return [*found, END_ID]

    def num_tokens(self, text: str) -> int:
        """As :class:`TextEncoder` says."""
        return 1 + (len(self.tokenizer.encode(text).ids) if text.strip() else 0)

    def place_words(self, text: str) -> list[PlacedWord]:
        """As :class:`TextEncoder` says. The token that ends a text is no word's."""
        return place_words(text, self.tokenizer.encode(text).offsets[: self.max_tokens - 1])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Words:
        """As :class:`TextEncoder` says."""
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return join_words([self._encode(part) for part in parts])

    def _encode(self, texts: Sequence[str]) -> Words:
        ids, mask = pad_ids([self.ids(text) for text in texts])
        ids, mask = send(ids, self.device), send(mask, self.device)
        return Words(self.network(ids, mask), mask)

    def to(self, device: torch.device | str) -> Self:
        """As :class:`TextEncoder` says."""
        self.network.to(device)
        return self

    def save(self, folder: Path) -> None:
        """As :class:`TextEncoder` says."""
        save_network(folder, self.network, {"kind": self.kind, **self.config})
        (folder / TOKENIZER).write_text(self.tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """As :class:`TextEncoder` says."""
        config = dict(read_config(folder))
        del config["kind"]
        try:
            tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
            network = TextTransformer(**config)
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(
                f"{folder / CONFIG} and {TOKENIZER} do not describe a text encoder of kind `{cls.kind}`: {error}; rerun stage `text`"
            ) from error
        load_weights(folder, network)
        network.eval().requires_grad_(False)
        return cls(tokenizer, network, config)


def pad_ids(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Numbers of tokens, padded: int64 ``(B, L)``, and the mask of the real ones."""
    length = max(map(len, texts))
    ids = torch.tensor([[*text, *[END_ID] * (length - len(text))] for text in texts])
    return ids, torch.arange(length) < torch.tensor([len(text) for text in texts])[:, None]
