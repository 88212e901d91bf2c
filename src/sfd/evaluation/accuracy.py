"""How well a trained judge classifies held-out images."""

from pathlib import Path

from sfd.data.manifest import HELDOUT
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import load_judge
from sfd.evaluation.fidelity import class_accuracy, extract
from sfd.evaluation.views import ImageBatches

JUDGE_BATCH = 200


def heldout_accuracy(folder: Path, data: Prepared) -> float:
    """Share of held-out images that the judge in ``folder`` assigns to their classes: the mean over the classes."""
    judge, heldout = load_judge(folder), data.images(HELDOUT)
    seen = extract(judge, ImageBatches(JUDGE_BATCH, judge).of_images(heldout, range(len(heldout))))
    return class_accuracy(seen, heldout.class_indices, judge)
