"""Training in which the middle blocks see a part of the tokens only: TREAD and SPRINT. Sampling shows all blocks all tokens.

Tokens are ``x`` ``(B, N, D)``; the first ``a`` and the last ``b`` blocks see all of them, the blocks in between see ``x[kept]``.

Token routing is TREAD (arXiv 2501.04765). A random share of the tokens of each image leaves after the first blocks, and comes back as it
was before the last ones. There are no new weights. The paper's setting is half of the tokens, ``a = 2`` and ``b = 2`` or ``4``::

    y[kept] = blocks(x[kept]),  y[others] = x[others]

A sparse deep path is SPRINT (arXiv 2510.21986; settings and details from its public code, github.com/snap-research/Sprint). The result of the
blocks in between is joined with their input, with a mask token ``m`` ``(D,)`` where a token was left out::

    d[kept] = blocks(x[kept]),  d[others] = m,  y = Linear([d | x])

Of each 2 x 2 group of tokens one stays (75 % are left out), ``a = b = 2`` of 28 blocks. For one image in ten ``d`` is ``m`` everywhere. The last
part of the training shows all tokens to all blocks: there, 200,000 steps of batch 1,024 with a learning rate of 2e-4 after 2,000,000 of batch
256 with 1e-4. ``m`` is drawn from a normal of std 0.02 and not trained: the code says "learnable" of it, and excludes it from training.
Whether the published numbers were made so is not known. Because images without a deep path occur in training, sampling can be guided away from
them, and such an evaluation of the network costs the first and the last blocks alone (path-drop guidance).

Legend of shapes: B images, N tokens, K tokens that stay, D hidden width.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

GROUP = 2
"""Side of the groups that a sparse deep path takes its tokens from, tokens."""


class Route(NamedTuple):
    """Which tokens go through the blocks between the first and the last ones.

    Attributes:
        kept: their positions, ascending, ``(B, K)``; None: all tokens.
        first_blocks, last_blocks: how many blocks at the start and at the end see all tokens.
        without_deep: images whose deep path is replaced by the mask token, bool ``(B,)``; None: none.
    """

    kept: Tensor | None
    first_blocks: int
    last_blocks: int
    without_deep: Tensor | None = None


class Drawn(NamedTuple):
    """What a step draws of a :class:`Route`: ``kept`` ``(B, K)`` or None, ``without_deep`` ``(B,)`` or None."""

    kept: Tensor | None
    without_deep: Tensor | None


class Routing(Protocol):
    """How the steps of a training show tokens to blocks."""

    @property
    def first_blocks(self) -> int:
        """Blocks at the start that see all tokens."""

    @property
    def last_blocks(self) -> int:
        """Blocks at the end that see all tokens."""

    def draw(self, step: int, batch_size: int, random: torch.Generator) -> Drawn:
        """The draws of a step, counted from 0."""


@dataclass(frozen=True)
class TokenRouting:
    """TREAD: ``share`` of the ``num_tokens`` tokens leaves, for each image others, all equally likely."""

    num_tokens: int
    share: float
    first_blocks: int
    last_blocks: int

    @property
    def num_kept(self) -> int:
        """``K = N - floor(share * N)``."""
        return self.num_tokens - int(self.share * self.num_tokens)

    def draw(self, _step: int, batch_size: int, random: torch.Generator) -> Drawn:
        """As :meth:`Routing.draw`."""
        order = torch.rand(batch_size, self.num_tokens, generator=random, device=random.device).argsort(dim=1)
        return Drawn(order[:, : self.num_kept].sort(dim=1).values, None)


@dataclass(frozen=True)
class SparseDeep:
    """SPRINT.

    Attributes:
        grid: tokens along one side; even.
        kept_per_group: how many of the four tokens of each 2 x 2 group stay.
        path_drop: share of images whose deep path is replaced by the mask token.
        sparse_steps: steps at the start that leave tokens out; later ones show all tokens.
    """

    grid: int
    kept_per_group: int
    path_drop: float
    sparse_steps: int
    first_blocks: int
    last_blocks: int

    def draw(self, step: int, batch_size: int, random: torch.Generator) -> Drawn:
        """As :meth:`Routing.draw`."""
        device = random.device
        without = torch.rand(batch_size, generator=random, device=device) < self.path_drop
        if step >= self.sparse_steps:
            return Drawn(None, without)
        groups = self.grid // GROUP
        order = torch.rand(batch_size, groups, groups, GROUP**2, generator=random, device=device).argsort(dim=-1)
        within = order[..., : self.kept_per_group]
        first_row, first_column = (GROUP * torch.arange(groups, device=device) for _ in range(2))
        row = first_row[:, None, None] + within // GROUP
        column = first_column[None, :, None] + within % GROUP
        return Drawn((row * self.grid + column).flatten(1).sort(dim=1).values, without)


def take(tokens: Tensor, kept: Tensor) -> Tensor:
    """The tokens at ``kept`` ``(B, K)``: ``(B, N, D)`` -> ``(B, K, D)``."""
    return tokens.take_along_dim(kept[:, :, None], dim=1)


def put_back(tokens: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """A copy of ``tokens`` ``(B, N, D)`` with ``values`` ``(B, K, D)`` at ``kept`` ``(B, K)``."""
    return tokens.scatter(1, kept[:, :, None].expand(-1, -1, tokens.shape[-1]), values)
