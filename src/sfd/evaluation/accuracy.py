"""How well a trained judge classifies held-out images."""

from pathlib import Path

from sfd.data.images import Pixels
from sfd.data.manifest import HELDOUT
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import load_judge
from sfd.evaluation.fidelity import class_accuracy
from sfd.evaluation.views import judge_images
from sfd.precision import Inference

JUDGE_BATCH = 50
"""Images that a judge sees at a time in its own stage; large networks at 240 pixels take 1 GB for 50."""


def heldout_accuracy(folder: Path, data: Prepared, num_workers: int | None) -> float:
    """Share of held-out images that the judge in ``folder``, in float32, assigns to their classes: the mean over the classes.

    ``num_workers``: as in :func:`sfd.data.batches.choose_workers`.
    """
    judge, heldout = Inference.float32().place(load_judge(folder)), data.images(HELDOUT)
    seen = judge_images(judge, Pixels(heldout), range(len(heldout)), JUDGE_BATCH, num_workers)
    return class_accuracy(seen, heldout.class_indices, judge)
