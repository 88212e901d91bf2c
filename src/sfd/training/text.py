"""Training of a small text encoder: captions and images that belong together get similar embeddings (CLIP, arXiv 2103.00020)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sfd.data.text_tokens import choose_caption
from sfd.encoders.text.small import SmallTextEncoder, pad_ids
from sfd.seeding import generator, seeded_initialisation

JOINT_WIDTH = 128
"""Of the embeddings that are compared; at most that of the tokens."""
FIRST_SCALE, MAX_SCALE = 1 / 0.07, 100.0
"""Of the similarities: at the start, and the most that is learnt, as in CLIP."""
WORD_DROPOUT = 0.1
"""Share of the tokens that are hidden in a step, so that few captions are not learnt by heart."""


class CaptionBatch(NamedTuple):
    """A caption of each image.

    Attributes:
        ids: numbers of the tokens, int64 ``(B, L)``.
        mask: which are real, ``(B, L)``.
        features: of the images, pooled and standardised, float32 ``(B, D)``.
        texts: equal numbers for equal captions, int64 ``(B,)``.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor
    texts: Tensor


class CaptionDataset:
    """Images by their pooled features, with their captions. Sample numbers go on over the epochs, and each draws its caption."""

    counts_epochs = True

    def __init__(
        self, features: Tensor, captions: Sequence[Sequence[str]], encoder: SmallTextEncoder, seed: int
    ) -> None:
        """``features``: standardised, ``(N, D)``; ``captions``: of each image."""
        self.features, self.seed = features, seed
        numbers: dict[str, int] = {}
        self.captions = [[numbers.setdefault(text, len(numbers)) for text in image] for image in captions]
        self.ids = [encoder.ids(text) for text in numbers]

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: list[int]) -> CaptionBatch:
        """These samples."""
        images = [index % len(self) for index in indices]
        texts = [
            self.captions[image][choose_caption(self.seed, index, len(self.captions[image]))]
            for image, index in zip(images, indices, strict=True)
        ]
        ids, mask = pad_ids([self.ids[text] for text in texts])
        return CaptionBatch(ids, mask, self.features[images], torch.tensor(texts))


class TwoTowers(nn.Module):
    """The text encoder, and what compares its texts with images."""

    def __init__(self, encoder: SmallTextEncoder, feature_dim: int, seed: int) -> None:
        super().__init__()
        self.text = encoder.network
        width = min(JOINT_WIDTH, encoder.width)
        with seeded_initialisation(seed, "text/towers"):
            self.of_text = nn.Linear(encoder.width, width, bias=False)
            self.of_image = nn.Linear(feature_dim, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        """Similarities of B texts (rows) and B images, ``(B, B)``, scaled."""
        texts = normalize(self.of_text(pooled(self.text(ids, mask), mask)).float(), dim=-1)
        images = normalize(self.of_image(features).float(), dim=-1)
        return self.log_scale.exp().clamp(max=MAX_SCALE) * texts @ images.T


def pooled(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens: ``(B, L, E)`` -> ``(B, E)``."""
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


class ContrastiveTask:
    """Each text finds its image among those of the batch, and each image its text. An image with an equal caption is no wrong answer."""

    purpose = "text"

    def __init__(self, network: TwoTowers, dataset: CaptionDataset, max_tokens: int, seed: int) -> None:
        self.network, self.dataset, self.seed, self.max_tokens = network, dataset, seed, max_tokens
        self.weights: Mapping[str, float] = {"contrastive": 1.0}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        """Uniform draws that hide tokens, ``(B, max_tokens)``."""
        random = generator(self.seed, "text/dropout", step, device)
        return torch.rand(batch_size, self.max_tokens, generator=random, device=device)

    def losses(self, network: nn.Module, data: CaptionBatch, noise: Tensor) -> dict[str, Tensor]:
        """The symmetric cross-entropy, batch mean."""
        length = data.ids.shape[1]
        is_last = data.mask & ~torch.cat([data.mask[:, 1:], torch.zeros_like(data.mask[:, :1])], dim=1)
        mask = data.mask & ((noise[:, :length] >= WORD_DROPOUT) | is_last)  # what ends a text stays
        similarities = network(data.ids, mask, data.features)
        own = torch.eye(len(data.texts), dtype=torch.bool, device=similarities.device)
        similarities = similarities.masked_fill((data.texts[:, None] == data.texts) & ~own, -1e9)
        target = torch.arange(len(data.texts), device=similarities.device)
        return {"contrastive": (cross_entropy(similarities, target) + cross_entropy(similarities.T, target)) / 2}
