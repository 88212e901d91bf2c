"""The published values of the ImageNet presets and of SeFi-Image's, each once, with its source, and with the reason where the preset differs.

Facts from papers and public code; ``sfd.published.table`` compares them with the presets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

PAPER = "arXiv 2512.04926"
LWD = "arXiv 2606.19662"
CODE = "SFD's training code, December 2025"
CONFIG = "SFD's published configurations"
SEFI_CODE = "SeFi-Image's public code"
ADM = "ADM's evaluator (arXiv 2105.05233)"

SOURCES: dict[str, str] = {
    PAPER: "the paper of SFD",
    CODE: "github.com/yuemingPAN/SFD, commit 8b17273: SemVAE, latents, training of diffusion",
    CONFIG: "the same repository, `configs/sfd`: training and sampling of XL, 1.0B and the B model of AutoGuidance",
    ADM: "github.com/openai/guided-diffusion, folder `evaluations`",
    "arXiv 2212.09748": "the paper of DiT",
    "arXiv 2501.01423": "the paper of LightningDiT and VA-VAE, and the configuration `lightningdit_xl_vavae_f16d32` of its repository",
    "arXiv 2504.16064": "the paper of ReDi",
    LWD: "the paper of LWD",
    SEFI_CODE: "github.com/jmliu206/SeFi-Image (arXiv 2606.22568): the networks, sampling, and the fine-tuning of 1B by adapters",
}
"""Source to what it is."""


@dataclass(frozen=True)
class Published:
    """A published value. ``reason``: why the preset has another one; empty if it has the same."""

    value: object
    source: str
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """A published run that a preset stands for.

    Attributes:
        name: what it is, and whose; or that there is none.
        values: key to published value; of an overlay those alone that its base's run does not have.
        inherits: whether the other values of the base's run are those of this run, too.
    """

    name: str
    values: Mapping[str, Published] = field(default_factory=dict)
    inherits: bool = True


BF16 = "`auto` is bf16 on a GPU"
OWN_BACKBONE = "the backbone of the other presets, so that they compare"
OWN_RECIPE = "the recipe of the other presets, so that they compare"

_DATA = {
    "seed": Published(0, CONFIG),
    "data.source": Published("folder", PAPER),
    "data.image_size": Published(256, PAPER),
    "data.mirror": Published(True, CODE),
    "data.holdout_fraction": Published(
        0.0,
        CODE,
        "not read: with `layout: splits` all of train/ is trained on, as published, and val/ is held out for floors and memorisation",
    ),
    "data.duplicates": Published("no check", CODE, "files with the content of another one are used once"),
    "evaluate.reference": Published("weights/VIRTUAL_imagenet256_labeled.npz", CONFIG),
    "evaluate.neighbours": Published(3, ADM),
    "judges.0.kind": Published("inception", ADM),
}

_NETWORKS = {
    "encoder.source": Published("pretrained", PAPER),
    "encoder.name": Published("vit_base_patch14_reg4_dinov2.lvd142m", CODE),
    "encoder.input_size": Published(224, CODE),
    "encoder.patch_size": Published(14, CODE),
    "encoder.width": Published(768, CODE),
    "encoder.depth": Published(12, CODE),
    "encoder.num_heads": Published(12, CODE),
    "texture_vae.source": Published("file", CONFIG),
    "texture_vae.channels": Published([128, 128, 256, 256, 512], CONFIG),
    "texture_vae.layers_per_block": Published(2, CONFIG),
    "texture_vae.latent_channels": Published(32, PAPER),
    "semantic.kind": Published("semvae", PAPER),
    "semantic.source": Published("train", CODE),
    "semantic.latent_channels": Published(16, PAPER),
    "semantic.width": Published(768, CODE),
    "semantic.depth": Published(4, CODE),
    "semantic.num_heads": Published(6, CODE),
    "semantic.kl_weight": Published(1e-7, CODE),
    "semantic.cosine_over": Published(
        "tokens",
        CODE,
        "per token, as in the authors' own evaluation; along the tokens, as in their training code, may be a slip",
    ),
    "semantic.training.num_steps": Published(1_000_000, CODE),
    "semantic.training.batch_size": Published(64, CODE),
    "semantic.training.learning_rate": Published(5e-5, CODE),
    "semantic.training.warmup_steps": Published(500, CODE),
    "semantic.training.warmup_from": Published(0.01, CODE),
    "semantic.training.decay": Published("cosine", CODE),
    "semantic.training.decay_start": Published(800_000, CODE),
    "semantic.training.decay_to": Published(0.1, CODE),
    "semantic.training.weight_decay": Published(0.01, CODE),
    "semantic.training.ema_decay": Published(0.0, CODE),
    "semantic.training.precision": Published("bf16", CODE, BF16),
    "features.max_images": Published(1_281_167, CODE),
    "features.crop": Published("centre", CODE),
    "features.mirror": Published(False, CODE),
    "latents.statistics_images": Published(10_000, CODE),
    "latents.store_features": Published(True, CODE),
    "latents.semantic_posterior": Published("sample", CODE),
    "latents.quadrants": Published(False, CODE),
}

_MODEL = {
    "diffusion.source": Published("train", PAPER),
    "diffusion.model.backbone": Published("lightningdit", PAPER),
    "diffusion.model.size": Published("XL", PAPER),
    "diffusion.model.patch_size": Published(1, PAPER),
    "diffusion.model.use_rmsnorm": Published(True, CONFIG),
    "diffusion.model.use_qknorm": Published(True, CONFIG),
    "diffusion.model.use_swiglu": Published(True, CONFIG),
    "diffusion.model.use_rope": Published(True, CONFIG),
    "diffusion.model.use_shift": Published(True, CONFIG),
    "diffusion.model.condition": Published("class", PAPER),
    "diffusion.model.class_dropout": Published(0.1, CODE),
    "schedule.kind": Published("offset", PAPER),
    "schedule.tau": Published(0.3, PAPER),
}

_LOSS = {
    "diffusion.loss.velocity_weight": Published(1.0, CODE),
    "diffusion.loss.semantic_weight": Published(2.0, PAPER),
    "diffusion.loss.channel_weights": Published("none", CODE),
    "diffusion.loss.cosine_weight": Published(1.0, CODE),
    "diffusion.loss.cosine_floor": Published(
        1e-8,
        CODE,
        "a fresh model predicts zero; with the published floor its first gradient is 1e7 times the usual one, and Adam remembers it for "
        "thousands of steps",
    ),
    "diffusion.loss.repa_weight": Published(1.0, CODE),
    "diffusion.loss.repa_loss": Published("cosine", CODE),
    "diffusion.loss.repa_depth": Published(2, CONFIG),
    "diffusion.loss.repa_projector": Published("mlp", CODE),
    "diffusion.loss.repa_width": Published(2048, CODE),
    "diffusion.loss.repa_target": Published("stored", CODE),
    "diffusion.loss.repa_target_norm": Published("none", CODE),
    "diffusion.loss.timestep_sampling": Published("joint", CODE),
    "diffusion.loss.time_mean": Published(0.0, CODE),
    "diffusion.loss.time_std": Published(1.0, CODE),
}

_TRAINING = {
    "diffusion.training.num_steps": Published(400_000, PAPER),
    "diffusion.training.batch_size": Published(256, CONFIG),
    "diffusion.training.optimizer": Published("adamw", CODE),
    "diffusion.training.learning_rate": Published(1e-4, CONFIG),
    "diffusion.training.warmup_steps": Published(0, CODE),
    "diffusion.training.decay": Published("constant", CODE),
    "diffusion.training.beta2": Published(0.999, CONFIG),
    "diffusion.training.weight_decay": Published(0.0, CODE),
    "diffusion.training.ema_decay": Published(0.9999, CODE),
    "diffusion.training.max_grad_norm": Published(None, CONFIG),
    "diffusion.training.precision": Published("bf16", CODE, BF16),
}

_SAMPLING = {
    "sample.num_images": Published(50_000, PAPER),
    "sample.class_mix": Published("balanced", CONFIG),
    "sample.sampler": Published("dopri5", CONFIG),
    "sample.rule": Published(
        "published",
        CONFIG,
        "`exact` integrates each phase by itself: 9.0e-6 from the true solution with 48 evaluations, not 3.7e-2 with 194 (docs/benchmarks.md)",
    ),
    "sample.timestep_shift": Published(0.0, CONFIG),
    "sample.guidance.kind": Published("none", CONFIG),
    "runtime.sample.batch_size": Published(
        4, CONFIG, "larger batches are faster; dopri5 then chooses other steps, within its tolerance"
    ),
}

SFD_XL = Run("SFD-XL, 80 epochs, unguided", _DATA | _NETWORKS | _MODEL | _LOSS | _TRAINING | _SAMPLING)

_NO_SEMANTICS = {
    "encoder.source": Published("none", PAPER),
    "semantic.kind": Published("none", PAPER),
    "schedule.kind": Published("sync", PAPER),
    "latents.store_features": Published(False, PAPER),
    "diffusion.loss.repa_weight": Published(0.0, PAPER),
}

_SEFI = {
    "data.image_size": 1024,
    "encoder.source": "pretrained",
    "encoder.name": "vit_large_patch14_reg4_dinov2.lvd142m",
    "encoder.input_size": 896,
    "encoder.patch_size": 14,
    "encoder.width": 1024,
    "encoder.depth": 24,
    "encoder.num_heads": 16,
    "texture_vae.source": "file",
    "texture_vae.latent_channels": 128,
    "text.source": "pretrained",
    "text.name": "Qwen/Qwen3-VL-2B-Instruct",
    "text.width": 6144,
    "text.max_tokens": 512,
    "text.hidden_layers": [9, 18, 27],
    "text.chat_template": True,
    "text.attend_padding": True,
    "semantic.kind": "semvae",
    "semantic.source": "file",
    "semantic.latent_channels": 16,
    "semantic.width": 1024,
    "semantic.depth": 4,
    "semantic.num_heads": 8,
    "latents.semantic_posterior": "mean",
    "schedule.kind": "offset",
    "schedule.tau": 0.1,
    "diffusion.model.backbone": "flux2",
    "diffusion.model.size": "1b",
    "diffusion.model.condition": "text",
    "diffusion.model.class_dropout": 0.1,
    "diffusion.loss.velocity_weight": 1.0,
    "diffusion.loss.semantic_weight": 1.0,
    "diffusion.loss.cosine_weight": 0.0,
    "diffusion.loss.repa_weight": 0.0,
    "diffusion.loss.timestep_sampling": "joint",
    "diffusion.loss.time_mean": -1.532,
    "diffusion.loss.time_std": 1.0,
    "diffusion.lora.rank": 16,
    "diffusion.lora.alpha": 16,
    "diffusion.training.num_steps": 10_000,
    "diffusion.training.batch_size": 8,
    "diffusion.training.optimizer": "adamw",
    "diffusion.training.learning_rate": 1e-4,
    "diffusion.training.warmup_steps": 1000,
    "diffusion.training.decay": "constant",
    "diffusion.training.beta2": 0.999,
    "diffusion.training.weight_decay": 0.01,
    "diffusion.training.ema_decay": 0.0,
    "diffusion.training.max_grad_norm": 1.0,
    "sample.sampler": "euler",
    "sample.num_steps": 50,
    "sample.rule": "exact",
    "sample.timestep_shift": 0.3,
    "sample.guidance.kind": "cfg",
    "sample.guidance.scale_texture": 4.0,
    "sample.guidance.scale_semantic": 4.0,
}
SEFI_1B = Run(
    "SeFi-Image-1B-Base, trained on by adapters",
    {key: Published(value, SEFI_CODE) for key, value in _SEFI.items()}
    | {
        "seed": Published(4237, SEFI_CODE, "the seed of the other presets"),
        "diffusion.training.precision": Published("bf16", SEFI_CODE, BF16),
    },
    inherits=False,
)

RUNS: dict[str, Run] = {
    "imagenet256-sfd-xl": SFD_XL,
    "imagenet256-sfd-xl-lr2e-4": Run(
        "SFD-XL, 80 epochs, the second recipe (`train_80ep_lr2e-4`)",
        {
            "diffusion.training.learning_rate": Published(2e-4, CODE),
            "diffusion.training.beta2": Published(0.95, CODE),
            "diffusion.loss.repa_weight": Published(0.5, CODE),
            "diffusion.loss.repa_loss": Published("cosine_mse", CODE),
        },
    ),
    "imagenet256-lwd-xl": Run(
        "LWD-XL, 80 epochs, unguided: SFD-XL along a learnt curve",
        {
            "schedule.kind": Published("learnt", LWD),
            "schedule.tau": Published("none", LWD, "kind `learnt` does not read it"),
            "schedule.learnt.probe_steps": Published(10_000, LWD),
            "diffusion.loss.timestep_sampling": Published("per_part", LWD),
        },
    ),
    "imagenet256-sfd-b": Run("SFD-B, 80 epochs, unguided", {"diffusion.model.size": Published("B", PAPER)}),
    "imagenet256-sfd-l": Run("SFD-L, 80 epochs, unguided", {"diffusion.model.size": Published("L", PAPER)}),
    "imagenet256-sfd-1p0b": Run("SFD-1.0B, 80 epochs, unguided", {"diffusion.model.size": Published("1p0B", PAPER)}),
    "imagenet256-autoguidance-b": Run(
        "the weak model of AutoGuidance for SFD-XL",
        {
            "diffusion.training.num_steps": Published(
                400_000, CONFIG, "only the weights after 70,000 steps are used, and later steps do not change them"
            ),
        },
    ),
    "imagenet256-lightningdit-xl": Run(
        "the paper's baseline LightningDiT-XL/1; that it has the settings of SFD-XL is our reading", _NO_SEMANTICS
    ),
    "imagenet256-lightningdit-xl-repa": Run(
        "the paper's baseline LightningDiT-XL/1 with REPA; that it has the settings of SFD-XL is our reading",
        {
            "encoder.source": Published("pretrained", PAPER),
            "latents.store_features": Published(True, PAPER),
            "diffusion.loss.repa_weight": Published(1.0, PAPER),
        },
    ),
    "imagenet256-dit-xl": Run(
        "DiT-XL/2 by DDPM",
        {
            "data.image_size": Published(256, "arXiv 2212.09748"),
            "data.mirror": Published(True, "arXiv 2212.09748"),
            "texture_vae.latent_channels": Published(4, "arXiv 2212.09748"),
            "semantic.kind": Published("none", "arXiv 2212.09748"),
            "schedule.kind": Published("sync", "arXiv 2212.09748"),
            "diffusion.model.size": Published("XL", "arXiv 2212.09748"),
            "diffusion.model.patch_size": Published(2, "arXiv 2212.09748"),
            "diffusion.model.use_rmsnorm": Published(False, "arXiv 2212.09748"),
            "diffusion.model.use_qknorm": Published(False, "arXiv 2212.09748"),
            "diffusion.model.use_swiglu": Published(False, "arXiv 2212.09748"),
            "diffusion.model.use_rope": Published(False, "arXiv 2212.09748"),
            "diffusion.model.use_shift": Published(True, "arXiv 2212.09748"),
            "diffusion.model.class_dropout": Published(0.1, "arXiv 2212.09748"),
            "diffusion.training.batch_size": Published(256, "arXiv 2212.09748"),
            "diffusion.training.optimizer": Published("adamw", "arXiv 2212.09748"),
            "diffusion.training.learning_rate": Published(1e-4, "arXiv 2212.09748"),
            "diffusion.training.warmup_steps": Published(0, "arXiv 2212.09748"),
            "diffusion.training.weight_decay": Published(0.0, "arXiv 2212.09748"),
            "diffusion.training.ema_decay": Published(0.9999, "arXiv 2212.09748"),
            "sample.num_images": Published(50_000, "arXiv 2212.09748"),
            "sample.sampler": Published(
                "DDPM, 250 steps", "arXiv 2212.09748", "flow matching in place of DDPM, so that the presets compare"
            ),
        },
        inherits=False,
    ),
    "imagenet256-redi-xl": Run(
        "ReDi on SiT-XL/2 and an f8d4 VAE",
        {
            "semantic.kind": Published("pca", "arXiv 2504.16064"),
            "semantic.latent_channels": Published(8, "arXiv 2504.16064"),
            "schedule.kind": Published("sync", "arXiv 2504.16064"),
            "texture_vae.latent_channels": Published(4, "arXiv 2504.16064", "the texture latents of the other presets"),
            "diffusion.model.backbone": Published("SiT", "arXiv 2504.16064", OWN_BACKBONE),
            "diffusion.model.size": Published("XL", "arXiv 2504.16064"),
            "diffusion.model.patch_size": Published(2, "arXiv 2504.16064", OWN_BACKBONE),
        },
        inherits=False,
    ),
    "imagenet256-redi-sfd": Run("none with published settings", inherits=False),
    "imagenet256-vavae": Run(
        "LightningDiT-XL/1 on VA-VAE's latents, 64 epochs",
        {
            "data.image_size": Published(256, "arXiv 2501.01423"),
            "texture_vae.latent_channels": Published(32, "arXiv 2501.01423"),
            "semantic.kind": Published("none", "arXiv 2501.01423"),
            "diffusion.model.size": Published("XL", "arXiv 2501.01423"),
            "diffusion.model.patch_size": Published(1, "arXiv 2501.01423"),
            "diffusion.model.use_rmsnorm": Published(True, "arXiv 2501.01423"),
            "diffusion.model.use_qknorm": Published(False, "arXiv 2501.01423", OWN_BACKBONE),
            "diffusion.model.use_swiglu": Published(True, "arXiv 2501.01423"),
            "diffusion.model.use_rope": Published(True, "arXiv 2501.01423"),
            "diffusion.model.use_shift": Published(True, "arXiv 2501.01423"),
            "diffusion.training.num_steps": Published(80_000, "arXiv 2501.01423", OWN_RECIPE),
            "diffusion.training.batch_size": Published(1024, "arXiv 2501.01423", OWN_RECIPE),
            "diffusion.training.optimizer": Published("adamw", "arXiv 2501.01423"),
            "diffusion.training.learning_rate": Published(2e-4, "arXiv 2501.01423", OWN_RECIPE),
            "diffusion.training.beta2": Published(0.95, "arXiv 2501.01423", OWN_RECIPE),
            "sample.num_images": Published(50_000, "arXiv 2501.01423"),
            "sample.sampler": Published("euler", "arXiv 2501.01423", "the sampler of the other presets"),
            "sample.timestep_shift": Published(0.3, "arXiv 2501.01423", "the sampler of the other presets"),
        },
        inherits=False,
    ),
    "imagenet256-vavae-sfd": Run("none with published settings", inherits=False),
    "imagenet512-sfd-xl": Run(
        "none: the paper stops at 256 pixels; the training code also makes latents of 512",
        {
            "data.image_size": Published(512, CODE),
            "encoder.input_size": Published(224, CODE),
            "latents.quadrants": Published(True, CODE),
        },
        inherits=False,
    ),
    "sefi-1b": SEFI_1B,
}
"""Preset to the published run that it stands for."""

NOT_READ = "not read by this preset"
NO_RESULT = "changes no result beyond rounding"
OURS = "ours; nothing comparable is published"

WITHOUT: dict[str, str] = {
    "data": "where the images are, and which files are refused",
    "encoder": NOT_READ,
    "texture_vae": NOT_READ,
    "texture_vae.name": "where the weights come from",
    "texture_vae.file": "where the weights come from",
    "judges": NOT_READ,
    "judges.0.source": "where the weights come from",
    "judges.0.name": "its name in metrics",
    "features": OURS,
    "features.shard_size": NO_RESULT,
    "text": "read by models that are told words alone",
    "text.store_tokens": NO_RESULT,
    "semantic": NOT_READ,
    "semantic.training": "torch's default, or nothing to train",
    "latents": OURS,
    "latents.shard_size": NO_RESULT,
    "schedule": NOT_READ,
    "diffusion": NOT_READ,
    "diffusion.model": NOT_READ,
    "diffusion.loss": OURS,
    "diffusion.training": NOT_READ,
    "diffusion.training.keep_every": NO_RESULT,
    "diffusion.training.more_ema_decays": "averages beside the published one",
    "diffusion.training.accumulation_steps": NO_RESULT,
    "sample": NOT_READ,
    "sample.step": "all of the training",
    "evaluate": OURS,
    "register": OURS,
    "tune": OURS,
    "tracking": "names in MLflow",
    "quality": "checks, which change no result",
    "runtime": NO_RESULT,
}
"""What to say of a key without a published value: that of its longest beginning here."""
