"""Rules between options of different sections: one function per rule, in the order in which they are checked.

A rule within one section stands with the section; the rules of a study are in :mod:`sfd.params.study`. A function raises ``ValueError``
with a line that names the rule, the value and the remedy.
"""

from sfd.names import WEIGHT_PACKAGES
from sfd.params.backbone_rules import check_backbone
from sfd.params.diffusion import DiffusionParams, GuidanceParams, registered_model
from sfd.params.grid import check_patch_size, check_token_groups, shared_grid
from sfd.params.judging import (
    check_clip,
    check_cmmd,
    check_gates,
    check_judge_is_another,
    check_judges,
    check_reference,
    check_swaps,
    judge_sections,
)
from sfd.params.networks import EncoderParams, JudgeParams, SemanticParams, TextureVaeParams
from sfd.params.schedule import ScheduleParams, TauRange
from sfd.params.schema import Params
from sfd.params.text import TextParams
from sfd.params.texture_rules import check_alignment, check_reconstruction, check_tokenizer
from sfd.params.token_rules import check_full_token_steps, check_path_drop, check_repa_projector, check_tokens
from sfd.params.word_rules import check_words
from sfd.sizes import SIZES


def _check_files(params: Params) -> None:
    """Weights are named exactly where they are read from a file."""
    sections: dict[
        str, EncoderParams | TextureVaeParams | JudgeParams | SemanticParams | TextParams | DiffusionParams
    ] = {
        "encoder": params.encoder,
        "texture_vae": params.texture_vae,
        **judge_sections(params),
        "semantic": params.semantic,
        "text": params.text,
        "diffusion": params.diffusion,
    }
    for name, section in sections.items():
        if section.source == "file" and section.file is None:
            raise ValueError(f"{name}.source is `file`, so {name}.file must name the weights")
        if section.source != "file" and section.file is not None:
            raise ValueError(
                f"{name}.file is {str(section.file)!r}, but {name}.source is `{section.source}`, which reads no file: "
                f"set {name}.source to `file`, or {name}.file to null"
            )


def _check_frozen_networks(params: Params) -> None:
    """A network that is trained here has a training, and a pretrained one has a name."""
    sections: dict[str, EncoderParams | TextureVaeParams | JudgeParams] = {
        "encoder": params.encoder,
        "texture_vae": params.texture_vae,
        **judge_sections(params),
    }
    for name, section in sections.items():
        if section.source == "train" and section.training is None:
            raise ValueError(f"{name}.source is `train`, so {name}.training must be given")
        if section.source == "pretrained" and section.name is None:
            raise ValueError(f"{name}.source is `pretrained`, so {name}.name must be given")


def _check_packages(params: Params) -> None:
    """Weights of a package are of a network that one is known for."""
    encoder = params.encoder
    if encoder.source == "package" and encoder.name not in WEIGHT_PACKAGES:
        raise ValueError(_no_package("encoder.source", "encoder.name", encoder.name))
    for key, judge in judge_sections(params).items():
        if judge.kind == "timm" and judge.source == "package" and judge.model and judge.model not in WEIGHT_PACKAGES:
            raise ValueError(_no_package(f"{key}.source", f"{key}.model", judge.model))


def _no_package(source: str, option: str, name: str) -> str:
    return (
        f"{source} is `package`, but no package with weights of {option} {name} is known: choose one of {', '.join(WEIGHT_PACKAGES)}, "
        f"or set {source} to `pretrained` or `file`"
    )


def _check_step(params: Params) -> None:
    """Images are drawn from weights that are there."""
    step, training = params.sample.step, params.diffusion.training
    if step is None:
        return
    if params.diffusion.source == "file":
        raise ValueError(
            f"sample.step is {step}, but diffusion.source is `file`, which has no weights of other steps: set sample.step to null"
        )
    every = training.keep_every
    if every is None:
        raise ValueError(
            f"sample.step is {step}, but diffusion.training.keep_every is null, so no weights are kept: set one of them"
        )
    if step % every or step > training.num_steps:
        raise ValueError(
            f"sample.step {step} is not kept: diffusion.training keeps every {every} steps, up to {training.num_steps // every * every}; "
            "choose a multiple of that, or null"
        )


def _check_decay(params: Params) -> None:
    """Images are drawn from an average that is there."""
    decay, training = params.sample.ema_decay, params.diffusion.training
    if decay is None:
        return
    if params.diffusion.source == "file":
        raise ValueError(
            f"sample.ema_decay is {decay:g}, but diffusion.source is `file`, which has one set of weights: set sample.ema_decay to null"
        )
    if decay not in (training.ema_decay, *training.more_ema_decays):
        raise ValueError(
            f"sample.ema_decay is {decay!r}, but diffusion.training keeps the averages of {[training.ema_decay, *training.more_ema_decays]}: "
            "choose one of them, or add it to diffusion.training.more_ema_decays and train"
        )


def _check_grid(params: Params) -> None:
    """Semantic and texture latents lie on one grid, and the backbone's tokens divide it.

    The downsampling of a texture VAE that is loaded is known only then. Stage ``diffusion`` checks its grid.
    """
    encoder, texture_vae, tiles = params.encoder, params.texture_vae, params.latents.tiles
    if tiles > 1 and params.data.image_size % tiles:
        raise ValueError(
            f"latents.quadrants cuts images into quarters, so data.image_size {params.data.image_size} must be even"
        )
    grid, patches, origin = None, None, "encoder.input_size / encoder.patch_size"
    if encoder.source != "none":
        if encoder.input_size % encoder.patch_size:
            raise ValueError(
                f"encoder.input_size {encoder.input_size} must be a multiple of encoder.patch_size {encoder.patch_size}"
            )
        patches = encoder.input_size, encoder.patch_size
        grid = tiles * (encoder.input_size // encoder.patch_size)
    if texture_vae.factor is not None:
        origin = f"data.image_size / {texture_vae.factor}" if grid is None else origin
        grid = shared_grid(params.data.image_size, texture_vae.factor, patches, tiles)
    if grid is not None:
        check_patch_size(params.diffusion.model.patch_size, grid, origin)
        check_token_groups(params.diffusion, grid, origin)


def _check_heads(params: Params) -> None:
    """Attention heads divide the width of each transformer that is trained here."""
    sections: dict[str, EncoderParams | SemanticParams] = {}
    if params.semantic.kind == "semvae":
        sections["semantic"] = params.semantic
    if params.encoder.source == "train":
        sections["encoder"] = params.encoder
    for name, section in sections.items():
        if section.width % section.num_heads:
            raise ValueError(f"{name}.width {section.width} must be a multiple of {name}.num_heads {section.num_heads}")


def _check_semantic(params: Params) -> None:
    """Each kind of semantic latents has what it needs."""
    semantic, encoder = params.semantic, params.encoder
    if semantic.kind == "none" and semantic.source == "file":
        raise ValueError(
            "semantic.kind is `none`, so semantic.source must be `train`: nothing reads a semantic encoder; or choose another kind"
        )
    if semantic.kind == "semvae" and semantic.source == "train" and semantic.training is None:
        raise ValueError("semantic.kind is `semvae` and semantic.source is `train`, so semantic.training must be given")
    if semantic.kind == "pca" and encoder.source == "train" and semantic.latent_channels > encoder.width:
        raise ValueError(
            f"semantic.kind is `pca`, so semantic.latent_channels {semantic.latent_channels} must be at most encoder.width {encoder.width}"
        )


def _check_features(params: Params) -> None:
    """What reads the encoder's features needs an encoder."""
    if params.encoder.source == "none" and params.needs_features:
        kind = params.semantic.kind
        reader = "latents.store_features is true" if kind == "none" else f"semantic.kind is `{kind}`"
        raise ValueError(
            f"encoder.source is `none`, but {reader}, which needs the encoder's features: choose an encoder, or set "
            "semantic.kind to `none` and latents.store_features to false"
        )


def _check_texture_alone(params: Params) -> None:
    """Without semantic latents no option refers to them."""
    if params.semantic.kind != "none":
        return
    guidance = params.sample.guidance
    if params.schedule.kind != "sync":
        raise ValueError(
            f"semantic.kind is `none`, so schedule.kind must be `sync`, not `{params.schedule.kind}`: no semantics could lead"
        )
    if (guidance.scale_semantic, guidance.start_semantic, guidance.end_semantic) != (1.0, 0.0, 1.0):
        raise ValueError(
            "semantic.kind is `none`, so sample.guidance.scale_semantic must be 1, start_semantic 0 and end_semantic 1: nothing reads them"
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


def _check_init(params: Params) -> None:
    """Training that starts from a model needs a warm-up, and a model outside its own result."""
    diffusion = params.diffusion
    source = diffusion.init_from
    if source is not None and diffusion.source == "file":
        raise ValueError(
            "diffusion.source is `file`, which trains nothing, so diffusion.init_from must be null: set source to `train`"
        )
    if source is None:
        return
    if source.startswith("models:") and registered_model(source) is None:
        raise ValueError(
            f"diffusion.init_from {source!r} is no address of a registered model: write `models:/NAME@ALIAS` or `models:/NAME/VERSION`"
        )
    if diffusion.init_folder is not None and diffusion.init_folder.parts[:2] == ("results", "diffusion"):
        raise ValueError(
            f"diffusion.init_from is {source!r}, but DVC removes results/diffusion before it trains: copy the model to another folder"
        )
    if diffusion.training.warmup_steps == 0:
        raise ValueError(
            "diffusion.init_from is set, so diffusion.training.warmup_steps must be above 0: the optimizer has no statistics of the "
            "loaded weights yet, and full first steps would spoil them"
        )


def _check_lora(params: Params) -> None:
    """Low-rank adapters need a model to adapt, and all of its weights on every process."""
    diffusion = params.diffusion
    if diffusion.lora is None:
        return
    if params.runtime.diffusion.sharding == "fsdp":
        raise ValueError(
            "diffusion.lora keeps nearly all weights frozen, which runtime.diffusion.sharding `fsdp` does not split: set sharding to `ddp`"
        )
    if diffusion.init_from is None:
        raise ValueError(
            "diffusion.lora adapts a trained model, but diffusion.init_from is null: name the model, or set lora to null"
        )


def _check_optimizer(params: Params) -> None:
    """Muon needs the whole gradient of a whole matrix."""
    diffusion = params.diffusion
    if diffusion.training.optimizer != "muon":
        return
    if params.runtime.diffusion.sharding == "fsdp":
        raise ValueError(
            "diffusion.training.optimizer is `muon`, which needs whole matrices, but runtime.diffusion.sharding is `fsdp`, which splits them: set "
            "sharding to `ddp`, or the optimizer to `adamw`"
        )
    if diffusion.lora is not None:
        raise ValueError(
            "diffusion.training.optimizer is `muon`, which trains whole matrices, but diffusion.lora trains two thin factors of each: set the "
            "optimizer to `adamw`, or lora to null"
        )


def _check_condition(params: Params) -> None:
    """A model that is told nothing has nothing to drop, and no null condition to be guided away from."""
    model = params.diffusion.model
    if model.condition != "none":
        return
    if model.class_dropout > 0.0:
        raise ValueError(
            f"diffusion.model.condition is `none`, so there is nothing to drop: set diffusion.model.class_dropout {model.class_dropout:g} to 0"
        )
    if params.sample.guidance.kind == "cfg":
        raise ValueError(
            "sample.guidance.kind is `cfg`, which compares with the null condition, but diffusion.model.condition is `none`: set the kind to "
            "`none` or `autoguidance`"
        )


def _check_text(params: Params) -> None:
    """A model that is told words has captions and a text encoder; the text encoder's section fits together."""
    text, is_told = params.text, params.diffusion.model.condition == "text"
    if (text.source == "pretrained") != (text.name is not None):
        raise ValueError("text.name is needed by text.source `pretrained`, and by no other source")
    if text.width % text.num_heads and text.source == "train":
        raise ValueError(f"text.width {text.width} must be a multiple of text.num_heads {text.num_heads}")
    for option in ("hidden_layers", "chat_template", "attend_padding"):
        if text.source == "train" and getattr(text, option):
            raise ValueError(
                f"text.{option} is for a model of the library `transformers`, but text.source is `train`: remove it, or take another source"
            )
    if not is_told:
        return
    if params.data.captions is None:
        raise ValueError(
            "diffusion.model.condition is `text`, but data.captions is null: set it to `auto` or to a table of captions"
        )
    if text.source == "train" and text.training is None:
        raise ValueError("text.source is `train`, so text.training must be given")
    if text.source == "train" and params.encoder.source == "none":
        raise ValueError(
            "text.source is `train`, which learns from the vision encoder's features, but encoder.source is `none`: choose an encoder, or a text "
            "encoder that others trained"
        )


def _check_guidance(params: Params) -> None:
    """Guidance needs a weak velocity; without guidance its options keep their defaults."""
    guidance, model = params.sample.guidance, params.diffusion.model
    if (guidance.kind == "autoguidance") != (guidance.weak_model is not None):
        raise ValueError("sample.guidance.weak_model is needed by kind `autoguidance`, and by no other kind")
    if guidance.kind == "cfg" and model.class_dropout == 0.0:
        raise ValueError(
            "sample.guidance.kind is `cfg`, so diffusion.model.class_dropout must be above 0: the null class is not trained otherwise"
        )
    if guidance.kind == "none" and guidance != GuidanceParams.model_validate({}):
        raise ValueError(
            "sample.guidance.kind is `none`, so its scales must be 1, its starts 0 and its ends 1: nothing reads them; choose a kind, or reset "
            "them"
        )
    for part in ("texture", "semantic"):
        start, end = getattr(guidance, f"start_{part}"), getattr(guidance, f"end_{part}")
        if end < start:
            raise ValueError(
                f"sample.guidance.end_{part} {end:g} is below start_{part} {start:g}, so no time would be guided: raise the end, or set "
                f"scale_{part} to 1"
            )


def _check_sampling_schedule(params: Params) -> None:
    check_sampling_schedule(params.schedule, params.sample.schedule)


def check_sampling_schedule(trained: ScheduleParams, sampled: ScheduleParams | None) -> None:
    """A model can be sampled along times that its training has shown it. Raises ``ValueError`` otherwise."""
    covered = trained.tau_range
    if sampled is not None and sampled.kind == "learnt":
        raise ValueError(
            "sample.schedule cannot be of kind `learnt`: set it to null, which draws along the curve that was learnt"
        )
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


def _check_learnt(params: Params) -> None:
    """A learnt curve is the best for the objective that it is learnt with, in which each part keeps its own times."""
    if params.schedule.kind != "learnt":
        return
    if params.diffusion.source == "file":
        raise ValueError(
            "schedule.kind is `learnt`, but diffusion.source is `file`: weights from a file have a schedule already; give that one"
        )
    if params.diffusion.loss.timestep_sampling != "per_part":
        raise ValueError(
            "schedule.kind is `learnt`, so diffusion.loss.timestep_sampling must be `per_part`: with `joint`, the times that each part is trained "
            "at would change with the curve"
        )
    if params.diffusion.loss.velocity_weight == 0.0:
        raise ValueError(
            "schedule.kind is `learnt`, so diffusion.loss.velocity_weight must be above 0: the curve is judged by the velocity"
        )


RULES = (
    _check_files,
    _check_frozen_networks,
    _check_packages,
    check_tokenizer,
    check_reconstruction,
    check_alignment,
    check_judges,
    check_judge_is_another,
    check_backbone,
    _check_grid,
    _check_heads,
    _check_semantic,
    _check_features,
    _check_texture_alone,
    _check_repa,
    _check_init,
    _check_step,
    _check_decay,
    _check_lora,
    check_tokens,
    check_repa_projector,
    check_full_token_steps,
    _check_optimizer,
    _check_condition,
    check_words,
    _check_guidance,
    check_path_drop,
    _check_sampling_schedule,
    _check_learnt,
    _check_text,
    check_reference,
    check_swaps,
    check_clip,
    check_cmmd,
    check_gates,
)


def check_rules(params: Params) -> None:
    """Raises ``ValueError`` for the first rule that the parameters break."""
    for rule in RULES:
        rule(params)
