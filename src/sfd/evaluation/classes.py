"""How good the samples of each class are."""

import pandas as pd
import torch

from sfd.encoders.judges.judge import Judge
from sfd.evaluation.fidelity import Features, FeatureStatistics, Sets
from sfd.evaluation.kernel import kernel_distance
from sfd.evaluation.uncertainty import binomial_error
from sfd.params import EvaluateParams


def class_table(judge: Judge, sets: Sets, names: list[str], params: EvaluateParams) -> pd.DataFrame:
    """One row per class of the samples, which must have labels.

    Columns:
        class, num_samples, num_heldout: the class, and how many samples and held-out images of it are compared.
        accuracy, se_accuracy: share of its samples that the judge recognises, and the standard error; accuracy_heldout: of the images.
        kid: kernel distance between them, unbiased, over all of them; empty with fewer than 2 of either.
        fd: Frechet distance; empty with no more images than the judge has features, because their covariances have no full rank.
        too_few: which of `kid` and `fd` rest on fewer images than ``params.min_images`` asks for.
    """
    assert sets.sample_labels is not None
    rows = []
    for label in sets.sample_labels.unique().tolist():
        mine = sets.samples.take((sets.sample_labels == label).nonzero().flatten().tolist())
        theirs = sets.heldout.take((sets.heldout_labels == label).nonzero().flatten().tolist())
        count, accuracy = min(len(mine), len(theirs)), _share(mine, label)
        row = {
            "class": names[label],
            "num_samples": len(mine),
            "num_heldout": len(theirs),
            "accuracy": accuracy,
            "se_accuracy": None if accuracy is None else binomial_error(accuracy, len(mine)),
            "accuracy_heldout": _share(theirs, label),
            "kid": kernel_distance(mine.features, theirs.features) if count > 1 else None,
            "fd": _distance(mine, theirs) if count > judge.num_features else None,
        }
        limits = {"kid": params.min_images.kid, "fd": params.min_images.fd}
        few = [key for key, limit in limits.items() if row[key] is not None and limit is not None and count < limit]
        rows.append(row | {"too_few": " ".join(few)})
    return pd.DataFrame(rows)


def _share(images: Features, label: int) -> float | None:
    """The share of images that the judge assigns to a class; None without images."""
    if not len(images) or images.logits is None:
        return None
    return float((images.logits.argmax(dim=1) == label).to(torch.float64).mean())


def _distance(mine: Features, theirs: Features) -> float:
    return FeatureStatistics.of(mine.features).distance(FeatureStatistics.of(theirs.features))
