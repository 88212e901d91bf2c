"""Every option of the platform, declared once: name, type, limits, unit and meaning.

``params.yaml`` is read into :class:`Params`; the CLI, the DVC stages and MLflow's logged parameters all read it from here.
Defaults are the paper's values (arXiv 2512.04926) where it has one; a field without a default must be written out.
"""

import difflib
import re
import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic.fields import FieldInfo

from sfd.errors import UserError
from sfd.names import (
    BACKBONES,
    CONDITIONS,
    DATA_SOURCES,
    FLOORS,
    INCEPTION,
    JUDGES,
    LOSS_TERMS,
    SAMPLERS,
    SEMANTIC_ENCODERS,
    SIZES,
    has_error,
    metric_names,
)
from sfd.params.types import OneOf

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=1.0, le=20.0)]


class Section(BaseModel):
    """Base of all sections: frozen; a key that is not declared, a value of another type and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class DataParams(Section):
    """Images in (stage ``prepare``)."""

    source: Annotated[str, OneOf(DATA_SOURCES)] = Field(description="where images come from")
    root: str = Field(
        "images",
        min_length=1,
        description="where the images are. `folder`: a folder of class subfolders; `tar`: a folder of *.tar files, or one such file; "
        "`huggingface`: a folder (of `save_to_disk`, or parquet files in the hub's layout) or a name on the hub",
    )
    split: str = Field(
        "train",
        pattern=r"^[\w.-]+(\+[\w.-]+)*$",
        description="splits to read, as in `train` or `train+test` (`huggingface`); `holdout_fraction` divides them anew",
    )
    image_column: str = Field("image", min_length=1, description="column of encoded images (`huggingface`)")
    label_column: str = Field(
        "label", min_length=1, description="column of classes, as numbers or names (`huggingface`)"
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="commit, tag or branch on the hub (`huggingface`); null: the newest. Only a commit is never asked for again",
    )
    image_size: int = Field(256, ge=8, le=1024, description="side of the square images, pixels")
    mirror: bool = Field(True, description="whether a left-right mirrored image is still a valid image of its class")
    holdout_fraction: float = Field(
        0.2,
        gt=0.0,
        lt=1.0,
        description="share of every class that is kept from training and used as evaluation reference",
    )
    max_rejected_fraction: Fraction = Field(0.01, description="stop when a larger share of the files is refused")
    max_pixels: Positive = Field(100_000_000, description="refuse larger images (decompression bombs), pixels")
    duplicates: Literal["error", "drop"] = Field(
        "error",
        description="same content in both splits: `error` stops, `drop` keeps the first file and lists the others as refused",
    )


Sharding = Literal["ddp", "fsdp"]


class TrainingParams(Section):
    """One training of one network."""

    num_steps: Positive = Field(description="optimizer steps")
    batch_size: Positive = Field(256, description="images per optimizer step, over all processes")
    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, description="peak learning rate of AdamW")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    decay: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate after the warm-up; `cosine` ends at zero"
    )
    beta2: float = Field(0.999, gt=0.0, lt=1.0, description="second-moment decay of AdamW (the first is 0.9)")
    weight_decay: float = Field(0.0, ge=0.0, description="decoupled weight decay of AdamW")
    ema_decay: float = Field(
        0.9999, ge=0.0, lt=1.0, description="decay of the averaged weights per step; 0: no averaging"
    )
    max_grad_norm: float | None = Field(None, gt=0.0, description="clip the gradient norm; null: no clipping")
    accumulation_steps: Positive = Field(1, description="micro-batches per optimizer step")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="`auto`: bf16 on GPU, fp32 on CPU")
    compile: bool = Field(False, description="torch.compile the network (needs a C++ compiler on CPU)")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")
    log_every: Positive = Field(50, description="steps between logged averages of the losses")
    num_workers: int = Field(0, ge=0, description="processes that read batches ahead; 0: the training process reads")


class EncoderParams(Section):
    """The frozen vision encoder whose patch features carry meaning."""

    source: Literal["pretrained", "file", "train", "none"] = Field(
        description="timm weights by name, timm weights in a file, train a small ViT on class labels, or `none` where nothing needs "
        "features (`semantic.kind: none` and no `latents.store_features`)"
    )
    name: str = Field("vit_base_patch14_reg4_dinov2.lvd142m", description="timm model (`pretrained` and `file`)")
    file: str | None = Field(
        None, description="weights file for `file` (.safetensors, or .pth without pickled objects)"
    )
    input_size: int = Field(
        224, ge=8, le=1024, description="side of the encoder's input, pixels; images are resized bicubically"
    )
    patch_size: Positive = Field(14, description="side of one patch, pixels (`train`; else checked against the model)")
    width: Positive = Field(768, description="channels of the ViT (`train`)")
    depth: Positive = Field(12, description="blocks of the ViT (`train`)")
    num_heads: Positive = Field(12, description="attention heads of the ViT (`train`)")
    training: TrainingParams | None = Field(None, description="needed by `train`")


class TextureVaeParams(Section):
    """The frozen autoencoder that makes texture latents and decodes them to pixels."""

    source: Literal["pretrained", "file", "train"] = Field(
        description="diffusers AutoencoderKL by name, from a folder, or train a small one"
    )
    name: str | None = Field(None, description="hub name (`pretrained`)")
    file: str | None = Field(None, description="folder in diffusers layout (config.json, *.safetensors) for `file`")
    channels: tuple[Positive, ...] = Field(
        (128, 128, 256, 256, 512),
        strict=False,  # YAML has lists, not tuples; the numbers inside stay strict
        min_length=1,
        description="width of each resolution, halved from one to the next (`train`)",
    )
    layers_per_block: Positive = Field(2, description="residual layers per resolution (`train`)")
    latent_channels: Positive = Field(32, description="channels of the texture latent (`train`)")
    kl_weight: float = Field(1e-6, ge=0.0, description="weight of the KL term (`train`)")
    training: TrainingParams | None = Field(None, description="needed by `train`")


class JudgeParams(Section):
    """The network whose features score samples. Never the encoder."""

    kind: Annotated[str, OneOf(JUDGES)] = Field(description="the network")
    source: Literal["pretrained", "file", "train"] = Field(
        description="where weights come from: downloaded by torch-fidelity or in a file (`inception`), or trained here (`resnet`)"
    )
    name: str = Field(
        pattern=r"^\w[\w.-]*$", description="name in metric keys, as in `fd_NAME`; Inception must be called `inception`"
    )
    file: str | None = Field(None, description="weights file of Inception-v3 for `file` (torch-fidelity's .pth)")
    channels: tuple[Positive, ...] = Field(
        (16, 32, 64, 64),
        strict=False,
        min_length=4,
        max_length=4,
        description="width of each ResNet stage (`train`); the last is the number of features",
    )
    training: TrainingParams | None = Field(None, description="needed by `train`")


class FeaturesParams(Section):
    """Patch features for the training of the semantic VAE."""

    max_images: Positive = Field(
        10_000, description="training images whose features are stored (a cap; ImageNet whole would be 0.5 TB)"
    )
    shard_size: Positive = Field(1000, description="images per file")
    batch_size: Positive = Field(100, description="images per encoder call")


class SemanticParams(Section):
    """From patch features to the semantic latent."""

    kind: Annotated[str, OneOf(SEMANTIC_ENCODERS, {"none": "no semantic channels"})] = Field(
        "semvae", description="what makes semantic latents"
    )
    latent_channels: Positive = Field(16, description="channels of the semantic latent (C_sem)")
    width: Positive = Field(768, description="width of the transformer (`semvae`)")
    depth: Positive = Field(4, description="blocks of the encoder, and of the decoder (`semvae`)")
    num_heads: Positive = Field(12, description="attention heads (`semvae`)")
    kl_weight: float = Field(1e-7, ge=0.0, description="weight of the KL term (`semvae`)")
    training: TrainingParams | None = Field(None, description="needed by `semvae`")


class LatentsParams(Section):
    """Composite latents: the training set of diffusion."""

    shard_size: Positive = Field(10_000, description="images per file")
    batch_size: Positive = Field(50, description="images per encoder call")
    statistics_images: Positive = Field(
        10_000, description="images that channel means and standard deviations are taken from"
    )
    store_features: bool = Field(
        True,
        description="keep the encoder's features beside the latents, as REPA needs them (ImageNet: 0.5 TB a mirroring)",
    )


class TauRange(Section):
    """An offset drawn anew for every training image, uniform between two limits."""

    low: Fraction
    high: Fraction

    @model_validator(mode="after")
    def _check_order(self) -> "TauRange":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


Tau = Annotated[
    Annotated[Fraction, Tag("number")] | Annotated[TauRange, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, dict | TauRange) else "number"),
]
TAU_TAGS = ("number", "range")
"""What pydantic adds to the place of an error in a value of type Tau."""


class ScheduleParams(Section):
    """How the two parts move from noise to data."""

    kind: Literal["offset", "sync", "power", "curve"] = Field(
        "offset",
        description="`offset`: semantics lead by tau; `sync`: ordinary diffusion with one time; "
        "`power`: t_tex = t_sem ** gamma; `curve`: t_tex is a convex, piecewise linear function of t_sem",
    )
    tau: Tau = Field(
        0.3,
        description="temporal offset by which semantics lead (`offset`); {low, high}: one model for all offsets between, "
        "`sample.schedule` then says which one to sample with",
    )
    gamma: float = Field(2.0, ge=1.0, le=10.0, description="exponent (`power`); 1: ordinary diffusion")
    knots: tuple[Annotated[float, Field(ge=0.0, le=1e6)], ...] = Field(
        (0.0, 0.75, 0.0, 0.0, 0.25),
        strict=False,
        min_length=2,
        max_length=33,
        description="shares of the texture's way that begin when t_sem reaches 0, 1/K, ..., 1, each then spread evenly over the "
        "rest of t_sem (`curve`); K + 1 numbers, of which only the ratios count",
    )

    @property
    def tau_range(self) -> TauRange | None:
        """The offsets that one model is trained for; None: it is trained for a single schedule."""
        return self.tau if self.kind == "offset" and isinstance(self.tau, TauRange) else None

    @model_validator(mode="after")
    def _check_knots(self) -> "ScheduleParams":
        if sum(self.knots) == 0.0:
            raise ValueError("knots are all 0, so texture would never move; set one above 0")
        return self


ModelSize = Literal["tiny", "S", "B", "L", "XL", "1p0B", "1p6B"]


class ModelParams(Section):
    """The backbone, and what it is told about an image."""

    backbone: Annotated[str, OneOf(BACKBONES)] = Field("lightningdit", description="network that predicts the velocity")
    size: ModelSize = Field(
        description="width x depth x heads: "
        + ", ".join(f"{name} {width}x{depth}x{heads}" for name, (width, depth, heads) in SIZES.items())
    )
    patch_size: int = Field(1, ge=1, le=2, description="side of one token, latent positions")
    use_rmsnorm: bool = Field(True, description="RMSNorm; else LayerNorm without parameters")
    use_qknorm: bool = Field(True, description="normalise queries and keys")
    use_swiglu: bool = Field(True, description="SwiGLU; else GELU")
    use_rope: bool = Field(True, description="2D rotary embedding on queries and keys")
    use_shift: bool = Field(True, description="adaLN with shift")
    condition: Annotated[str, OneOf(CONDITIONS)] = Field("class", description="what the model is told about an image")
    class_dropout: Fraction = Field(0.1, description="share of images trained with the null class")


class LossParams(Section):
    """The three independent terms of the loss; a weight of 0 turns a term off."""

    velocity_weight: float = Field(1.0, ge=0.0, description="weight of the squared velocity error")
    semantic_weight: float = Field(
        2.0, ge=0.0, description="weight of semantic channels within the squared velocity error"
    )
    cosine_weight: float = Field(1.0, ge=0.0, description="weight of 1 - cosine(prediction, target)")
    repa_weight: float = Field(1.0, ge=0.0, description="weight of the alignment with the encoder's features")
    repa_depth: Positive = Field(2, description="block after which the hidden state is aligned")
    repa_width: Positive = Field(2048, description="hidden width of the alignment's projector")
    repa_target: Literal["stored", "decoded"] = Field(
        "stored",
        description="the features to align with: `stored` beside the latents, or `decoded` from the semantic latent in every step "
        "(no disk, one more forward pass of the semantic decoder)",
    )
    timestep_sampling: Literal["joint", "per_part"] = Field(
        "joint",
        description="where the logit-normal applies: to joint progress u (`joint`, the paper), or to each part's own time, whatever the "
        "schedule (`per_part`, arXiv 2606.19662), so that schedules can be compared",
    )
    time_mean: float = Field(0.0, ge=-5.0, le=5.0, description="mean of the logit-normal draw")
    time_std: float = Field(1.0, gt=0.0, le=5.0, description="standard deviation of the logit-normal draw")

    def weights(self) -> dict[str, float]:
        """The weight of every term of the loss, in the order of :data:`sfd.names.LOSS_TERMS`; 1 for a term without an option."""
        return {name: getattr(self, f"{name}_weight", 1.0) for name in LOSS_TERMS}


class LoraParams(Section):
    """Low-rank adapters (arXiv 2106.09685): ``W + alpha / rank * B A``; they are merged into the weights at the end."""

    rank: Positive = Field(
        16,
        description="rank of the adapters on the blocks' attention and MLP layers, beside which only what is new is trained; "
        "`diffusion.lora: null` trains all weights",
    )
    alpha: Positive = Field(16, description="the adapters' product is scaled by alpha / rank")


REGISTERED = re.compile(r"models:/(?P<name>[^/:@]+)(@(?P<alias>[a-zA-Z][\w-]*)|/(?P<version>[1-9]\d*))")
"""MLflow's address of a registered version, by an alias or its number."""


def registered_model(address: str) -> tuple[str, str] | None:
    """Name, and alias or number of the version, of a registered model's address; None for anything else."""
    found = REGISTERED.fullmatch(address)
    return None if found is None else (found["name"], found["alias"] or found["version"])


class DiffusionParams(Section):
    """Training of the diffusion model."""

    source: Literal["train", "file"] = Field(
        "train",
        description="train on the latents, or weights that `sfd import` wrote (which bring their model, schedule and classes: model, loss "
        "and training are not read then)",
    )
    file: str | None = Field(None, description="folder of `sfd import --kind diffusion` for `file`")
    model: ModelParams
    loss: LossParams
    training: TrainingParams
    sharding: Sharding = Field(
        "ddp",
        description="what several processes do with the weights: `ddp`: each has them all; `fsdp`: each has its part of weights, averages "
        "and optimizer states, for models that do not fit one GPU. The same on a single process",
    )
    init_from: str | None = Field(
        None,
        min_length=1,
        description="trained model to start from: a folder (config.json, model.safetensors, statistics.safetensors), "
        "`models:/NAME@ALIAS` or `models:/NAME/VERSION`; null: from nothing",
    )
    init_statistics: Literal["source", "new"] = Field(
        "source",
        description="what normalises the latents: the statistics that the weights of `init_from` were trained with, or those of the new data",
    )
    lora: LoraParams | None = Field(None, description="needs `init_from`")
    grid_every: Positive = Field(10_000, description="steps between sample grids")
    grid_images: Positive = Field(32, description="images in a sample grid")


class GuidanceParams(Section):
    """``guided = weak + scale * (strong - weak)``, apart for texture and semantics."""

    kind: Literal["none", "cfg", "autoguidance"] = Field(
        "none", description="weak velocity: the null class (`cfg`) or a weaker model (`autoguidance`)"
    )
    weak_model: str | None = Field(
        None, description="folder of the weaker model (config.json, model.safetensors) for `autoguidance`"
    )
    scale_texture: Scale = Field(1.0, description="scale on texture channels; 1: unguided")
    scale_semantic: Scale = Field(1.0, description="scale on semantic channels; 1: unguided")
    start_texture: Fraction = Field(0.0, description="texture is unguided while its own t is below this")
    start_semantic: Fraction = Field(0.0, description="semantics are unguided while their own t is below this")


class SampleParams(Section):
    """Generation from the trained model."""

    num_images: Positive = Field(50_000, description="images, classes balanced")
    batch_size: Positive = Field(250, description="images per sampler call")
    sampler: Annotated[str, OneOf(SAMPLERS)] = Field("dopri5", description="solver of the sampling ODE")
    num_steps: Positive = Field(50, description="steps of euler, heun and ab2 (dopri5 chooses its own)")
    rule: Literal["exact", "published"] = Field(
        "exact", description="`exact` increments of each part, or the publication's left-end rule"
    )
    timestep_shift: float = Field(0.0, ge=0.0, le=10.0, description="s maps progress v to s*v / (1 + (s-1)*v); 0: off")
    schedule: ScheduleParams | None = Field(
        None, description="schedule to sample with; null: the one of training. Other ones need a `schedule.tau` range"
    )
    guidance: GuidanceParams


class EvaluateParams(Section):
    """Scores of the samples against held-out images, or against published statistics."""

    reference: str | None = Field(
        None,
        min_length=1,
        description="ADM's reference batch (.npz with `mu`, `sigma`, `mu_s`, `sigma_s`, perhaps `arr_0`), for FID and sFID as published; "
        "needs judge Inception-v3. null: held-out images. Tuning always takes held-out images",
    )
    batch_size: Positive = Field(100, description="images per judge call")
    neighbours: Positive = Field(3, description="k of precision and recall (k-th nearest neighbour)")
    kid_subsets: Positive = Field(100, description="subsets that KID averages over")
    kid_subset_size: Positive = Field(1000, description="images per subset (at most the number of images)")


CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases of the version in use, and of the one that it replaced."""


class GateParams(Section):
    """What a version must show in one metric to become champion."""

    limit: float | None = Field(None, description="the metric must be at least as good as this; null: no limit")
    improve: bool = Field(
        False,
        description="the metric must be better than the champion's by more than the standard error of the difference",
    )

    @model_validator(mode="after")
    def _check_form(self) -> "GateParams":
        if self.limit is None and not self.improve:
            raise ValueError("a gate needs a limit, or improve: true, or both")
        return self


class RegisterParams(Section):
    """The MLflow model registry."""

    name: str = Field(min_length=1, pattern=r"^[^/:]+$", description="registered model")
    alias: str = Field("candidate", pattern=r"^[a-zA-Z][\w-]*$", description="alias that the new version gets")
    gates: dict[str, GateParams] = Field(
        description="metric of the evaluation to `{limit, improve}`, which `sfd models promote` asks for; whether lower or higher is "
        "better follows from the metric"
    )

    @model_validator(mode="after")
    def _check_alias(self) -> "RegisterParams":
        if self.alias in (CHAMPION, PREVIOUS):
            raise ValueError(
                f"alias `{self.alias}` is moved by `sfd models promote` and `rollback` alone: choose another one"
            )
        return self


class TrackingParams(Section):
    """MLflow. ``MLFLOW_TRACKING_URI`` overrides the store."""

    experiment: str = Field("sfd", min_length=1, description="MLflow experiment of all stages")
    required: bool = Field(False, description="a stage ends non-zero when its records could not be delivered")


Number = int | float


class SpaceParams(Section):
    """The values that a study may give to one key: an interval or a list."""

    low: Number | None = Field(None, description="least value")
    high: Number | None = Field(None, description="greatest value")
    step: Number | None = Field(None, gt=0, description="values are `low` plus multiples of this")
    log: bool = Field(False, description="uniform in the logarithm")
    choices: tuple[bool | int | float | str, ...] | None = Field(
        None, strict=False, min_length=1, description="the values themselves, instead of an interval"
    )

    @model_validator(mode="after")
    def _check_form(self) -> "SpaceParams":
        interval = self.low is not None and self.high is not None
        if interval == (self.choices is not None) or (self.low is None) != (self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and (self.step is not None or not self.low or self.low <= 0):
            raise ValueError("log needs low above 0, and no step")
        if self.choices is not None and (self.step is not None or self.log):
            raise ValueError("choices take neither step nor log")
        return self


Objective = Literal["fd", "fid", "kid", "class_accuracy", "seconds_per_image"]


class TuneParams(Section):
    """An Optuna study (``sfd tune``)."""

    study: str = Field(pattern=r"^\w[\w.-]*$", description="name of the study in the storage")
    kind: Literal["sampling", "training"] = Field(
        description="`sampling`: the trained model stays, only `sample` moves; `training`: every trial trains from the same latents"
    )
    objectives: tuple[Objective, ...] = Field(
        ("fd",),
        strict=False,
        min_length=1,
        description="what to improve, one or several of fd, fid (Inception only), kid, class_accuracy, seconds_per_image; "
        "the direction follows from the name",
    )
    trials: Positive = Field(20, description="trials of the study, over all workers and restarts")
    minutes: float = Field(60.0, gt=0.0, description="a worker starts no trial later than this after its own start")
    sampler: Literal["tpe", "random"] = Field("tpe", description="how Optuna proposes values")
    pruner: Literal["none", "wilcoxon", "hyperband"] = Field(
        "hyperband",
        description="ends poor trials early: `wilcoxon` compares repeats pairwise with the best trial's (it needs 4 repeats or more), "
        "`hyperband` compares after equal budgets (repeats, or `report_every` steps of training)",
    )
    num_images: int = Field(
        500, ge=10, description="images per repeat; a Frechet distance falls with it, so it is the same in all trials"
    )
    repeats: Positive = Field(3, description="sampling seeds that a trial's objective averages over")
    confirm_repeats: int = Field(
        5,
        ge=2,
        description="fresh seeds (`training`: fresh trainings too) with which the best trial and the baselines are scored again",
    )
    report_every: Positive = Field(1000, description="steps of training between intermediate scores (`training`)")
    refine_steps: int = Field(
        0,
        ge=0,
        description="steps for which a trial first trains the shared model at its own schedule (`sampling`); 0: none",
    )
    storage: str = Field(
        "sqlite:///mlruns/optuna.db",
        pattern=r"^(sqlite:///|postgresql://|journal://).+$",
        description="`sqlite:///FILE`, `journal://FILE` on a shared disk, or `postgresql://USER:PASSWORD@HOST/DATABASE`",
    )
    heartbeat_seconds: Positive = Field(
        15,
        description="a worker shows that often that it lives; after four silent ones its trial is given to another, once",
    )
    space: dict[str, SpaceParams] = Field(
        min_length=1,
        description="dotted key to `{low, high}` (with `step` or `log`) or `{choices}`; a number picks from a list: `schedule.knots.0`",
    )


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: int = Field(0, ge=0, description="every random draw derives from it")
    data: DataParams
    encoder: EncoderParams
    texture_vae: TextureVaeParams
    judge: JudgeParams
    features: FeaturesParams
    semantic: SemanticParams
    latents: LatentsParams
    schedule: ScheduleParams
    diffusion: DiffusionParams
    sample: SampleParams
    evaluate: EvaluateParams
    register_: RegisterParams = Field(alias="register", description="")
    tune: TuneParams
    tracking: TrackingParams

    @property
    def needs_features(self) -> bool:
        """Whether anything reads the vision encoder's features: the semantic latents, or REPA through stored features."""
        return self.semantic.kind != "none" or self.latents.store_features

    @model_validator(mode="after")
    def _check_across_sections(self) -> "Params":
        for name in ("encoder", "texture_vae", "judge"):
            _check_frozen_network(name, getattr(self, name))
        _check_source(self.data)
        _check_file("diffusion", self.diffusion)
        _check_judge(self.judge)
        _check_grid(self)
        _check_semantic(self)
        if self.encoder.source == "train":
            _check_heads("encoder", self.encoder)
        _check_loss(self.diffusion.loss)
        _check_repa(self)
        _check_init(self.diffusion)
        _check_guidance(self.sample.guidance, self.diffusion.model)
        check_sampling_schedule(self.schedule, self.sample.schedule)
        _check_reference(self)
        _check_gates(self.register_.gates, self.judge)
        return self


def _check_file(name: str, section: EncoderParams | TextureVaeParams | JudgeParams | DiffusionParams) -> None:
    if section.source == "file" and section.file is None:
        raise ValueError(f"{name}.source is `file`, so {name}.file must name the weights")
    if section.source != "file" and section.file is not None:
        raise ValueError(
            f"{name}.file is {section.file!r}, but {name}.source is `{section.source}`, which reads no file: "
            f"set {name}.source to `file`, or {name}.file to null"
        )


def _check_frozen_network(name: str, section: EncoderParams | TextureVaeParams | JudgeParams) -> None:
    _check_file(name, section)
    if section.source == "train" and section.training is None:
        raise ValueError(f"{name}.source is `train`, so {name}.training must be given")
    if section.source == "pretrained" and section.name is None:
        raise ValueError(f"{name}.source is `pretrained`, so {name}.name must be given")


def _check_source(data: DataParams) -> None:
    if data.revision is not None and data.source != "huggingface":
        raise ValueError(
            f"data.revision is {data.revision!r}, but data.source is `{data.source}`, which has no revisions: set data.revision to null"
        )
    if data.image_column == data.label_column:
        raise ValueError(
            f"data.image_column and data.label_column are both {data.image_column!r}; name the column of images and that of classes"
        )


def _check_judge(judge: JudgeParams) -> None:
    is_inception = judge.kind == "inception"
    if is_inception and judge.source == "train":
        raise ValueError(
            "judge.kind is `inception`, which is never trained here: set judge.source to `pretrained` or `file`"
        )
    if judge.kind == "resnet" and judge.source != "train":
        raise ValueError(
            f"judge.kind is `resnet`, which has no published weights, but judge.source is `{judge.source}`: set it to `train`, "
            "or judge.kind to `inception`"
        )
    if is_inception and judge.name != INCEPTION:
        raise ValueError(f"judge.name is {judge.name!r}, but judge.kind is `inception`: call it `inception`")
    if not is_inception and judge.name == INCEPTION:
        raise ValueError(
            "judge.name `inception` is kept for Inception-v3, because FID means nothing else: choose another name"
        )
    if judge.name in FLOORS:
        raise ValueError(
            f"judge.name {judge.name!r} is taken: metric `fd_{judge.name}` is a floor; choose another name"
        )


def _check_grid(params: Params) -> None:
    """Semantic and texture latents lie on one grid, and the backbone's tokens divide it.

    The downsampling of a texture VAE that is not trained here is known only once it is loaded.
    """
    encoder, texture_vae, patch = params.encoder, params.texture_vae, params.diffusion.model.patch_size
    factor = 2 ** (len(texture_vae.channels) - 1)
    texture_grid = params.data.image_size / factor
    if encoder.source == "none":
        if texture_vae.source != "train":
            return
        if params.data.image_size % factor:
            raise ValueError(
                f"data.image_size {params.data.image_size} must be a multiple of {factor}, by which texture_vae.channels reduces it"
            )
        grid, origin = params.data.image_size // factor, f"data.image_size / {factor}"
    else:
        if encoder.input_size % encoder.patch_size:
            raise ValueError(
                f"encoder.input_size {encoder.input_size} must be a multiple of encoder.patch_size {encoder.patch_size}"
            )
        grid, origin = encoder.input_size // encoder.patch_size, "encoder.input_size / encoder.patch_size"
        if texture_vae.source == "train" and texture_grid != grid:
            raise ValueError(
                f"texture and semantic latents must share one grid: data.image_size {params.data.image_size} / {factor} = "
                f"{texture_grid:g}, but {origin} = {grid}; change one of them"
            )
    if grid % patch:
        raise ValueError(
            f"the latents' grid {grid} ({origin}) must be a multiple of diffusion.model.patch_size {patch}"
        )


def _check_semantic(params: Params) -> None:
    """A kind has what it needs; without semantics, nothing is left that would speak of them."""
    semantic, encoder, guidance = params.semantic, params.encoder, params.sample.guidance
    if semantic.kind == "semvae":
        _check_heads("semantic", semantic)
        if semantic.training is None:
            raise ValueError("semantic.kind is `semvae`, so semantic.training must be given")
    if semantic.kind == "pca" and encoder.source == "train" and semantic.latent_channels > encoder.width:
        raise ValueError(
            f"semantic.kind is `pca`, so semantic.latent_channels {semantic.latent_channels} must be at most encoder.width {encoder.width}"
        )
    if encoder.source == "none" and params.needs_features:
        reader = "latents.store_features is true" if semantic.kind == "none" else f"semantic.kind is `{semantic.kind}`"
        raise ValueError(
            f"encoder.source is `none`, but {reader}, which needs the encoder's features: choose an encoder, or set "
            "semantic.kind to `none` and latents.store_features to false"
        )
    if semantic.kind != "none":
        return
    if params.schedule.kind != "sync":
        raise ValueError(
            f"semantic.kind is `none`, so schedule.kind must be `sync`, not `{params.schedule.kind}`: no semantics could lead"
        )
    if (guidance.scale_semantic, guidance.start_semantic) != (1.0, 0.0):
        raise ValueError(
            "semantic.kind is `none`, so sample.guidance.scale_semantic must be 1 and start_semantic 0: nothing reads them"
        )


def _check_heads(name: str, section: EncoderParams | SemanticParams) -> None:
    if section.width % section.num_heads:
        raise ValueError(f"{name}.width {section.width} must be a multiple of {name}.num_heads {section.num_heads}")


def _check_loss(loss: LossParams) -> None:
    if loss.velocity_weight == loss.cosine_weight == loss.repa_weight == 0.0:
        raise ValueError(
            "diffusion.loss: velocity_weight, cosine_weight and repa_weight are all 0, so nothing would be learned; set one above 0"
        )


def _check_repa(params: Params) -> None:
    """REPA compares the backbone's tokens with the encoder's patches, one by one."""
    model, loss = params.diffusion.model, params.diffusion.loss
    if loss.repa_weight == 0.0:
        return
    if loss.repa_target == "stored" and not params.latents.store_features:
        raise ValueError(
            "diffusion.loss.repa_weight is above 0 and repa_target is `stored`, so latents.store_features must be true "
            "(or set repa_target to `decoded`, or the weight to 0)"
        )
    if loss.repa_target == "decoded" and params.semantic.kind == "none":
        raise ValueError(
            "diffusion.loss.repa_target is `decoded`, but semantic.kind is `none`, so nothing could be decoded: set repa_target to `stored`"
        )
    if loss.repa_depth > SIZES[model.size][1]:
        raise ValueError(
            f"diffusion.loss.repa_depth is {loss.repa_depth}, but a model of size {model.size} has {SIZES[model.size][1]} blocks: lower it"
        )
    if model.patch_size != 1:
        raise ValueError(
            f"diffusion.loss.repa_weight is above 0, so every token needs a feature of its own: set diffusion.model.patch_size "
            f"{model.patch_size} to 1 (or the weight to 0)"
        )


def _check_init(diffusion: DiffusionParams) -> None:
    """Starting from a trained model."""
    source = diffusion.init_from
    if source is not None and diffusion.source == "file":
        raise ValueError(
            "diffusion.source is `file`, which trains nothing, so diffusion.init_from must be null: set source to `train`"
        )
    if diffusion.lora is not None and diffusion.sharding == "fsdp":
        raise ValueError(
            "diffusion.lora keeps nearly all weights frozen, which diffusion.sharding `fsdp` does not split: set sharding to `ddp`"
        )
    if source is None:
        if diffusion.lora is not None:
            raise ValueError(
                "diffusion.lora adapts a trained model, but diffusion.init_from is null: name the model, or set lora to null"
            )
        return
    if source.startswith("models:") and REGISTERED.fullmatch(source) is None:
        raise ValueError(
            f"diffusion.init_from {source!r} is no address of a registered model: write `models:/NAME@ALIAS` or `models:/NAME/VERSION`"
        )
    if Path(source).parts[:2] == ("results", "diffusion"):
        raise ValueError(
            f"diffusion.init_from is {source!r}, but DVC removes results/diffusion before it trains: copy the model to another folder"
        )
    if diffusion.training.warmup_steps == 0:
        raise ValueError(
            "diffusion.init_from is set, so diffusion.training.warmup_steps must be above 0: the optimizer knows nothing of the "
            "loaded weights yet, and full first steps would spoil them"
        )


def _check_guidance(guidance: GuidanceParams, model: ModelParams) -> None:
    if (guidance.kind == "autoguidance") != (guidance.weak_model is not None):
        raise ValueError("sample.guidance.weak_model is needed by kind `autoguidance`, and by no other kind")
    if model.condition == "none" and model.class_dropout > 0.0:
        raise ValueError(
            f"diffusion.model.condition is `none`, so there is nothing to drop: set diffusion.model.class_dropout {model.class_dropout:g} to 0"
        )
    if model.condition == "none" and guidance.kind == "cfg":
        raise ValueError(
            "sample.guidance.kind is `cfg`, which compares with the null condition, but diffusion.model.condition is `none`: set the kind to "
            "`none` or `autoguidance`"
        )
    if guidance.kind == "cfg" and model.class_dropout == 0.0:
        raise ValueError(
            "sample.guidance.kind is `cfg`, so diffusion.model.class_dropout must be above 0: the null class is not trained otherwise"
        )
    if guidance.kind == "none" and guidance != GuidanceParams.model_validate({}):
        raise ValueError(
            "sample.guidance.kind is `none`, so its scales must be 1 and its starts 0: nothing reads them; choose a kind, or reset them"
        )


def _check_reference(params: Params) -> None:
    if params.evaluate.reference is not None and params.judge.name != INCEPTION:
        raise ValueError(
            f"evaluate.reference is {params.evaluate.reference!r}, which holds statistics of Inception-v3, but the judge is "
            f"`{params.judge.name}`: set evaluate.reference to null, or judge.kind to `inception`"
        )


def _check_gates(gates: dict[str, GateParams], judge: JudgeParams) -> None:
    known = metric_names(judge.name, knows_classes=judge.name != INCEPTION)
    for metric, gate in gates.items():
        if metric not in known:
            nearest = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"register.gates.{metric}: judge `{judge.name}` gives no metric `{metric}`; nearest metric: `{nearest}`"
            )
        if gate.improve and not has_error(metric):
            able = ", ".join(name for name in known if has_error(name))
            raise ValueError(
                f"register.gates.{metric}.improve needs a metric with a standard error ({able}): give {metric} a limit instead"
            )


def check_sampling_schedule(trained: ScheduleParams, sampled: ScheduleParams | None) -> None:
    """A model can be sampled along times that its training has shown it. Raises ``ValueError`` otherwise."""
    covered = trained.tau_range
    if sampled is None:
        if covered is not None:
            raise ValueError(
                f"schedule.tau is a range, so sample.schedule must say which offset to sample with, e.g. "
                f"{{kind: offset, tau: {(covered.low + covered.high) / 2:g}}}"
            )
        return
    if isinstance(sampled.tau, TauRange):
        raise ValueError("sample.schedule.tau must be one number: an image is sampled with one offset")
    if covered is None:
        if sampled != trained:
            raise ValueError(
                "sample.schedule differs from schedule, but the model is trained with that one alone: set sample.schedule to null, "
                "or train one model for many offsets with schedule.kind `offset` and schedule.tau {low: 0.0, high: 1.0}"
            )
        return
    low, high = {"offset": (sampled.tau,) * 2, "sync": (0.0, 0.0)}.get(sampled.kind, (0.0, 1.0))
    if low < covered.low or high > covered.high:
        raise ValueError(
            f"sample.schedule of kind `{sampled.kind}` needs offsets from {low:g} to {high:g}, but schedule.tau covers "
            f"{covered.low:g} to {covered.high:g}: widen the range, or change sample.schedule"
        )


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: `1e-4` is a number, and a key may stand only once in its mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"key `{key.value}` stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_params(path: Path) -> Params:
    """Reads and checks a params file.

    Raises:
        UserError: the file cannot be read or is not YAML, a key is unknown or missing, or a value breaks its rule.
    """
    return parse_params(read_tree(path), str(path))


def read_tree(path: Path) -> Any:
    """The content of a params file, unchecked. Raises :class:`UserError` if it cannot be read or is not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run in the project's folder, or write one with `sfd preset use NAME`"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the path of a params file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def parse_params(raw: object, origin: str = "params") -> Params:
    """Checks an already parsed mapping; ``origin`` is named in errors. Raises :class:`UserError` as :func:`load_params` does."""
    if not isinstance(raw, dict):
        raise UserError(f"{origin} must be a mapping of sections, but is {type(raw).__name__}")
    if "base" in raw:
        raise UserError(
            f"{origin} holds only what differs from preset `{raw['base']}`; write the whole with `sfd preset use NAME`"
        )
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        mistakes = [f"{origin}: {text}" for text in describe_mistakes(error, Params)]
        more = [f"and {len(mistakes) - SHOWN_MISTAKES} more"] if len(mistakes) > SHOWN_MISTAKES else []
        raise UserError("; ".join(mistakes[:SHOWN_MISTAKES] + more)) from None


SHOWN_MISTAKES = 5
"""A file with more mistakes than this is hardly a params file."""


def describe_mistakes(error: ValidationError, section: type[Section]) -> list[str]:
    """One line for each mistake in an input of ``section``: the key, the value, the rule, the nearest valid key."""
    return [_describe(dict(item), section) for item in error.errors()]


def _describe(item: dict[str, Any], root: type[Section]) -> str:
    location = [str(part) for part in item["loc"] if part not in TAU_TAGS]
    key, message = ".".join(location), str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _keys_beside(location, root)
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
        return f"unknown key `{key}` (value {_short(item['input'])}); nearest valid key: `{'.'.join([*location[:-1], *nearest])}`"
    if item["type"] == "missing":
        return f"key `{key}` is missing and has no default"
    if not key:
        return message
    return f"`{key}` is {_short(item['input'])}, but: {message}"


def _short(value: object) -> str:
    return textwrap.shorten(repr(value), width=80, placeholder="...")


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section class that a field holds, also within ``Section | None`` or a mapping; None for a plain value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _keys_beside(location: list[str], root: type[Section]) -> list[str]:
    section = root
    for part in location[:-1]:
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        if part in fields:  # else the free key of a mapping, `tune.space.KEY`
            section = _section_of(fields[part]) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def describe_params() -> str:
    """The table of all options as Markdown: key, type and limits, default, meaning. Trainings are described once."""
    networks = [name for name, field in Params.model_fields.items() if _is_trained(field)]
    rows = [
        f"`NETWORK` is one of {', '.join(networks)}; a network that is not trained here has `training: null`.",
        "",
        "| option | type | default | meaning |",
        "|---|---|---|---|",
    ]
    _describe_section(Params, "", rows, described={TauRange: "", TrainingParams: ""})
    _describe_section(TrainingParams, "NETWORK.training.", rows, described={})
    return "\n".join(rows)


def _is_trained(field: FieldInfo) -> bool:
    section = _section_of(field)
    return section is not None and "training" in section.model_fields


def _describe_section(
    section: type[Section], prefix: str, rows: list[str], described: dict[type[Section], str]
) -> None:
    """Appends one row per key; a section that stands in a second place is described in its first (``described``: class to place)."""
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        inner = _section_of(field)
        if inner is TrainingParams:
            continue
        if inner is not None and inner not in described:
            described[inner] = key
            is_mapping = get_origin(field.annotation) is dict
            _describe_section(inner, key + (".KEY." if is_mapping else "."), rows, described)
            continue
        kind = f"the keys of `{described[inner]}`, or null" if inner and described[inner] else _type_text(field)
        default = "required" if field.is_required() else f"`{_as_yaml(field.get_default())}`"
        rows.append(f"| `{key}` | {kind} | {default} | {_meaning(field)} |")


def _one_of(field: FieldInfo) -> OneOf | None:
    return next((rule for rule in field.metadata if isinstance(rule, OneOf)), None)


def _meaning(field: FieldInfo) -> str:
    """The field's description, and that of every name it may hold."""
    names = _one_of(field)
    if names is None:
        return str(field.description)
    return f"{field.description}: " + ", ".join(f"`{name}` ({text})" for name, text in names.descriptions().items())


def _as_yaml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_as_yaml(item) for item in value) + "]"
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def _type_text(field: FieldInfo) -> str:
    names = _one_of(field)
    if names is not None:
        return " or ".join(f"`{name}`" for name in names.descriptions())
    limits = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, attr):g}"
        for rule in field.metadata
        for attr, sign in limits.items()
        if hasattr(rule, attr)
    ]
    return ", ".join([_kind_text(field.annotation), *bounds])


def _kind_text(kind: Any) -> str:
    """A type in the words of YAML: `a` or `b`, float or null, list of int."""
    if get_origin(kind) is Literal:
        return " or ".join(f"`{option}`" for option in get_args(kind))
    if get_origin(kind) is Annotated:
        return _type_text(FieldInfo.from_annotation(kind))
    if get_origin(kind) is tuple:
        return f"list of {_kind_text(get_args(kind)[0]).split(',')[0]}"
    if get_args(kind):
        return " or ".join(_kind_text(option) for option in get_args(kind))
    return {type(None): "null", TauRange: "{low, high}"}.get(kind, getattr(kind, "__name__", str(kind)))


def dump_params(params: Params) -> str:
    """The resolved configuration as YAML, in the order of declaration."""
    return yaml.safe_dump(params.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
