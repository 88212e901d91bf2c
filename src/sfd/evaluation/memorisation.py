"""Whether samples are copies of training images: distances to the nearest one, in the features of a judge.

Held-out images come from the same source and were never trained on. So the distances from them to their nearest
training images show how near a sample can be by chance, if the model does not copy.

Limits:
    The threshold is a low quantile of the held-out distances, which N held-out images resolve no finer than 1/N: with
    100 of them, the 1 % quantile is about the single smallest distance, and a model that does not copy can be far from 1 %.
    Copies that differ only in what the judge ignores count as copies. Copies that look different to the judge do not count: for
    example flipped ones, if there are no flipped training images.
    Near duplicates between training and held-out images lower the threshold and hide copies. Exact duplicates are an error
    if there are enough of them to make the threshold 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from sfd.errors import UserError

# Rows and columns of one block of distances: 4,096 squared in float64 takes 134 MB.
CHUNK = 4_096

QUANTILE = 0.01
"""Share of held-out images that lie below the threshold, and so would count as memorised."""


@dataclass(frozen=True)
class Memorisation:
    """The outcome of :func:`memorisation`.

    ``threshold`` is a distance in judge features; the fractions are the shares of samples, and of held-out images,
    below it. ``table`` has one row per sample, nearest first: ``sample_index``, ``train_index`` (its nearest
    training image) and ``distance``.
    """

    threshold: float
    memorised_fraction: float
    heldout_fraction: float
    table: pd.DataFrame


def nearest(
    queries: Tensor, reference: Iterable[Tensor], chunk: int = CHUNK, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest reference row of every query: Euclidean distance (N,) float64 and row index (N,) int64, on the queries' device.

    Queries are (N, D); the reference (M, D) comes in blocks of rows and is read once, so that it need not fit into memory.
    Distances are infinite if the reference is empty. At most ``chunk`` by ``chunk`` distances are in memory. Among equal reference
    rows, any one can be returned. ``device``: where distances are computed; None: where the queries are.
    """
    device = device or queries.device
    smallest = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(queries), dtype=torch.int64)
    start = 0
    for part in (part for block in reference for part in block.split(chunk) if len(part)):
        # float64, because cdist subtracts large squares: in float32 the distance of a copy would be 1e-3 of its norm instead of 0.
        rows = part.to(device, torch.float64)
        for first in range(0, len(queries), chunk):
            asked, found = queries[first : first + chunk].to(device, torch.float64), slice(first, first + chunk)
            offset = torch.cdist(asked, rows).min(dim=1).indices
            # Computed again by plain subtraction, so that a copy is at exactly 0 and the result does not depend on the chunks.
            distance = (asked - rows[offset]).norm(dim=1).cpu()
            closer = distance < smallest[found]
            smallest[found] = torch.where(closer, distance, smallest[found])
            index[found] = torch.where(closer, offset.cpu() + start, index[found])
        start += len(part)
    return smallest.to(queries.device), index.to(queries.device)


def copy_limit(heldout_distance: Tensor, quantile: float = QUANTILE) -> float:
    """The distance below which a sample counts as memorised: a low quantile of the distances (L,) of held-out images.

    Raises:
        UserError: this distance is 0, so that no sample could lie below it.
    """
    limit = float(heldout_distance.quantile(quantile))
    if limit == 0.0:
        raise UserError(
            f"held-out images must differ from training images, but a share of {quantile:g} or more is at distance 0 "
            f"in the judge's features; set data.duplicates to `drop`, or train a judge that tells these images apart"
        )
    return limit


def memorisation(
    samples: Tensor,
    train: Iterable[Tensor],
    heldout: Tensor,
    quantile: float = QUANTILE,
    device: torch.device | None = None,
) -> Memorisation:
    """Counts the samples whose distance to the nearest training image is below the ``quantile`` of the held-out images' distances.

    Samples (N, D), training images (M, D) in blocks of rows, and held-out images (L, D) are given by their judge features. ``train``
    should hold all images that the model was trained on, flipped ones too. A model that does not copy gives a fraction of about
    ``quantile``. ``device``: as in :func:`nearest`.

    Raises:
        UserError: a set has no images, or as :func:`copy_limit` does.
    """
    distances, indices = nearest(torch.cat([samples, heldout]), train, device=device)
    num_seen = {"samples": len(samples), "held-out images": len(heldout), "training images": distances.isfinite().sum()}
    empty = [name for name, count in num_seen.items() if not count]
    if empty:
        raise UserError(f"the memorisation check needs images in every set, but has no {empty[0]}; add some")
    distance, heldout_distance = distances.split([len(samples), len(heldout)])
    index = indices[: len(samples)]
    threshold = copy_limit(heldout_distance, quantile)
    table = pd.DataFrame(
        {"sample_index": range(len(samples)), "train_index": index.cpu().numpy(), "distance": distance.cpu().numpy()}
    ).sort_values("distance", kind="stable", ignore_index=True)
    return Memorisation(
        threshold=threshold,
        memorised_fraction=float((distance < threshold).double().mean()),
        heldout_fraction=float((heldout_distance < threshold).double().mean()),
        table=table,
    )
