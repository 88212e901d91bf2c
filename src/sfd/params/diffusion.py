"""Sections ``diffusion`` and ``sample``: the model, its training, and how images are drawn from it."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sfd.class_mix import BALANCED, ClassMix
from sfd.names import BACKBONES, CONDITIONS, LOSS_TERMS, SAMPLERS
from sfd.params.networks import TrainingParams
from sfd.params.schedule import ScheduleParams
from sfd.params.tokens import SparseDeepParams, TokenRoutingParams
from sfd.params.types import FilePath, Fraction, OneOf, Positive, Scale, Section
from sfd.sizes import SIZES, ModelSize


class ModelParams(Section):
    """The backbone, and what it is told about an image."""

    backbone: Annotated[str, OneOf(BACKBONES)] = Field("lightningdit", description="network that predicts the velocity")
    size: ModelSize = Field(
        description="width x depth x heads: "
        + ", ".join(f"{name} {width}x{depth}x{heads}" for name, (width, depth, heads) in SIZES.items())
        + ". Backbone `lightningdit` has those from tiny to 1p6B, `flux2` tiny and those from 0p5b on"
    )
    patch_size: int = Field(1, ge=1, le=2, description="side of one token, latent positions")
    use_rmsnorm: bool = Field(True, description="RMSNorm; else LayerNorm without parameters")
    use_qknorm: bool = Field(True, description="normalise queries and keys")
    use_swiglu: bool = Field(True, description="SwiGLU; else GELU")
    use_rope: bool = Field(True, description="2D rotary embedding on queries and keys")
    use_shift: bool = Field(True, description="adaLN with shift")
    condition: Annotated[str, OneOf(CONDITIONS)] = Field("class", description="what the model is told about an image")
    class_dropout: Fraction = Field(
        0.1, description="share of images trained with the null value: the null class, or the empty caption"
    )
    text_attention: Literal["cross", "in_context"] = Field(
        "cross",
        description="how blocks see the words of condition `text`. `cross`: cross-attention after self-attention in each block (PixArt-alpha); "
        "`in_context`: the words' tokens join the image's",
    )
    shared_modulation: bool = Field(
        False,
        description="one modulation by times and condition for all blocks, and a table in each (adaLN-single, PixArt-alpha); false: one per block",
    )


class LossParams(Section):
    """The independent terms of the loss (:data:`sfd.names.LOSS_TERMS`); a weight of 0 turns a term off."""

    velocity_weight: float = Field(1.0, ge=0.0, description="weight of the squared velocity error")
    semantic_weight: float = Field(
        2.0, ge=0.0, description="weight of semantic channels within the squared velocity error"
    )
    channel_weights: Literal["none", "energy"] = Field(
        "none",
        description="weights of the texture channels within the squared velocity error. `none`: all 1 (the paper); `energy`: the square root of the "
        "channel's share of the pixels' variance, for `texture_vae.source: pca`",
    )
    cosine_weight: float = Field(1.0, ge=0.0, description="weight of 1 - cosine(prediction, target)")
    cosine_floor: float = Field(
        0.1,
        gt=0.0,
        le=10.0,
        description="the cosine divides by at least this length of the predicted velocity, whose usual length is 3 to 10. 1e-8: the paper; "
        "there the first gradient of a model that predicts zero is 1e7 times the usual one, and Adam remembers it for thousands of steps",
    )
    repa_weight: float = Field(1.0, ge=0.0, description="weight of the alignment with the encoder's features")
    repa_loss: Literal["cosine", "cosine_mse"] = Field(
        "cosine",
        description="how a token is compared with its feature. `cosine`: 1 - cosine; `cosine_mse`: the mean of 1 - cosine and of the squared "
        "error per channel",
    )
    repa_depth: Positive = Field(2, description="block after which the hidden state is aligned")
    repa_projector: Literal["mlp", "conv"] = Field(
        "mlp",
        description="what projects the hidden state. `mlp`: three linear layers, token by token (REPA); `conv`: one 3x3 convolution over the grid "
        "of tokens (iREPA, arXiv 2512.10794)",
    )
    repa_width: Positive = Field(2048, description="hidden width of the projector `mlp`")
    repa_target: Literal["stored", "decoded"] = Field(
        "stored",
        description="the features to align with. `stored`: those beside the latents; `decoded`: those decoded from the semantic latent in "
        "every step, which needs no disk, but one more forward pass of the semantic decoder",
    )
    repa_target_norm: Literal["none", "tokens"] = Field(
        "none",
        description="`tokens`: each channel of an image's features gets mean 0 and standard deviation 1 over its tokens, which leaves their spatial "
        "structure (iREPA); `none`: as the encoder gives them",
    )
    timestep_sampling: Literal["joint", "per_part"] = Field(
        "joint",
        description="where the logit-normal applies. `joint`: to joint progress u (the paper); `per_part`: to each part's own time, "
        "with any schedule, so that schedules can be compared (arXiv 2606.19662)",
    )
    time_mean: float = Field(0.0, ge=-5.0, le=5.0, description="mean of the logit-normal draw")
    time_std: float = Field(1.0, gt=0.0, le=5.0, description="standard deviation of the logit-normal draw")

    @model_validator(mode="after")
    def _check_weights(self) -> "LossParams":
        if not any(self.weights().values()):
            *most, last = (f"{name}_weight" for name in self.weights())
            raise ValueError(f"{', '.join(most)} and {last} are all 0, so nothing would be learned; set one above 0")
        return self

    def weights(self) -> dict[str, float]:
        """The weight of every term of the loss, in the order of :data:`sfd.names.LOSS_TERMS`; 1 for a term without an option."""
        return {name: getattr(self, f"{name}_weight", 1.0) for name in LOSS_TERMS}


class LoraParams(Section):
    """Low-rank adapters (arXiv 2106.09685): ``W + alpha / rank * B A``; they are merged into the weights at the end."""

    rank: Positive = Field(
        16,
        description="rank of the adapters on the blocks' attention and MLP layers. Only adapters and new weights are trained; "
        "`diffusion.lora: null` trains all weights",
    )
    alpha: Positive = Field(16, description="the adapters' product is scaled by alpha / rank")


REGISTERED = re.compile(r"models:/(?P<name>[^/:@]+)(@(?P<alias>[a-zA-Z][\w-]*)|/(?P<version>[1-9]\d*))")
"""MLflow's address of a registered version, by an alias or its number."""


def registered_model(address: str) -> tuple[str, str] | None:
    """Name, and alias or number of the version, of a registered model's address; None for anything else."""
    found = REGISTERED.fullmatch(address)
    return None if found is None else (found["name"], found["alias"] or found["version"])


class DiffusionTrainingParams(TrainingParams):
    """The training of the diffusion model."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`adamw`: AdamW for all weights; `muon`: Muon for the matrices of the blocks' attention and MLPs, AdamW for the rest, both at "
        "`learning_rate` and `weight_decay`",
    )
    keep_every: Positive | None = Field(
        None,
        description="steps between averaged weights that are kept in `results/diffusion/steps`, for `sample.step`, `diffusion.init_from` and "
        "`sfd evaluate-steps`; null: none",
    )
    more_ema_decays: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = Field(
        (),
        strict=False,
        description="decays of further averages of the weights, for `sample.ema_decay` and `sfd evaluate-steps`. They change nothing else; each "
        "takes the memory of one copy of the weights",
    )

    @model_validator(mode="after")
    def _check_decays(self) -> "DiffusionTrainingParams":
        decays = [self.ema_decay, *self.more_ema_decays]
        if len(set(decays)) < len(decays):
            raise ValueError(
                f"more_ema_decays {list(self.more_ema_decays)} repeat ema_decay {self.ema_decay:g} or one another: each average is kept once; "
                "remove the repetition"
            )
        return self

    @model_validator(mode="after")
    def _check_keep_every(self) -> "DiffusionTrainingParams":
        if self.keep_every is not None and self.keep_every > self.num_steps:
            raise ValueError(
                f"keep_every {self.keep_every} is more than num_steps {self.num_steps}, so nothing would be kept; lower it"
            )
        return self


class DiffusionParams(Section):
    """Training of the diffusion model."""

    source: Literal["train", "file"] = Field(
        "train",
        description="`train`: train on the latents; `file`: use weights that `sfd import` wrote. These bring their model, schedule and "
        "classes, so `model`, `loss` and `training` are not read",
    )
    file: FilePath | None = Field(None, description="folder of `sfd import --kind diffusion` for `file`")
    model: ModelParams
    loss: LossParams
    training: DiffusionTrainingParams
    init_from: str | None = Field(
        None,
        min_length=1,
        description="trained model to start from: a folder (config.json, model.safetensors, statistics.safetensors), "
        "`models:/NAME@ALIAS` or `models:/NAME/VERSION`; null: random initial weights",
    )
    init_statistics: Literal["source", "new"] = Field(
        "source",
        description="what normalises the latents. `source`: the statistics that the weights of `init_from` were trained with; `new`: those "
        "of the new data",
    )
    other_networks: bool = Field(
        False,
        description="use weights (of `init_from` or `file`) although they were trained on latents of another texture VAE, vision encoder or semantic "
        "encoder; false: that is refused",
    )
    lora: LoraParams | None = Field(None, description="needs `init_from`")
    token_routing: TokenRoutingParams | None = Field(
        None, description="some blocks are trained on a part of the tokens, which takes less time; null: on all"
    )
    sparse_deep: SparseDeepParams | None = Field(
        None,
        description="the middle blocks are trained on a part of the tokens, and need weights of their own to be joined with the others; null: "
        "there is one path",
    )

    @property
    def init_folder(self) -> Path | None:
        """The folder of ``init_from``; None if that is null or a registered model."""
        return None if self.init_from is None or registered_model(self.init_from) else Path(self.init_from)

    def named_paths(self) -> Iterator[Path]:
        """As :meth:`Section.named_paths`, with the folder of ``init_from``."""
        yield from super().named_paths()
        if self.init_folder is not None:
            yield self.init_folder


class GuidanceParams(Section):
    """``guided = weak + scale * (strong - weak)``, separately for texture and semantics."""

    kind: Literal["none", "cfg", "autoguidance", "path_drop"] = Field(
        "none",
        description="source of the weak velocity. `none`: no guidance; `cfg`: the same model with the null class, or the negative prompt; "
        "`autoguidance`: a weaker model; `path_drop`: as `cfg`, but without the model's middle blocks, which costs less (needs a model of "
        "`diffusion.sparse_deep`)",
    )
    weak_model: FilePath | None = Field(
        None, description="folder of the weaker model (config.json, model.safetensors) for `autoguidance`"
    )
    negative_prompt: str | None = Field(
        None,
        max_length=2000,
        description="what a model with condition `text` is steered away from by `cfg` and `path_drop`; null: the empty caption",
    )
    scale_texture: Scale = Field(1.0, description="scale on texture channels; 1: unguided")
    scale_semantic: Scale = Field(1.0, description="scale on semantic channels; 1: unguided")
    start_texture: Fraction = Field(0.0, description="texture is unguided while its own t is below this")
    start_semantic: Fraction = Field(0.0, description="semantics are unguided while their own t is below this")
    end_texture: Fraction = Field(1.0, description="texture is unguided while its own t is above this")
    end_semantic: Fraction = Field(1.0, description="semantics are unguided while their own t is above this")


class SampleParams(Section):
    """Generation from the trained model."""

    step: Positive | None = Field(
        None,
        description="draw from the weights that the model had after so many steps of training, one of those that "
        "`diffusion.training.keep_every` keeps; null: after all of them",
    )
    ema_decay: float | None = Field(
        None,
        description="draw from the average of the weights with this decay: `diffusion.training.ema_decay` or one of `more_ema_decays`; null: the "
        "former",
    )
    num_images: Positive = Field(50_000, description="images to draw")
    class_mix: ClassMix = Field(
        BALANCED,
        description="how many of them are of each class. `balanced`: equally many (the papers); `natural`: in the proportions of the training "
        "images. The images that samples are compared with get the same mix",
    )
    prompts: FilePath | None = Field(
        None,
        description="text file with a prompt per line, which images are drawn for in turn by a model with condition `text`; null: captions of "
        "held-out images",
    )
    sampler: Annotated[str, OneOf(SAMPLERS)] = Field("dopri5", description="solver of the sampling ODE")
    num_steps: Positive = Field(50, description="steps of the sampler; an adaptive one chooses its own")
    rule: Literal["exact", "published"] = Field(
        "exact",
        description="how far a step carries a part. `exact`: as far as its own time moves; `published`: for the whole step if it moves at the step's "
        "start, as in the publication",
    )
    timestep_shift: float = Field(0.0, ge=0.0, le=10.0, description="s maps progress v to s*v / (1 + (s-1)*v); 0: off")
    times: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        description="the progress at which each step begins, along the schedule's curve: increasing, from 0, as many as `num_steps`, with "
        "timestep_shift 0. Solvers that move steps onto borders of the schedule still do. null: even steps",
    )
    schedule: ScheduleParams | None = Field(
        None,
        description="schedule to sample with; null: the one of training. Another one needs a range in `schedule.tau`",
    )
    other_networks: bool = Field(
        False,
        description="draw although the model was trained on latents of another texture VAE than the one that decodes, or AutoGuidance's weak model "
        "on other latents than the model; false: that is refused",
    )
    guidance: GuidanceParams

    @property
    def uses_published_rule(self) -> bool:
        """Whether steps carry the parts as in the publication."""
        return self.rule == "published"

    @model_validator(mode="after")
    def _check_times(self) -> "SampleParams":
        times = self.times
        if times is None:
            return self
        if times[0] != 0.0:
            raise ValueError(
                f"times begin with {times[0]:g}, but the first step begins at the noise: let them begin with 0"
            )
        wrong = next((pair for pair in pairwise(times) if pair[0] >= pair[1]), None)
        if wrong is not None:
            raise ValueError(
                f"times must increase, but {wrong[1]:g} follows {wrong[0]:g}: put them in order, each once"
            )
        if len(times) != self.num_steps:
            raise ValueError(
                f"times are {len(times)}, but num_steps is {self.num_steps}: set num_steps to {len(times)}, or times to null"
            )
        if self.timestep_shift != 0.0:
            raise ValueError(
                f"times say where the steps lie, and so does timestep_shift {self.timestep_shift:g}: set it to 0, or times to null"
            )
        if self.uses_published_rule:
            raise ValueError(
                "times need rule `exact`: the published rule counts steps of one length; set rule to it, or times to null"
            )
        if SAMPLERS[self.sampler].adaptive:
            raise ValueError(
                f"times say where the steps lie, but sampler `{self.sampler}` chooses its own: take another, or set times to null"
            )
        return self
