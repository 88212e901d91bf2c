"""Accuracy that counts every class alike, however many images it has."""

import torch
from torch import Tensor, nn

from sfd.data.images import ManifestImages
from sfd.pixels import to_pixels

BATCH = 200


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes in ``labels`` ``(N,)`` of the share of their images that ``logits`` ``(N, K)`` recognise.

    Guessing gives 1 / K. If all classes have equally many images, this is the share of all images.
    """
    labels = labels.cpu()
    right = (logits.argmax(dim=1).cpu() == labels).double()
    return float(torch.stack([right[labels == label].mean() for label in labels.unique()]).mean())


@torch.no_grad()
def classifier_accuracy(network: nn.Module, images: ManifestImages) -> float:
    """:func:`balanced_accuracy` of a network from pixels ``(B, 3, S, S)`` in [-1, 1] to logits, which it leaves in evaluation mode."""
    device = next(network.eval().parameters()).device
    rows = [range(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
    batches = (images.__getitems__(list(row)).images.to(device) for row in rows)
    logits = torch.cat([network(to_pixels(batch)) for batch in batches])
    return balanced_accuracy(logits, images.class_indices)
