"""Density and coverage: how samples lie among the neighbourhoods of real images (arXiv 2002.09797)."""

import torch
from torch import Tensor

ROWS = 2_000
"""Rows of one block of distances; 2,000 rows by 50,000 images take 0.8 GB in float64."""


def density_and_coverage(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """Density and coverage of samples (N, D) with respect to reference images (M, D).

    The neighbourhood of a reference image is the ball that reaches to its k-th nearest other reference image, k = ``neighbours``.

    Returns:
        density: the mean number of neighbourhoods that a sample lies in, divided by k. It is 1 where samples and reference are of one
        distribution, and may be above. Unlike precision, one reference image far from the others does not make everything around it good.
        coverage: the share of reference images whose neighbourhood holds a sample. Unlike recall, it takes neighbourhoods of real images
        alone, so that samples far off do not raise it.
    """
    samples, reference = samples.double(), reference.double()
    radii = torch.cat([_kth_nearest(block, reference, neighbours) for block in reference.split(ROWS)])
    inside = torch.zeros(len(samples), dtype=torch.float64)
    covered = 0
    for block, radius in zip(reference.split(ROWS), radii.split(ROWS), strict=True):
        distances = torch.cdist(block, samples)
        inside += (distances < radius[:, None]).sum(dim=0)
        covered += int((distances.min(dim=1).values < radius).sum())
    return float(inside.mean()) / neighbours, covered / len(reference)


def _kth_nearest(block: Tensor, reference: Tensor, neighbours: int) -> Tensor:
    """Distance from each image of ``block``, a part of ``reference``, to its k-th nearest other image; the nearest is itself."""
    return torch.cdist(block, reference).kthvalue(neighbours + 1, dim=1).values
