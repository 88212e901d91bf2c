"""The choices that need no measurement: image size, networks, held-out images, sampling, gates. Each has its reason in one sentence."""

from dataclasses import dataclass, field
from typing import Any

from sfd.data.captions import CaptionFacts
from sfd.data.report import DataReport
from sfd.errors import UserError
from sfd.names import TRAIN
from sfd.params.yaml import merge
from sfd.planning.machine import Machine

Tree = dict[str, Any]

BLOCK = 8
"""Pixels per latent position along one side: 64 tokens at 64 pixels."""
LARGE_GPU_GB = 23.0
"""A GPU of 24 GB has a bit less to give."""
FEW_IMAGES = 100
"""With fewer, nothing is learnt but the images themselves."""
WANTED_REFERENCE, NEEDED_REFERENCE = 1400, 200
"""Held-out images that all scores are steady with (the Frechet distance needs more than the judge's 1,280 features), and that they need."""
SMALL_CLASS = 10
"""The default of ``quality.images_per_class``."""
FEW_TO_MIRROR = 2000
"""With fewer training images, mirrored ones are worth their time."""
UNEQUAL = 1.5
"""Classes are unequal if the largest has more than so many times the images of the smallest."""

FEATURE_IMAGES = 2000
"""Images that the semantic components are fitted to: many times as many tokens as the features have channels."""
SEMANTIC_CHANNELS = 8
"""They keep a quarter of the variance of features on emoji; 4 keep less than stage ``semantic`` asks for."""
WEAK_GUIDANCE, STRONG_GUIDANCE, MOST_GUIDANCE = 1.5, 3.0, 6.0
"""By judgement for classes on a GPU; for words, and for small models of a few hours, whose samples hardly show their class with less
(docs/your-own-images.md); and what `sfd tune` tries at most."""
TEXT_STEPS = 1000
"""Of the training of a text encoder; with 4,000 captions more teach it by heart."""
BATCH, CPU_BATCH = 32, 16
"""Of the diffusion model on a GPU, by judgement, and on a CPU, which takes as long for an image in small batches as in large ones, while more
steps learn more from the same images (docs/your-own-images.md)."""
CHANNELS = 24
"""Of the principal components."""
RESIDUAL_STEPS = (2500, 1000)
"""Steps of training for the network on top of them: the first number that the hours allow."""
RESIDUAL_BATCH = 32
ENCODER, JUDGE = "tf_efficientnet_lite0", "tf_efficientnet_lite1"
"""The encoder and the judge from packages: different networks, for a judge never scores its own features."""


@dataclass
class Draft:
    """Parameters that differ from the preset they are put into, and why. ``num_train``, ``num_heldout``: images. ``num_classes``: 1 without any."""

    changes: Tree = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    num_train: int = 0
    num_heldout: int = 0
    num_classes: int = 1

    def choose(self, topic: str, reason: str, **sections: Tree | list[Tree]) -> None:
        """Notes values of some sections, and the reason for them."""
        merge(self.changes, sections)
        self.reasons[topic] = reason


def draft(report: DataReport, machine: Machine, judge: str) -> Draft:
    """What fits the images and the machine. ``judge``: its name in metrics.

    Raises:
        UserError: there are too few images.
    """
    if report.num_images < FEW_IMAGES:
        raise UserError(
            f"there are {report.num_images} images; a model of fewer than {FEW_IMAGES} repeats them, so nothing is planned: add images, or "
            "train on from another model (docs/fine-tuning.md)"
        )
    made = Draft(num_classes=len(report.counts))
    size = _image_size(made, report, machine)
    _split(made, report)
    _condition(made, report, machine)
    _scores(made, report)
    _mirror(made)
    made.changes.setdefault("diffusion", {})["training"] = {"batch_size": BATCH if machine.gpu else CPU_BATCH}
    _tokenizer(made, size, machine)
    _encoder(made, size, machine)
    _judge(made, size, machine, judge)
    _tune(made, report)
    return made


def _image_size(made: Draft, report: DataReport, machine: Machine) -> int:
    median = report.shorter_side[1]
    most = 256 if machine.gpu_memory_gb >= LARGE_GPU_GB and machine.has_hub else 64
    size = max([size for size in (32, 64, 128, 256) if size <= most and size <= median * 1.2], default=32)
    device = f"a GPU of {machine.gpu_memory_gb:.0f} GB" if machine.gpu else f"{machine.cores} CPU cores"
    if size < most:
        reason = f"the images are small (median {median} pixels on the shorter side); enlarging them adds no detail"
    elif most == 256:
        reason = f"{device} and the public networks of the hub carry 256 pixels"
    elif machine.gpu_memory_gb >= LARGE_GPU_GB:
        reason = "the public networks that 256 pixels need are out of reach: the hub does not answer"
    else:
        reason = f"every doubling needs four times the tokens; {device} train 64 pixels in the time that there is"
    made.choose("image size", f"{size} pixels: {reason}", data={"image_size": size})
    return size


def _split(made: Draft, report: DataReport) -> None:
    made.changes.setdefault("data", {})["duplicates"] = "drop"
    if report.split_by == "folders":
        made.num_train, made.num_heldout = report.num_train, report.num_heldout
        made.reasons["held out"] = f"{made.num_heldout} images: the folders say so"
        return
    total = report.num_images
    share = min(max(WANTED_REFERENCE / total, 0.02), 0.2)
    if share * total < NEEDED_REFERENCE:
        share = min(NEEDED_REFERENCE / total, 0.4)
    share = round(share, 3)
    made.num_heldout = round(share * total)
    made.num_train = total - made.num_heldout
    enough = made.num_heldout >= NEEDED_REFERENCE
    reason = (
        "enough to score with, and they are not trained on"
        if enough
        else (
            f"more would take too many from training; with fewer than {NEEDED_REFERENCE} the distance is flagged as uncertain"
        )
    )
    made.choose("held out", f"{made.num_heldout} of {total} images: {reason}", data={"holdout_fraction": share})


def _scores(made: Draft, report: DataReport) -> None:
    """Few held-out images do not stop the project: what they score is flagged. Too small classes do."""
    small = [name for name, splits in report.counts.items() if splits[TRAIN] < SMALL_CLASS]
    if small:
        made.reasons["small classes"] = (
            f"{len(small)} with fewer than {SMALL_CLASS} training images ({', '.join(small[:3])}): stage prepare stops at them; add images, join "
            "them, leave them out, or lower quality.images_per_class"
        )
    has_equal_classes = report.captions is None and made.changes.get("sample", {}).get("class_mix") == "balanced"
    shares = [sum(splits.values()) / report.num_images for splits in report.counts.values()]
    count = int(min(shares) * len(shares) * made.num_heldout) if has_equal_classes else made.num_heldout
    enough = count >= NEEDED_REFERENCE
    made.choose(
        "scores",
        f"compared with about {count} held-out images"
        + (
            ""
            if enough
            else f", fewer than the {NEEDED_REFERENCE} that steady scores need: metrics.json flags them, and gates on them do not pass"
        ),
        quality={"scored_images": 1.0 if enough else 0.01},
    )


def _mirror(made: Draft) -> None:
    few = made.num_train < FEW_TO_MIRROR
    reason = (
        f"yes: {made.num_train:,} images are few, and flipped ones double them; set data.mirror to false if a flipped image is a wrong one (text)"
        if few
        else f"no: {made.num_train:,} images are enough, and a flipped one may be wrong (text, signs)"
    )
    made.choose("mirrored images", reason, data={"mirror": few})


def _condition(made: Draft, report: DataReport, machine: Machine) -> None:
    totals = [sum(splits.values()) for splits in report.counts.values()]
    if report.captions is not None:
        _words(made, report.captions)
        return
    if len(totals) == 1:
        made.choose(
            "condition",
            "none: the images have no classes, so there is nothing to tell the model and no class to guide towards",
            diffusion={"model": {"condition": "none", "class_dropout": 0.0}},
            sample={"guidance": {"kind": "none", "scale_texture": 1.0, "scale_semantic": 1.0}},
        )
        return
    unequal = max(totals) > UNEQUAL * min(totals)
    mix = "natural" if unequal else "balanced"
    why = (
        f"the classes are unequal ({min(totals)} to {max(totals)} images)" if unequal else "the classes are about equal"
    )
    scale = WEAK_GUIDANCE if machine.gpu else STRONG_GUIDANCE
    made.choose(
        "condition",
        f"class, of {len(totals)}, guided by {scale:g}; samples in {mix} proportions: {why}",
        diffusion={"model": {"condition": "class", "class_dropout": 0.1}},
        sample={"class_mix": mix, "guidance": {"kind": "cfg", "scale_texture": scale, "scale_semantic": scale}},
    )


def _words(made: Draft, captions: CaptionFacts) -> None:
    total = captions.images + captions.uncaptioned
    low, middle, high = captions.per_image
    each = f"{low} each" if low == high else f"{low} to {high} each, median {middle}"
    made.choose(
        "condition",
        f"text: {captions.images} of {total} images have captions ({each}; {captions.length[1]} words in the median, {captions.vocabulary} different "
        f"words), guided by {STRONG_GUIDANCE:g}",
        diffusion={"model": {"condition": "text", "class_dropout": 0.1}},
        sample={
            "class_mix": "balanced",
            "guidance": {"kind": "cfg", "scale_texture": STRONG_GUIDANCE, "scale_semantic": STRONG_GUIDANCE},
        },
    )
    training = {
        "num_steps": TEXT_STEPS,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "warmup_steps": 50,
        "decay": "cosine",
    }
    training |= {"beta2": 0.99, "weight_decay": 0.1, "ema_decay": 0.99, "max_grad_norm": 1.0, "precision": "auto"}
    most = min(256, max(16, 4 * captions.length[2]))
    made.choose(
        "text encoder",
        f"a small transformer, trained here with the captions against the encoder's features, {TEXT_STEPS:,} steps; {most} tokens of a caption are "
        "kept. One that others trained knows more words (text.source)",
        text={"source": "train", "max_tokens": most, "training": training},
    )


def _tokenizer(made: Draft, size: int, machine: Machine) -> None:
    if size == 256 and machine.has_hub:
        made.choose(
            "tokenizer",
            "the public f8 VAE: trained on far more images than yours",
            texture_vae={
                "source": "pretrained",
                "name": "stabilityai/sd-vae-ft-mse",
                "channels": [128, 256, 512, 512],
                "latent_channels": 4,
                "training": None,
            },
        )
        made.changes["diffusion"]["model"]["patch_size"] = 2
        return
    block = BLOCK if size >= 64 else 4
    training = {
        "num_steps": RESIDUAL_STEPS[0],
        "batch_size": RESIDUAL_BATCH,
        "learning_rate": 1e-3,
        "warmup_steps": 50,
        "decay": "cosine",
    }
    training |= {
        "beta2": 0.99,
        "weight_decay": 0.0,
        "ema_decay": 0.99,
        "max_grad_norm": 1.0,
        "accumulation_steps": 1,
        "precision": "auto",
    }
    made.choose(
        "tokenizer",
        f"principal components of {block}x{block} blocks, {CHANNELS} channels, fitted in seconds; channels count in the loss by how much of the "
        "images they carry",
        texture_vae={"source": "pca", "block_size": block, "latent_channels": CHANNELS, "training": training},
        diffusion={"loss": {"channel_weights": "energy", "cosine_weight": 0.0}},
    )


def _encoder(made: Draft, size: int, machine: Machine) -> None:
    block = made.changes["texture_vae"].get("block_size", BLOCK)
    semantic: Tree = {"kind": "pca", "latent_channels": SEMANTIC_CHANNELS, "training": None}
    rest: Tree = {
        "features": {"max_images": FEATURE_IMAGES},
        "semantic": semantic,
        "latents": {"store_features": False},
    }
    ready = _ready(machine, ENCODER)
    if machine.has_hub and machine.gpu:
        made.choose(
            "encoder",
            "DINOv2 (small) from the hub: the best features of meaning that are published",
            encoder={
                "source": "pretrained",
                "name": "vit_small_patch14_reg4_dinov2.lvd142m",
                "input_size": 14 * size // block,
                "patch_size": 14,
                "training": None,
            },
            **rest,
        )
    elif ready:
        made.choose(
            "encoder",
            f"{ready['name']} ({ready['source']}): trained on ImageNet, so it knows more than your images can teach",
            encoder=ready | {"input_size": 32 * size // block, "patch_size": 32, "training": None},
            **rest,
        )
    else:
        made.choose(
            "encoder",
            'a small ViT, trained here on the classes: no trained one is within reach (`pip install "semantic-first-diffusion[offline]"`)',
            encoder={"source": "train", "input_size": size, "patch_size": block},
            **rest,
        )


def _ready(machine: Machine, name: str) -> Tree:
    """Source and name of a classifier whose weights can be had; empty if they cannot."""
    if name in machine.packages:
        return {"source": "package", "name": name}
    return {"source": "pretrained", "name": f"{name}.in1k"} if machine.has_hub else {}


def _judge(made: Draft, size: int, machine: Machine, name: str) -> None:
    ready = _ready(machine, JUDGE)
    if ready:
        made.choose(
            "judge",
            f"{ready['name']} ({ready['source']}): it is not the encoder, and was trained on far more images than yours",
            judges=[
                {
                    "kind": "timm",
                    "source": ready["source"],
                    "model": ready["name"],
                    "input_size": max(128, 2 * size),
                    "name": name,
                    "training": None,
                }
            ],
        )
    else:
        reason = "a small ResNet, trained here on the classes: no trained one is within reach"
        made.choose("judge", reason, judges=[{"kind": "resnet", "source": "train", "model": None, "name": name}])


def _tune(made: Draft, report: DataReport) -> None:
    """What `sfd tune` may change. KID rests on fewer images than the distance, and needs no more than the judge has features."""
    space: Tree = {"sample.num_steps": {"low": 10, "high": 40}}
    if len(report.counts) > 1:
        space |= {
            f"sample.guidance.scale_{part}": {"low": 1.0, "high": MOST_GUIDANCE} for part in ("texture", "semantic")
        }
    made.changes["tune"] = {"objectives": ["kid"], "space": space}
