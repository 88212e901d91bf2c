"""Whether samples are copies of training images: distances to the nearest one, in the features of a judge.

Held-out images come from the same source and were never trained on, so the distances from them to their nearest
training images show how near an honest sample can be by chance.

Limits:
    The threshold is a low quantile of the held-out distances, which N held-out images resolve no finer than 1/N: with
    100 of them, the 1 % quantile is about the single smallest distance, and an honest model can be far from 1 %.
    Copies that differ only in what the judge ignores count as copies. Copies that it sees as different do not: flipped ones, for
    example, if the reference has no flipped training images.
    Near duplicates between training and held-out images lower the threshold and hide copies; exact ones are refused
    when they reach the quantile.
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
"""Share of held-out images that are as near to a training image as what counts as memorised."""


@dataclass(frozen=True)
class Memorisation:
    """The outcome of :func:`memorisation`.

    ``threshold`` is a distance in judge features; the fractions are the shares of samples, and of held-out images,
    below it. ``table`` has one row for every sample, nearest first: ``sample_index``, ``train_index`` (its nearest
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

    Queries are (N, D); the reference (M, D) comes in blocks of rows and is read once, so that it never needs to be in memory whole.
    A distance is infinite if the reference is empty. Memory is bounded by ``chunk`` by ``chunk`` distances. Among equal reference
    rows, which one is named is not defined. ``device``: where distances are computed; None: where the queries are.
    """
    device = device or queries.device
    smallest = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(queries), dtype=torch.int64)
    start = 0
    for part in (part for block in reference for part in block.split(chunk) if len(part)):
        # float64, because cdist subtracts large squares: in float32 a copy would seem 1e-3 of its norm away from itself.
        rows = part.to(device, torch.float64)
        for first in range(0, len(queries), chunk):
            asked, found = queries[first : first + chunk].to(device, torch.float64), slice(first, first + chunk)
            offset = torch.cdist(asked, rows).min(dim=1).indices
            # Taken again by plain subtraction, so that a copy is at exactly 0 and chunks cannot matter.
            distance = (asked - rows[offset]).norm(dim=1).cpu()
            closer = distance < smallest[found]
            smallest[found] = torch.where(closer, distance, smallest[found])
            index[found] = torch.where(closer, offset.cpu() + start, index[found])
        start += len(part)
    return smallest.to(queries.device), index.to(queries.device)


def copy_limit(heldout_distance: Tensor, quantile: float = QUANTILE) -> float:
    """The distance below which a sample counts as memorised: a low quantile of the distances (L,) of held-out images.

    Raises:
        UserError: it is 0, at which copies cannot be told from originals.
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
    """Counts samples that are nearer to a training image than the nearest ``quantile`` of held-out images are.

    All three are judge features, (N, D), (M, D) in blocks of rows, and (L, D). ``train`` should hold all images that the model was
    trained on, flipped ones too. An honest model gives a fraction of about ``quantile``. ``device``: as in :func:`nearest`.

    Raises:
        UserError: there are no images in a set, or as :func:`copy_limit` does.
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
