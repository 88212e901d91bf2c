"""Training in which some blocks see a part of the tokens only.

Token routing is TREAD (arXiv 2501.04765): tokens ``x`` ``(B, N, D)``; after the first ``a`` blocks a random share of the tokens of each image
leaves, and the others, ``x[kept]``, go through the blocks in between; before the last ``b`` blocks those that left come back as they were::

    y[kept] = blocks(x[kept]),  y[others] = x[others]

The paper's setting is half of the tokens, ``a = 2`` and ``b = 2`` or ``4``. There are no new weights, and sampling shows all blocks all tokens.

Legend of shapes: B images, N tokens, K tokens that stay, D hidden width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Route(NamedTuple):
    """Which tokens go through all blocks.

    Attributes:
        kept: their positions, ascending, ``(B, K)``.
        first_blocks, last_blocks: how many blocks at the start and at the end see all tokens.
    """

    kept: Tensor
    first_blocks: int
    last_blocks: int


@dataclass(frozen=True)
class TokenRouting:
    """How each training step routes tokens. ``share``: of the ``num_tokens`` tokens, those that leave; else as in :class:`Route`."""

    num_tokens: int
    share: float
    first_blocks: int
    last_blocks: int

    @property
    def num_kept(self) -> int:
        """``K = N - floor(share * N)``."""
        return self.num_tokens - int(self.share * self.num_tokens)

    def draw(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Positions ``(B, K)`` of the tokens that stay, for each image others, all equally likely."""
        order = torch.rand(batch_size, self.num_tokens, generator=random, device=random.device).argsort(dim=1)
        return order[:, : self.num_kept].sort(dim=1).values

    def route(self, kept: Tensor) -> Route:
        """What the network is told."""
        return Route(kept, self.first_blocks, self.last_blocks)


def take(tokens: Tensor, kept: Tensor) -> Tensor:
    """The tokens at ``kept`` ``(B, K)``: ``(B, N, D)`` -> ``(B, K, D)``."""
    return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[-1]))


def put_back(tokens: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """A copy of ``tokens`` ``(B, N, D)`` with ``values`` ``(B, K, D)`` at ``kept`` ``(B, K)``."""
    return tokens.scatter(1, kept[:, :, None].expand(-1, -1, tokens.shape[-1]), values)
