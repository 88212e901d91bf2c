"""Quality checks between stages: what is too poor stops its stage before later ones spend hours on it.

A stage measures its result and calls :func:`check_quality` last. The limits are section ``quality`` of ``params.yaml``, which changes no
result. What was done stays in the stage's work folder. So when a limit has been changed, or the result accepted by `sfd accept STAGE`,
the next run publishes it without training again.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfd.class_mix import NATURAL, count_alike, interleave
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.errors import UserError
from sfd.params import Params
from sfd.pipeline.inputs import digest_facts
from sfd.pipeline.stage import Stage
from sfd.pipeline.work import lock
from sfd.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

QUALITY = "quality.json"
"""The file of a result that holds what was measured."""
STOPPED, ACCEPTED = "stopped.json", "accepted.json"
"""Files of a work folder: at which check it stopped, and which work was accepted."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One limit. ``measure``: what has to reach ``quality.OPTION``; ``text``: a sentence on the values; ``remedy``: what to do."""

    option: str
    measure: Callable[[Values], float]
    text: str
    remedy: str


def above_chance(values: Values) -> float:
    """An accuracy on the scale where 0 is chance and 1 is perfect."""
    chance = 1.0 / values["classes"]
    return (values["heldout_accuracy"] - chance) / (1.0 - chance)


ACCURACY = "the held-out accuracy is {heldout_accuracy:.3f} in {classes:.0f} classes"
CHECKS: dict[str, tuple[Check, ...]] = {
    "prepare": (
        Check(
            "images_per_class",
            lambda values: values["smallest_class"],
            "the smallest class has {smallest_class:.0f} training images",
            "add images to small classes, join them or leave them out",
        ),
        Check(
            "scored_images",
            lambda values: values["compared_images"] / values["needed_images"],
            "{compared_images:.0f} images can be compared, and evaluate.min_images asks for {needed_images:.0f}",
            "raise sample.num_images and data.holdout_fraction, set sample.class_mix to `natural`, or lower evaluate.min_images",
        ),
    ),
    "encoder": (
        Check(
            "encoder_accuracy",
            above_chance,
            ACCURACY,
            "raise encoder.training.num_steps, or use a pretrained encoder (encoder.source)",
        ),
    ),
    "texture_vae": (
        Check(
            "psnr_gain",
            lambda values: values["psnr"] - values["linear_psnr"],
            "the held-out PSNR is {psnr:.2f} dB, and that of the linear yardstick {linear_psnr:.2f} dB",
            "raise texture_vae.training.num_steps or texture_vae.channels, or set texture_vae.source to `pca`, the yardstick itself",
        ),
        Check(
            "ssim_gain",
            lambda values: values["ssim"] - values["linear_ssim"],
            "the held-out SSIM is {ssim:.3f}, and that of the linear yardstick {linear_ssim:.3f}",
            "raise texture_vae.training.num_steps or texture_vae.channels, or set texture_vae.source to `pca`, the yardstick itself",
        ),
    ),
    "text": (
        Check(
            "text_retrieval",
            lambda values: (values["heldout_retrieval"] - values["chance"]) / (1.0 - values["chance"]),
            "{heldout_retrieval:.3f} of the held-out images find their caption first, and {chance:.3f} by chance",
            "raise text.training.num_steps, look at results/prepare/captions.json and at captions.png, or take a text encoder that others trained "
            "(text.source)",
        ),
    ),
    "semantic": (
        Check(
            "explained_variance",
            lambda values: values["explained_variance"],
            "the semantic latents keep {explained_variance:.3f} of the features' variance",
            "raise semantic.training.num_steps or semantic.latent_channels, or give a semantic.file that was trained on features of this encoder",
        ),
    ),
    "judge": (
        Check(
            "judge_accuracy",
            above_chance,
            ACCURACY,
            "raise its training.num_steps or channels in `judges`, or take a network that others trained (kind `timm`)",
        ),
    ),
}
"""The checks of each stage that has some."""


def record_quality(stage: Stage, values: Values) -> None:
    """Writes what was measured to the stage's result, logs it, and checks it."""
    (stage.out / QUALITY).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    stage.log(values)
    check_quality(stage, values)


def check_quality(stage: Stage, values: Values, of: str = "") -> None:
    """Stops the stage unless ``values`` reach the limits of ``params.quality``, or this work was accepted. ``of``: what they belong to.

    Raises:
        UserError: a limit is not reached.
    """
    failures = [f"{of}{text}" for check in CHECKS[stage.name] if (text := _failure(stage, check, values))]
    if not failures:
        return
    work, reason = digest_facts(stage.facts), "; ".join(failures)
    if _read(stage.work / ACCEPTED).get("work") == work:
        print(f"{stage.name}: goes on as accepted, although {reason}", file=sys.stderr)
        return
    (stage.work / STOPPED).write_text(json.dumps({"work": work, "reason": reason}) + "\n", encoding="utf-8")
    raise UserError(
        f"{reason}. The finished work is kept: to go on with it all the same, `sfd accept {stage.name}` or set the limit lower or to null, "
        f"then repeat the command"
    )


def _failure(stage: Stage, check: Check, values: Values) -> str | None:
    """Metric, value, limit and remedy; None if the limit is reached or null."""
    limit = getattr(stage.params.quality, check.option)
    if limit is None or check.measure(values) >= limit:
        return None
    return (
        f"{check.text.format(**values)}: quality.{check.option} is {check.measure(values):.3g}, below its limit {limit:g} "
        f"({check.remedy})"
    )


def count_images(params: Params, manifest: "pd.DataFrame") -> dict[str, float]:
    """What stage `prepare` is checked by: images of the smallest class, and the images that can be compared, beside those that are needed."""
    labels = {split: manifest["class_index"][manifest["split"] == split].tolist() for split in (TRAIN, HELDOUT)}
    found = Counter(labels[TRAIN])
    counts = [found[label] for label in range(int(manifest["class_index"].max()) + 1)]
    sets = list(labels.values()) if params.evaluate.reference is None else [labels[TRAIN]]
    number = params.sample.num_images
    compared = min(number, *map(len, sets))
    if params.diffusion.model.condition == "class":
        wanted = interleave(counts if params.sample.class_mix == NATURAL else [1] * len(counts), number)
        compared = count_alike(wanted, *sets)
    # Swaps have images of their own.
    absent = {"swap_accuracy", *(() if params.is_told_words else ("text_agreement",))}
    limits = [limit for limit in params.evaluate.min_images.model_dump(exclude=absent).values() if limit is not None]
    return {
        "smallest_class": float(min(counts)),
        "compared_images": float(compared),
        "needed_images": float(max(limits, default=1)),
    }


def check_gates(params: Params, num_classes: int) -> None:
    """Raises :class:`UserError` if a gate needs classes and the images have none."""
    gate = next((gate for gate in ("class_accuracy", "class_accuracy_heldout") if gate in params.register_.gates), None)
    if num_classes == 1 and gate is not None:
        raise UserError(
            f"register.gates.{gate} needs images of two classes or more, but these have one: remove the gate, or give each class a folder"
        )


def accept(workspace: Workspace, name: str) -> str:
    """Lets a stage publish the work with which it stopped at a check, and no other; returns one line that says so.

    Raises:
        UserError: the stage has no check, or did not stop at one; or it is running.
    """
    if name not in CHECKS:
        raise UserError(f"stage `{name}` has no quality check; these have one: {', '.join(CHECKS)}")
    work = workspace.work(name)
    found = _read(work / STOPPED)
    if not found:
        raise UserError(
            f"stage `{name}` did not stop at a quality check ({work / STOPPED} is missing); nothing is to be accepted"
        )
    with lock(work):
        (work / ACCEPTED).write_text(json.dumps({"work": found["work"]}) + "\n", encoding="utf-8")
    return (
        f"{name}: accepted, although {found['reason']}; `dvc repro` goes on with this work, and checks any other again"
    )


def stopped(workspace: Workspace, name: str) -> str | None:
    """Why a stage stopped at a quality check when it last ran; None if it did not, or if that was accepted."""
    work = workspace.work(name)
    found = _read(work / STOPPED)
    return found["reason"] if found and _read(work / ACCEPTED).get("work") != found["work"] else None


def _read(file: Path) -> dict[str, str]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
