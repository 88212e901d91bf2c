"""The points of benchmarks/answer.py: what each one changes, the projects that they need, and the parameters of both."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfd.params import Params, parse_yaml, with_values
from sfd.preset import load_preset

Values = dict[str, Any]
"""Dotted keys of ``params.yaml``, and what they become."""

DIGITS = "digits"
SYNC = "sync"
"""The point that all others are compared with."""
TUNED = "tuned"
BASE, REDI, NONE, ALIGNED, ALIGNED_ONLY, LEARNT = "base", "redi", "none", "va-vae", "va-vae-alone", "learnt"

ENCODERS = {
    "train": "the small ViT that the graph trains",
    "package": "tf_efficientnet_lite0 with ImageNet weights, from the extra `offline`",
}


def offset(tau: float) -> Values:
    """The semantics lead by ``tau``."""
    return {"schedule.kind": "offset", "schedule.tau": tau}


IN_STEP: Values = {"schedule.kind": "sync"}


@dataclass(frozen=True)
class Variant:
    """A project of its own, for what comes before the trainings. ``copied``: the one whose finished stages it starts from."""

    copied: str | None
    changes: Values = field(default_factory=dict)
    learns_schedule: bool = False


NO_SEMANTICS: Values = {"semantic.kind": "none", "semantic.training": None, "schedule.kind": "sync"}

VARIANTS: dict[str, Variant] = {
    BASE: Variant(None),
    LEARNT: Variant(BASE, {"schedule.kind": "learnt"}, learns_schedule=True),
    REDI: Variant(BASE, {"semantic.kind": "pca", "semantic.training": None}),
    NONE: Variant(BASE, NO_SEMANTICS),
    ALIGNED: Variant(BASE, {"texture_vae.alignment.weight": 0.1}),
    ALIGNED_ONLY: Variant(ALIGNED, {"texture_vae.alignment.weight": 0.1, **NO_SEMANTICS}),
}


@dataclass(frozen=True)
class PointOf:
    """One row of the answer. ``changes``: of the training."""

    variant: str
    changes: Values
    meaning: str


POINTS: dict[str, PointOf] = {
    SYNC: PointOf(BASE, IN_STEP, "one time for texture and semantics"),
    "tau-0.1": PointOf(BASE, offset(0.1), "the semantics lead by 0.1"),
    "tau-0.3": PointOf(BASE, offset(0.3), "the semantics lead by 0.3, the published value"),
    "tau-0.5": PointOf(BASE, offset(0.5), "the semantics lead by 0.5"),
    "power-2": PointOf(BASE, {"schedule.kind": "power", "schedule.gamma": 2.0}, "t_tex = t_sem ** 2"),
    TUNED: PointOf(BASE, {}, "the offset that successive halving of short trainings finds"),
    "learnt": PointOf(LEARNT, {}, "the curve that stage `schedule` learns"),
    "redi-sync": PointOf(REDI, IN_STEP, "principal components as semantics (ReDi), one time"),
    "redi-tau-0.3": PointOf(REDI, offset(0.3), "principal components as semantics, leading by 0.3"),
    "none": PointOf(NONE, IN_STEP, "no semantic latents"),
    "va-vae-alone": PointOf(
        ALIGNED_ONLY, IN_STEP, "a texture VAE aligned with the encoder (VA-VAE), no semantic latents"
    ),
    "va-vae-sync": PointOf(ALIGNED, IN_STEP, "the aligned texture VAE with semantics, one time"),
    "va-vae-tau-0.3": PointOf(ALIGNED, offset(0.3), "the aligned texture VAE with semantics leading by 0.3"),
}

TAUS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
"""Candidates of the search."""
ROUNDS = ((1 / 8, 8), (1 / 4, 4), (1 / 2, 2))
"""Of the search: how long its trainings are by then, in trainings of a point, and how many candidates it has."""

SHARED: Values = {
    "sample.class_mix": "natural",
    "sample.guidance": {"kind": "none"},
    "sample.sampler": "heun",
    "sample.num_steps": 10,
    "sample.schedule": None,
    "diffusion.loss.timestep_sampling": "per_part",
    # A moment on the way is what a shorter training would have given.
    "diffusion.training.decay": "constant",
    "diffusion.training.decay_start": None,
    "diffusion.training.decay_to": 0.0,
    "register.gates": {},
    "quality.psnr_gain": None,
    "tune.kind": "training",
    "tune.objectives": ["fd"],
    "tune.pruner": "none",
    "tune.repeats": 1,
    "tune.space": {"schedule.tau": {"low": 0.0, "high": 1.0}},
}
"""What all points have beside the preset's values."""

PICTURES: Values = {
    "data.source": "folder",
    "data.image_size": 64,
    "data.mirror": True,
    "data.holdout_fraction": 0.2,
    "data.duplicates": "drop",
    "encoder.input_size": 64,
    "encoder.width": 192,
    "encoder.depth": 6,
    "encoder.num_heads": 3,
    "encoder.training.num_steps": 2000,
    "encoder.training.ema_decay": 0.995,
    "texture_vae.source": "pca",
    "texture_vae.block_size": 8,
    "texture_vae.latent_channels": 24,
    "texture_vae.training": None,
    "semantic.latent_channels": 8,
    "semantic.training.num_steps": 1000,
    "diffusion.loss.channel_weights": "energy",
    "diffusion.training.warmup_steps": 200,
    "diffusion.training.beta2": 0.95,
    "diffusion.training.max_grad_norm": 1.0,
    # The distance of fewer images than the judge has features is too large, by as much for all points.
    "evaluate.min_images.fd": None,
    "judges": [
        {
            "kind": "timm",
            "source": "package",
            "name": name,
            "model": f"tf_efficientnet_{name}",
            "input_size": 128,
            "training": None,
        }
        for name in ("lite1", "lite2")
    ],
}
"""A folder of pictures at 64 pixels, instead of the digits: tokenizer, judges and size are those that `sfd init` writes for an hour or two."""

PICTURES_ALIGNED: Values = {
    "texture_vae.channels": [16, 32, 64, 128],
    "texture_vae.latent_channels": 24,
    "texture_vae.kl_weight": 1e-6,
    "texture_vae.training.num_steps": 3000,
    "texture_vae.training.learning_rate": 0.001,
    "texture_vae.training.ema_decay": 0.99,
    "texture_vae.training.max_grad_norm": 1.0,
    "diffusion.loss.channel_weights": "none",
}
"""For the points with an aligned texture VAE, which must be trained."""


AVERAGED_PER_TRAINING = 20
"""The average of the weights reaches back a twentieth of a training, so that the first measurements are not of the weights at its start."""


@dataclass(frozen=True)
class Budget:
    """What each training has. ``num_images``: that it is measured with, ``looks`` times."""

    steps: int
    looks: int
    num_images: int

    def values(self) -> Values:
        """As values of the parameters."""
        return {
            "diffusion.training.num_steps": self.steps,
            "diffusion.training.ema_decay": max(0.0, 1.0 - AVERAGED_PER_TRAINING / self.steps),
            "tune.report_every": max(1, self.steps // self.looks),
            "tune.num_images": self.num_images,
            "runtime.diffusion.checkpoint_every": max(1, self.steps // self.looks),
        }


def project_params(data: str, encoder: str, variant: str, probe_steps: int, more: Values) -> Params:
    """The parameters of a project.

    Args:
        data: ``digits``, or a folder of class folders.
        encoder: one of :data:`ENCODERS`.
        variant: one of :data:`VARIANTS`.
        probe_steps: of the learnt schedule.
        more: values that come last.

    Raises:
        UserError: a rule refuses them.
    """
    values, digits = dict(SHARED), load_preset("digits")
    if data != DIGITS:
        values |= PICTURES | {"data.root": str(Path(data).resolve())}
        if variant in (ALIGNED, ALIGNED_ONLY):
            tokenizer = {key for key in values if key.startswith("texture_vae.")}
            values = {key: value for key, value in values.items() if key not in tokenizer} | PICTURES_ALIGNED
    if encoder == "package":
        # One feature per 32 pixels: the grid of an f8 tokenizer.
        side = 256 if data != DIGITS else 128
        values |= {
            "encoder.source": "package",
            "encoder.name": "tf_efficientnet_lite0",
            "encoder.input_size": side,
            "encoder.patch_size": 32,
            "encoder.training": None,
        }
    changes = VARIANTS[variant].changes
    if VARIANTS[variant].learns_schedule:
        learnt = load_preset("digits-learnt").schedule.learnt
        assert learnt is not None
        changes = changes | {"schedule.learnt": learnt.model_dump(mode="json") | {"probe_steps": probe_steps}}
    removed = {key for key, value in (values | changes).items() if key.endswith(".training") and value is None}
    kept = {
        key: value for key, value in (values | more).items() if not any(key.startswith(f"{each}.") for each in removed)
    }
    return with_values(digits, kept | changes)


def point_params(project: Params, point: str, budget: Budget, found: Values) -> Params:
    """The parameters of a training. ``found``: what the search found, for the point that is tuned. Raises :class:`UserError` as above."""
    changes = found if point == TUNED else POINTS[point].changes
    return with_values(project, changes | budget.values())


def parse_values(texts: list[str]) -> Values:
    """``KEY=VALUE``, where the value is YAML. Raises :class:`SystemExit` if a text is none."""
    found: Values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"error: --set {text}: write KEY=VALUE, as in --set diffusion.model.size=S")
        found[key] = parse_yaml(value, f"--set {text}")
    return found
