"""Recomputes recorded numbers of the published code (``STEM.json`` + ``STEM.safetensors``) with this implementation."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd.diffusion.guidance import GuidanceScales, guided_velocity
from sfd.diffusion.loss import interpolate
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import OffsetSchedule
from sfd.diffusion.terms.cosine import cosine_loss
from sfd.diffusion.terms.repa import repa_loss
from sfd.diffusion.terms.velocity import velocity_loss
from sfd.encoders.ldm import autoencoder_from_ldm
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.errors import UserError
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT
from sfd.models.published import config_from_published
from sfd.names import SAMPLERS, load

SINGLE, DECODER, TRAJECTORY, ADAPTIVE = 1e-5, 3e-5, 1e-4, 5e-2
"""Tolerances for numbers recorded in float32, relative to the largest number of the tensor: of one evaluation, of a texture VAE's decoder
(forty successive convolutions amplify rounding), of a trajectory with fixed steps, and of an adaptive one across discontinuous speeds."""


@dataclass(frozen=True)
class Check:
    """Largest error of one quantity, relative to its largest recorded number, and the tolerance for it."""

    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """False for NaN and infinity as well."""
        return math.isfinite(self.error) and self.error <= self.tolerance


Vector = dict[str, Tensor]
Results = dict[str, Check]


@dataclass(frozen=True)
class VectorKind:
    """One kind of vector. Every tensor of its file is a quantity to recompute, except ``inputs`` and those whose names begin with
    ``weights``."""

    check: Callable[[dict[str, Any], Vector], Results]
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ("state.",)


def verify(stem: Path, device: str = "cpu") -> Results:
    """Recomputes every quantity of one vector on ``device``.

    Raises:
        UserError: a file is missing or unreadable, the kind is not known, the weights do not fit the configuration, or
            a tensor in the files was not recomputed.
    """
    config, tensors = _read(stem, device)
    kind = next((kind for key, kind in _kinds().items() if key in config), None)
    if kind is None:
        raise UserError(f"{stem}.json is not a vector of a known kind: it needs one of the keys {', '.join(_kinds())}")
    try:
        with torch.no_grad(), torch.device(device):
            results = kind.check(config, tensors)
    # Whatever is wrong in the two files (types, sizes, indices), torch raises one of these.
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"{stem}: the configuration and the tensors do not fit each other: {reason}") from error
    quantities = {name for name in tensors if name not in kind.inputs and not name.startswith(kind.weights)}
    skipped = sorted(quantities - set(results))
    if skipped:
        raise UserError(
            f"{stem}: not recomputed, because they are unknown or the configuration has no such part: {', '.join(skipped)}; "
            f"remove these tensors, or correct the configuration"
        )
    if not quantities:
        raise UserError(f"{stem}: no tensor to recompute; a vector needs at least one beside its inputs and weights")
    return results


def _read(stem: Path, device: str) -> tuple[dict[str, Any], Vector]:
    files = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file} does not exist; a vector consists of STEM.json and STEM.safetensors: give STEM, without the ending"
            )
    try:
        config = json.loads(files[0].read_text(encoding="utf-8"))
        tensors = load_file(files[1], device)
    except Exception as error:
        raise UserError(f"{stem}: cannot be read ({' '.join(str(error).split())}); copy the two files again") from error
    if not isinstance(config, dict):
        raise UserError(f"{files[0]} must hold a JSON object, but holds {type(config).__name__}")
    return config, {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _tensor(tensors: Vector, name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"tensor `{name}` is missing")
    return tensors[name]


def _part(tensors: Vector, prefix: str) -> Vector:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _compare(actual: dict[str, Tensor], tensors: Vector, tolerance: float = SINGLE) -> Results:
    """Largest errors relative to the largest recorded number; if only zeros are recorded, any error counts as infinite."""
    results = {}
    for name, value in actual.items():
        expected = _tensor(tensors, name)
        if value.shape != expected.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)} here, but {tuple(expected.shape)} in the file")
        error, scale = float((value - expected).abs().max()), float(expected.abs().max())
        results[name] = Check(error / scale if scale else math.inf if error else 0.0, tolerance)
    return results


def _build(published: dict[str, Any], state: Vector) -> tuple[LightningDiT, Results]:
    """A model with the recorded weights, and the errors of its own fixed tables against the recorded ones.

    The width of the features, and whether there is a null class, are read from the shapes of the weights.
    """
    config = config_from_published(published)
    if "repa_projector.4.weight" in state:
        config = replace(config, feature_dim=state["repa_projector.4.weight"].shape[0])
    if "y_embedder.embedding_table.weight" in state:
        num_classes = int(published["num_classes"])
        has_null = len(state["y_embedder.embedding_table.weight"]) > num_classes
        config = replace(config, condition=ClassCondition.numbered(num_classes, has_null))
    model = LightningDiT(config)
    fixed = {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if "feat_rope" in name or name == "pos_embed"
    }
    model.load_state_dict(state, strict=True)
    return model.eval(), _compare(fixed, state)


def _verify_lightningdit(config: dict[str, Any], tensors: Vector) -> Results:
    published = config["model"]
    model, results = _build(published, _part(tensors, "state."))
    schedule = OffsetSchedule(float(published.get("semfirst_delta_t", 0.0)))
    if "t" in tensors:
        results |= _verify_training(model, schedule, tensors)
    weak = None
    if "guide_model" in config:
        weak, tables = _build(config["guide_model"], _part(tensors, "guide."))
        results |= {f"guide.{name}": check for name, check in tables.items()}
    for name, run in config.get("runs", {}).items():
        results |= _verify_run(model, weak, name, run, tensors)
    return results


def _verify_training(model: LightningDiT, schedule: OffsetSchedule, tensors: Vector) -> Results:
    """Schedule, interpolation, forward pass and loss terms. The recorded ``t`` is the progress u."""
    semantic_channels = model.config.semantic_channels
    t, x0, x1, y = (_tensor(tensors, name) for name in ("t", "x0", "x1", "y"))
    t_tex, t_sem = schedule.times(t)
    xt = interpolate(x0, x1, t_tex, t_sem, semantic_channels)
    projects = model.config.repa_depth > 0 and ("repa_projection" in tensors or "loss_repa" in tensors)
    output = model(xt, t_tex, t_sem, y, with_projection=projects)
    target = x1 - x0
    weight = 2.0 if semantic_channels else 1.0
    actual = {
        "t_tex": t_tex,
        "t_sem": t_sem,
        "xt": xt,
        "velocity": output.velocity,
        "loss_velocity_mse": velocity_loss(output.velocity, target, semantic_channels, weight),
        "loss_cosine": cosine_loss(output.velocity, target),
    }
    if output.projection is not None:
        actual["repa_projection"] = output.projection
    if output.projection is not None and "loss_repa" in tensors:
        features = _tensor(tensors, "features").flatten(2).transpose(1, 2)
        actual["loss_repa"] = repa_loss(output.projection, features)
    return _compare({name: value for name, value in actual.items() if name in tensors}, tensors)


def _verify_run(
    model: LightningDiT, guide: LightningDiT | None, name: str, run: dict[str, Any], tensors: Vector
) -> Results:
    """One recorded trajectory, by the published rule; ``guide`` is AutoGuidance's weak model."""
    unknown = sorted(set(run) - set(RUN_KEYS))
    if unknown:
        raise ValueError(
            f"run {name} has keys that are not known here: {', '.join(unknown)}; known: {', '.join(RUN_KEYS)}"
        )
    y = _tensor(tensors, "sample_y")
    scales, semantic_channels = _scales(run), model.config.semantic_channels
    weak, weak_y = guide, y
    if "cfg_scale" in run:
        null = model.config.condition.null(len(y))
        assert isinstance(null, Tensor)  # of a class
        weak, weak_y = model, null
    if weak is None and scales.active:
        raise ValueError(
            f"run {name} is guided by a weak model, so the key guide_model and its weights guide.* are needed"
        )
    velocity = guided_velocity(
        partial(_velocity, model, y), partial(_velocity, weak or model, weak_y), scales, semantic_channels
    )
    method = run["method"]
    try:
        solver = load(SAMPLERS, method)
    except UserError as error:
        raise ValueError(f"run {name}: sampler {error}") from error
    sampler = Sampler(solver, int(run["time_points"]) - 1, True, float(run.get("timestep_shift", 0.0)))
    schedule = OffsetSchedule(float(run.get("delta_t", 0.0)))
    sample = sampler(velocity, _tensor(tensors, "noise"), schedule, semantic_channels)
    return _compare({name: sample}, tensors, ADAPTIVE if SAMPLERS[method].adaptive else TRAJECTORY)


def _velocity(model: LightningDiT, y: Tensor, x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
    velocity: Tensor = model(x, t_tex, t_sem, y).velocity
    return velocity


def _scales(run: dict[str, Any]) -> GuidanceScales:
    """The guidance scales. ``interval_mode`` names the parts that have an interval; the others are guided from the start."""
    start, mode = float(run.get("interval_start", 0.0)), run.get("interval_mode", "both")
    if mode not in ("both", "tex", "sem"):
        raise ValueError(f"interval_mode is {mode!r}, but must be both, tex or sem")
    return GuidanceScales(
        texture=float(run.get("cfg_scale", run.get("scale_tex", 1.0))),
        semantic=float(run.get("cfg_scale", run.get("scale_sem", 1.0))),
        start_texture=start if mode in ("both", "tex") else 0.0,
        start_semantic=start if mode in ("both", "sem") else 0.0,
    )


def _verify_semvae(config: dict[str, Any], tensors: Vector) -> Results:
    names = ("input_dim", "hidden_dim", "heads", "blocks", "latent_dim")
    model = SemVae(SemVaeConfig(**{name: int(config[name]) for name in names}))
    model.load_state_dict(_part(tensors, "state."), strict=True)
    posterior = model.eval().posterior(_tensor(tensors, "features"))
    actual = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "kl": posterior.kl(),
        "reconstruction_of_mean": model.decode(posterior.mean),
    }
    return _compare({name: value for name, value in actual.items() if name in tensors}, tensors)


def _verify_texture_vae(_config: dict[str, Any], tensors: Vector) -> Results:
    """Encodes the images and decodes the recorded mean, in float64, so that only the rounding of the recorded numbers remains."""
    model = autoencoder_from_ldm(_part(tensors, "state.")).double()
    posterior = model.encode(_tensor(tensors, "images").double()).latent_dist
    actual = {"mean": posterior.mean, "logvar": posterior.logvar}
    results = _compare({name: value for name, value in actual.items() if name in tensors}, tensors)
    if "reconstruction_of_mean" in tensors:
        decoded = model.decode(_tensor(tensors, "mean").double()).sample
        results |= _compare({"reconstruction_of_mean": decoded}, tensors, DECODER)
    return results


RUN_KEYS = (
    "method",
    "time_points",
    "timestep_shift",
    "delta_t",
    "cfg_scale",
    "interval_start",
    "interval_mode",
    "scale_sem",
    "scale_tex",
)


def _kinds() -> dict[str, VectorKind]:
    """Kinds of vectors, each by a key that only its configuration has."""
    inputs = ("x0", "x1", "t", "y", "features", "noise", "sample_y")
    return {
        "model": VectorKind(_verify_lightningdit, inputs, ("state.", "guide.")),
        "hidden_dim": VectorKind(_verify_semvae, ("features",)),
        "channel_multipliers": VectorKind(_verify_texture_vae, ("images",)),
    }


def report(results: dict[str, Results]) -> str:
    """A table: vector, quantity, largest relative error, tolerance, pass or fail."""
    lines = [f"{'vector':<24} {'quantity':<32} {'error':>9} {'tolerance':>9}"]
    for stem, checks in results.items():
        for quantity, check in checks.items():
            lines.append(
                f"{Path(stem).name:<24} {quantity:<32} {check.error:9.1e} {check.tolerance:9.1e} {'pass' if check.ok else 'FAIL'}"
            )
    return "\n".join(lines)


def as_json(results: dict[str, Results]) -> str:
    """``{stem: {quantity: {"error": e, "tolerance": t, "ok": bool}}}``; an error that is not finite is null."""
    plain = {
        stem: {
            quantity: {
                "error": check.error if math.isfinite(check.error) else None,
                "tolerance": check.tolerance,
                "ok": check.ok,
            }
            for quantity, check in checks.items()
        }
        for stem, checks in results.items()
    }
    return json.dumps(plain, indent=2, allow_nan=False)
