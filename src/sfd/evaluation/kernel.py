"""Squared maximum mean discrepancies (MMD, Gretton et al. 2012): distances of two sets of features, by kernels.

Kernels: the polynomial one of KID (arXiv 1801.01401), and the Gaussian one of CMMD (arXiv 2401.09603).
"""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 2_000
"""Rows of one block of kernel values; 2,000 rows by 50,000 images take 0.8 GB in float64."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Width of the Gaussian, and the factor that makes the values readable; both as published."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Features (N, D) and (M, D) to values (N, M)."""


def cmmd(samples: Tensor, reference: Tensor) -> float:
    """CMMD of embeddings (N, D) and (M, D), which are brought to length 1: the biased estimate, as in the published code. Lower is better."""
    mine, theirs = (torch.nn.functional.normalize(each.double(), dim=1) for each in (samples, reference))

    def gaussian(first: Tensor, second: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(first, second).square() / (2.0 * CMMD_SIGMA**2))

    return CMMD_SCALE * (
        _mean(gaussian, mine, mine) + _mean(gaussian, theirs, theirs) - 2.0 * _mean(gaussian, mine, theirs)
    )


def kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """The distance of KID between features (N, D) and (M, D), N and M at least 2: unbiased, over all images, without subsets."""
    mine, theirs = samples.double(), reference.double()
    width = mine.shape[1]

    def polynomial(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / width + 1.0) ** 3

    return _mean_of_pairs(polynomial, mine) + _mean_of_pairs(polynomial, theirs) - 2.0 * _mean(polynomial, mine, theirs)


def _mean(kernel: Kernel, first: Tensor, second: Tensor) -> float:
    return sum(float(kernel(block, second).sum()) for block in first.split(ROWS)) / (len(first) * len(second))


def _mean_of_pairs(kernel: Kernel, features: Tensor) -> float:
    """The mean over pairs of two different images."""
    number = len(features)
    with_itself = sum(float(kernel(block, block).diagonal().sum()) for block in features.split(ROWS))
    return (_mean(kernel, features, features) * number**2 - with_itself) / (number * (number - 1))
