"""How well a trained judge classifies held-out images."""

import math
from pathlib import Path

from sfd.data.images import ManifestImages
from sfd.data.manifest import HELDOUT
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.evaluation.fidelity import Features, class_accuracy, extract
from sfd.evaluation.views import ImageBatches
from sfd.precision import Inference
from sfd.progress import track

JUDGE_BATCH = 50
"""Images that a judge sees at a time in its own stage; large networks at 240 pixels take 1 GB for 50."""


def heldout_accuracy(folder: Path, data: Prepared) -> float:
    """Share of held-out images that the judge in ``folder``, in float32, assigns to their classes: the mean over the classes."""
    judge, heldout = Inference.float32().place(load_judge(folder)), data.images(HELDOUT)
    return class_accuracy(judge_images(judge, heldout), heldout.class_indices, judge)


def judge_images(judge: Judge, images: ManifestImages) -> Features:
    """What the judge computes for all images, in their order."""
    batches = ImageBatches(JUDGE_BATCH, judge).of_images(images, range(len(images)))
    return extract(judge, track(batches, "judged", "batch", math.ceil(len(images) / JUDGE_BATCH)))
