"""Reports of `sfd audit`: as JSON, as a table for the terminal, as Markdown."""

from typing import Any

from sfd.audit.findings import Attack, Neighbours, Samples
from sfd.audit.membership import CONFIDENCE, DRAWS, PROGRESS, RESAMPLES
from sfd.evaluation.memorisation import QUANTILE
from sfd.params import ComputedIn
from sfd.tables import as_text

SHOWN_REFUSED = 5


def describe(
    samples: Samples, neighbours: Neighbours, attack: Attack, note: str, computed_in: ComputedIn
) -> dict[str, Any]:
    """The findings as a tree for JSON. ``note``: which model was attacked. ``computed_in``: the type in which the networks computed."""
    found, score = neighbours.found, attack.separation
    return {
        "samples": {
            "folder": str(samples.folder),
            "num_images": neighbours.num_samples,
            "num_cropped": samples.num_cropped,
            "refused": samples.refused,
        },
        "nearest": {
            "limit": found.threshold,
            "num_below": neighbours.num_below,
            "fraction": found.memorised_fraction,
            "interval": neighbours.interval,
            "num_heldout": neighbours.num_heldout,
            "heldout_fraction": found.heldout_fraction,
            "heldout_interval": neighbours.expected_interval,
            "interval_method": "exact (Clopper-Pearson), 95 %",
            "p_value": neighbours.p_value,
            "num_identical": sum(neighbours.identical),
            "smallest_distance": float(found.table["distance"].iloc[0]),
            "verdict": _verdict_on_neighbours(neighbours),
        },
        "membership": {
            "model": note,
            "num_images": attack.num_images,
            "member_loss": attack.member_loss,
            "heldout_loss": attack.heldout_loss,
            "auc": score.auc,
            "interval": score.interval,
            "interval_method": f"percentile bootstrap, {RESAMPLES} resamples, 95 %",
            "verdict": _verdict_on_attack(attack),
        },
        "precision": computed_in,
    }


def _verdict_on_neighbours(neighbours: Neighbours) -> str:
    copies = sum(neighbours.identical)
    chance = f"by chance, there are as many or more in {100.0 * neighbours.p_value:.2g} % of all cases"
    if neighbours.p_value < 1.0 - CONFIDENCE:
        verdict = f"More samples lie this near to a training image than chance explains ({chance})."
    else:
        verdict = f"No more samples lie this near to a training image than chance explains ({chance})."
    if copies:
        verdict += (
            f" {copies} of them {'is a training image' if copies == 1 else 'are training images'}, pixel for pixel."
        )
    return verdict


def _verdict_on_attack(attack: Attack) -> str:
    low, high = attack.separation.interval
    if low > 0.5:
        return "The model's loss tells training images from held-out ones better than chance: it remembers something of them."
    if high < 0.5:
        return "The loss is higher on training images than on held-out ones, which is no sign of memorisation; check how the two were split."
    return f"The model's loss does not tell training images from held-out ones, as far as {attack.num_images} images of each can show."


def table(facts: dict[str, Any]) -> str:
    """The findings of :func:`describe` as a table for the terminal."""
    near, attack = facts["nearest"], facts["membership"]
    rows = [
        ("check", "found", "95 % interval", "by chance"),
        (
            f"nearer than the held-out {_percent(QUANTILE)} quantile",
            _percent(near["fraction"]),
            _percents(near["interval"]),
            f"{_percent(near['heldout_fraction'])} {_percents(near['heldout_interval'])}",
        ),
        ("membership by loss, AUC", f"{attack['auc']:.3f}", _numbers(attack["interval"]), "0.5"),
    ]
    return "\n".join([as_text(rows), "", near["verdict"], attack["verdict"], attack["model"]])


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def _percents(interval: tuple[float, float]) -> str:
    return f"[{_percent(interval[0])}, {_percent(interval[1])}]"


def _numbers(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def page(facts: dict[str, Any]) -> str:
    """The findings of :func:`describe` as Markdown."""
    about, near, attack = facts["samples"], facts["nearest"], facts["membership"]
    refused = [f"`{file}` ({reason})" for file, reason in list(about["refused"].items())[:SHOWN_REFUSED]]
    unread = f" {len(about['refused'])} files were not read, such as {', '.join(refused)}." if refused else ""
    return f"""# Audit of {about["folder"]}

{about["num_images"]} images, {about["num_cropped"]} of them of another size and centre-cropped as training images are.{unread}

## Nearest training images

| | share below the limit | 95 % interval |
|---|---|---|
| samples ({near["num_below"]} of {about["num_images"]}) | {_percent(near["fraction"])} | {_percents(near["interval"])} |
| held-out images ({near["num_heldout"]} in all) | {_percent(near["heldout_fraction"])} | {_percents(near["heldout_interval"])} |

**{near["verdict"]}**

The limit is a distance of {near["limit"]:.4f} in the judge's features, the {_percent(QUANTILE)} quantile of the distances from held-out images to
their nearest training image (mirrored ones too, where the model was trained on them). Intervals: {near["interval_method"]}. The smallest distance
of a sample is {near["smallest_distance"]:.4f}. `nearest.csv` has all of them, `closest.png` the closest pairs.

## Membership by loss

| images of each kind | loss on training images | loss on held-out images | AUC | 95 % interval |
|---|---|---|---|---|
| {attack["num_images"]} | {attack["member_loss"]:.4f} | {attack["heldout_loss"]:.4f} | {attack["auc"]:.3f} | {_numbers(attack["interval"])} |

**{attack["verdict"]}** {attack["model"]}

An attacker who has the model guesses that images with a low loss were trained on. The loss is the squared velocity error, averaged over
u = {", ".join(f"{u:g}" for u in PROGRESS)} with {DRAWS} noises each, the same for all images. All images are encoded again, with
draws of the posterior that training did not use. AUC is the probability that a training image has a lower loss than a held-out one; 0.5: the
attacker learns nothing. Interval: {attack["interval_method"]}. Judge, encoders and model computed in {facts["precision"]}.

## What this does not prove

- Distances are those of one judge. It does not see all copies, for example copies of a part of an image.
- {near["num_heldout"]} held-out images resolve a quantile no finer than {_percent(1.0 / near["num_heldout"])}: the interval of their share says
  how loose the limit is.
- Near duplicates between training and held-out images lower the limit and hide copies. Duplicates within the training images are
  not searched for, though models memorise these first.
- The loss is a weak attack. Attacks with reference models (LiRA, arXiv 2112.03570) find members that it misses. An AUC of 0.5 is no proof
  of privacy, and an average says nothing about single images.
- Encoder, texture VAE and semantic VAE may have been trained on the same images. What they reveal counts as revealed by the model.
- The attack looks at the model, not at the samples: other samples of the same model give the same AUC.
"""
