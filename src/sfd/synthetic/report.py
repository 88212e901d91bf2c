"""``sfd generate OUT --report``: does training with generated images help?

The judge's network is trained on the real images, on the generated ones and on both, and scored on held-out real images.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from sfd.data.files import FolderStore
from sfd.data.images import ManifestImages
from sfd.data.layout import HIDDEN
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.encoders.judges.judge import judge_class
from sfd.errors import UserError
from sfd.evaluation.accuracy import heldout_accuracy
from sfd.generation.generated import REPORT, REPORT_PAGE, read_table
from sfd.params import JudgeParams, TrainingParams
from sfd.pipeline.inputs import digest_path, published_fingerprint
from sfd.pipeline.work import lock
from sfd.seeding import derive_seed
from sfd.statistics import Comparison, compare, estimate
from sfd.synthetic.generate import COMMAND, Upstream
from sfd.training.classifier import ClassifierTask
from sfd.training.loop import log_nothing, train

REAL, SYNTHETIC, BOTH = "real", "synthetic", "both"
REPEATS = 3
"""Number of trainings per set. The k-th training of every set starts from the same weights and draws the same augmentations."""

VERDICTS = {
    "better": "Training on both is better than on real images alone, beyond the noise of the training's seeds.",
    "worse": "Training on both is worse than on real images alone, beyond the noise of the training's seeds.",
    "not told apart": "Training on both cannot be told apart from training on real images alone: the difference is within the noise "
    "of the training's seeds.",
}


@dataclass(frozen=True)
class Outcome:
    """The report's numbers. ``num_images`` and ``accuracies`` (held-out accuracy of every training): by the set of images trained on."""

    num_images: dict[str, int]
    num_heldout: int
    num_steps: int
    accuracies: dict[str, list[float]]

    @property
    def gain(self) -> Comparison:
        """Accuracy of training on both, compared with training on real images."""
        return compare(self.accuracies[BOTH], self.accuracies[REAL], "maximize")


def check_report(upstream: Upstream) -> None:
    """Raises :class:`UserError` unless the judge is trained in this project, and the model draws the data set's two or more classes."""
    if upstream.params.first_judge.source != "train":
        raise UserError(
            f"--report trains the judge's network, but judges.0.source is `{upstream.params.first_judge.source}`; set it to `train`, "
            "or leave --report out"
        )
    known = upstream.data.summary.classes
    if upstream.classes != known and len(known) > 1:
        raise UserError(
            f"--report trains on the {len(known)} classes of the data set, but the model is told something else "
            f"(diffusion.model.condition: {upstream.params.diffusion.model.condition}); leave --report out"
        )
    if len(known) < 2:
        raise UserError("--report compares class accuracies, but the data set has a single class; leave --report out")


def report(out: Path, upstream: Upstream) -> str:
    """Trains, writes ``report.json`` and ``report.md`` into the folder, and returns the text of the latter. Finished trainings are kept.

    Raises:
        UserError: the folder's table or its images are damaged.
    """
    sets = _image_sets(out, upstream)
    fingerprint = _fingerprint(out, upstream)
    file, work = out / REPORT, out / HIDDEN / "report"
    if not (file.is_file() and json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint):
        with lock(work, f"the report of {out}"):
            accuracies = {
                name: [
                    _accuracy(images, repeat, upstream, work / f"{name}-{repeat}", fingerprint)
                    for repeat in range(REPEATS)
                ]
                for name, images in sets.items()
            }
            heldout, steps = len(upstream.data.images(HELDOUT)), _training(upstream.params.first_judge).num_steps
            outcome = Outcome({name: len(images) for name, images in sets.items()}, heldout, steps, accuracies)
            (work / REPORT_PAGE).write_text(_page(outcome), encoding="utf-8")
            (work / REPORT).write_text(json.dumps(_facts(outcome, fingerprint), indent=2) + "\n", encoding="utf-8")
            (work / REPORT_PAGE).replace(out / REPORT_PAGE)
            (work / REPORT).replace(file)  # last: it says that the report is complete
            shutil.rmtree(work)
    return (out / REPORT_PAGE).read_text(encoding="utf-8").rstrip()


def _training(params: JudgeParams) -> TrainingParams:
    if params.training is None:
        raise UserError("judges.0.training is missing")
    return params.training


def _image_sets(out: Path, upstream: Upstream) -> dict[str, ManifestImages]:
    """The images of every training set."""
    data, table = upstream.data, read_table(out)
    real = data.images(TRAIN)
    store = FolderStore(out, table["file"].tolist())
    synthetic = ManifestImages(table, store, data.params.image_size, data.params.max_pixels)
    return {REAL: real, SYNTHETIC: synthetic, BOTH: real.joined(synthetic)}


def _fingerprint(out: Path, upstream: Upstream) -> str:
    """sha256 of everything that the report depends on."""
    facts = {
        "images": digest_path(out / HIDDEN / COMMAND),
        "data set": published_fingerprint(upstream.workspace, "prepare"),
        "judge": upstream.params.first_judge.model_dump(mode="json"),
        "image_size": upstream.params.data.image_size,
        "mirror": upstream.params.data.mirror,
        "seed": upstream.params.seed,
        "repeats": REPEATS,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _accuracy(images: ManifestImages, repeat: int, upstream: Upstream, work: Path, fingerprint: str) -> float:
    """Held-out accuracy, a mean over the classes, of one training. It is read from ``work`` if that training has finished before."""
    done = work.with_suffix(".json")
    if done.is_file():
        known = json.loads(done.read_text(encoding="utf-8"))
        if known["fingerprint"] == fingerprint:
            return float(known["accuracy"])
    work.mkdir(exist_ok=True)
    params, data, num_classes = upstream.params.first_judge, upstream.data, len(upstream.classes)
    kind, seed = judge_class(params.kind), derive_seed(upstream.params.seed, "report/training", repeat)
    network = kind.trainable(params, num_classes, seed)
    task = ClassifierTask("report", network, images, num_classes, data.params.mirror, seed)
    runtime = upstream.params.runtime.judge
    train(task, _training(params), seed, work, fingerprint, log_nothing, runtime).copy_to(network)
    kind.save_trained(work / "model", params, network, num_classes, num_classes)
    accuracy = heldout_accuracy(work / "model", data, runtime.num_workers)
    temporary = work.with_suffix(".tmp")
    temporary.write_text(json.dumps({"fingerprint": fingerprint, "accuracy": accuracy}), encoding="utf-8")
    temporary.replace(done)
    shutil.rmtree(work)
    return accuracy


def _facts(outcome: Outcome, fingerprint: str) -> dict[str, object]:
    """The report for programs."""
    sets = {}
    for name, accuracies in outcome.accuracies.items():
        found = estimate(accuracies)
        sets[name] = {
            "num_images": outcome.num_images[name],
            "accuracies": accuracies,
            "mean": found.mean,
            "standard_error": found.error,
        }
    gain = outcome.gain
    return {
        "num_heldout": outcome.num_heldout,
        "num_steps": outcome.num_steps,
        "heldout_accuracy": sets,
        "both_minus_real": {
            "mean": gain.difference.mean,
            "interval_95": gain.difference.interval,
            "verdict": gain.verdict,
        },
        "fingerprint": fingerprint,
    }


def _page(outcome: Outcome) -> str:
    """The report for people, as Markdown."""
    rows = ["| trained on | images | held-out accuracy | standard error | each training |", "|---|---|---|---|---|"]
    for name, accuracies in outcome.accuracies.items():
        found = estimate(accuracies)
        each = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        rows.append(f"| {name} | {outcome.num_images[name]} | {found.mean:.4f} | {found.error:.4f} | {each} |")
    gain = outcome.gain
    assert gain.difference.interval is not None, "there are several repeats"
    low, high = gain.difference.interval
    return (
        "\n".join(
            [
                *rows,
                "",
                f"both - real: {gain.difference.mean:+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}] (Student's t over {REPEATS} paired "
                f"trainings). {VERDICTS[gain.verdict]}",
                "",
                f"Every training has {outcome.num_steps} steps. All accuracies are means over the classes, measured on the same "
                f"{outcome.num_heldout} held-out images. The interval does not say what other held-out images would give.",
            ]
        )
        + "\n"
    )
