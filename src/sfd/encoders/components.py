"""Principal components, exact and the same on every run of one machine."""

from collections.abc import Iterable

import torch
from torch import Tensor


def moments(batches: Iterable[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Mean ``(dim,)`` and covariance ``(dim, dim)`` of all rows, in float64 on the CPU.

    The rows come in batches ``(n, dim)`` of any type, one in memory at a time.
    """
    total, products = torch.zeros(dim).double(), torch.zeros(dim, dim).double()
    count = 0
    for batch in batches:
        rows = batch.double()
        count, total = count + len(rows), total + rows.sum(0).cpu()
        products = products + (rows.T @ rows).cpu()
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def leading_components(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The variances ``(count,)`` and orthonormal directions ``(count, dim)`` of the leading components, the largest variance first.

    ``torch.pca_lowrank`` draws random numbers, so the whole problem is solved. The sign of a direction is arbitrary: here its entry of
    largest magnitude is positive.
    """
    variances, vectors = torch.linalg.eigh(covariance)
    components = vectors.T.flip(0)[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return variances.flip(0)[:count], components * largest.sign()
