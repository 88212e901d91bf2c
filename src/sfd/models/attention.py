"""Where an image's tokens look at the tokens of a text: probabilities of cross-attention, summed up while an image is drawn.

Legend of shapes: N tokens of the image, L tokens of the text, H heads, d numbers per head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class AttentionSum:
    """The attention of one image over heads, blocks and evaluations of the network, as DAAM (arXiv 2210.04885) sums it.

    It holds one sum, whatever the number of steps. Nothing that it computes enters the image.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._number = 0

    @torch.no_grad()
    def add(self, q: Tensor, k: Tensor, seen: Tensor) -> None:
        """Adds the mean over heads of ``softmax(q k^T / sqrt(d))``, in float32.

        Args:
            q: queries of the image's tokens, ``(H, N, d)``.
            k: keys of the text's tokens, ``(H, L, d)``.
            seen: the text's tokens that are attended to, bool ``(L,)``.
        """
        with torch.autocast(q.device.type, enabled=False):
            products = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        found = products.masked_fill(~seen, -torch.inf).softmax(dim=-1).mean(dim=0)
        self._total = found if self._total is None else self._total + found
        self._number += 1

    def mean(self) -> Tensor:
        """The mean over heads, blocks and evaluations, float32 ``(N, L)`` on the CPU. Each row sums to 1.

        Raises:
            ValueError: nothing was added.
        """
        if self._total is None:
            raise ValueError(
                "no attention was added: the image is not drawn yet, or its network has no cross-attention"
            )
        return (self._total / self._number).cpu()


def add_attention(sums: Sequence[AttentionSum | None] | None, q: Tensor, k: Tensor, seen: Tensor) -> None:
    """Adds to the sum of each image of a batch that has one.

    Args:
        sums: of the first images of the batch, which may be fewer than all; None: nothing is asked.
        q, k, seen: as :meth:`AttentionSum.add` takes them, with the images along a first dimension.
    """
    for row, each in enumerate(sums or ()):
        if each is not None:
            each.add(q[row], k[row], seen[row])
