"""params.yaml and the complete presets write out every option; the list of options is frozen."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from changed_params import DIGITS, leaves
from support import REPOSITORY

from sfd.params import (
    HalvingParams,
    LearntParams,
    LoraParams,
    ModelSize,
    SpaceParams,
    SparseDeepParams,
    TokenRoutingParams,
    describe_params,
    dump_params,
    load_params,
    parse_params,
)
from sfd.sizes import SIZES

FILES = [
    REPOSITORY / "params.yaml",
    *(REPOSITORY / f"presets/{name}.yaml" for name in ("digits", "imagenet256-sfd-xl")),
]
"""The complete ones; see tests/test_preset.py for the overlays."""
NETWORKS = ["encoder", "texture_vae", "judges.N", "text", "semantic", "diffusion"]
KEYS = """
NETWORK.training.accumulation_steps
NETWORK.training.batch_size
NETWORK.training.beta2
NETWORK.training.decay
NETWORK.training.decay_start
NETWORK.training.decay_to
NETWORK.training.ema_decay
NETWORK.training.learning_rate
NETWORK.training.max_grad_norm
NETWORK.training.num_steps
NETWORK.training.precision
NETWORK.training.warmup_from
NETWORK.training.warmup_steps
NETWORK.training.weight_decay
data.caption_column
data.captions
data.duplicates
data.holdout_fraction
data.image_column
data.image_size
data.label_column
data.labels
data.layout
data.max_pixels
data.max_rejected_fraction
data.mirror
data.revision
data.root
data.source
data.split
data.uncaptioned
diffusion.file
diffusion.init_from
diffusion.init_statistics
diffusion.lora.alpha
diffusion.lora.rank
diffusion.loss.channel_weights
diffusion.loss.cosine_floor
diffusion.loss.cosine_weight
diffusion.loss.repa_depth
diffusion.loss.repa_loss
diffusion.loss.repa_projector
diffusion.loss.repa_target
diffusion.loss.repa_target_norm
diffusion.loss.repa_weight
diffusion.loss.repa_width
diffusion.loss.semantic_weight
diffusion.loss.time_mean
diffusion.loss.time_std
diffusion.loss.timestep_sampling
diffusion.loss.velocity_weight
diffusion.model.backbone
diffusion.model.class_dropout
diffusion.model.condition
diffusion.model.patch_size
diffusion.model.shared_modulation
diffusion.model.size
diffusion.model.text_attention
diffusion.model.use_qknorm
diffusion.model.use_rmsnorm
diffusion.model.use_rope
diffusion.model.use_shift
diffusion.model.use_swiglu
diffusion.other_networks
diffusion.source
diffusion.sparse_deep.first_blocks
diffusion.sparse_deep.full_token_steps
diffusion.sparse_deep.last_blocks
diffusion.sparse_deep.path_drop
diffusion.sparse_deep.share
diffusion.token_routing.first_blocks
diffusion.token_routing.last_blocks
diffusion.token_routing.share
diffusion.training.keep_every
diffusion.training.more_ema_decays
diffusion.training.optimizer
encoder.depth
encoder.file
encoder.input_size
encoder.name
encoder.num_heads
encoder.patch_size
encoder.source
encoder.width
evaluate.cmmd
evaluate.density
evaluate.kid_subset_size
evaluate.kid_subsets
evaluate.memorisation
evaluate.min_images.class_accuracy
evaluate.min_images.fd
evaluate.min_images.inception_score
evaluate.min_images.kid
evaluate.min_images.memorised_fraction
evaluate.min_images.precision
evaluate.min_images.swap_accuracy
evaluate.min_images.text_agreement
evaluate.neighbours
evaluate.reference
evaluate.swap_images
evaluate.swaps
features.crop
features.max_images
features.mirror
features.shard_size
judges.N.channels
judges.N.file
judges.N.input_size
judges.N.kind
judges.N.model
judges.N.name
judges.N.source
latents.quadrants
latents.semantic_posterior
latents.shard_size
latents.statistics_images
latents.store_features
quality.encoder_accuracy
quality.explained_variance
quality.images_per_class
quality.judge_accuracy
quality.psnr_gain
quality.scored_images
quality.ssim_gain
quality.text_retrieval
register.alias
register.gates.KEY.improve
register.gates.KEY.limit
register.gates.KEY.reference
register.name
register.other_data
runtime.NETWORK.checkpoint_every
runtime.NETWORK.compile
runtime.NETWORK.log_every
runtime.NETWORK.num_workers
runtime.diffusion.activation_checkpointing
runtime.diffusion.grid_every
runtime.diffusion.grid_images
runtime.diffusion.heldout_every
runtime.diffusion.heldout_images
runtime.diffusion.sharding
runtime.evaluate.batch_size
runtime.evaluate.compile
runtime.evaluate.num_workers
runtime.evaluate.precision
runtime.features.batch_size
runtime.features.compile
runtime.features.num_workers
runtime.features.precision
runtime.latents.batch_size
runtime.latents.compile
runtime.latents.num_workers
runtime.latents.precision
runtime.sample.batch_size
runtime.sample.compile
runtime.sample.precision
sample.class_mix
sample.ema_decay
sample.guidance.end_semantic
sample.guidance.end_texture
sample.guidance.kind
sample.guidance.negative_prompt
sample.guidance.scale_semantic
sample.guidance.scale_texture
sample.guidance.start_semantic
sample.guidance.start_texture
sample.guidance.weak_model
sample.num_images
sample.num_steps
sample.other_networks
sample.prompts
sample.rule
sample.sampler
sample.schedule
sample.step
sample.times
sample.timestep_shift
schedule.gamma
schedule.kind
schedule.knots
schedule.learnt.energy_weight
schedule.learnt.learning_rate
schedule.learnt.pieces
schedule.learnt.probe_size
schedule.learnt.probe_steps
schedule.learnt.repeats
schedule.tau
seed
semantic.cosine_over
semantic.depth
semantic.file
semantic.kind
semantic.kl_weight
semantic.latent_channels
semantic.num_heads
semantic.source
semantic.width
text.attend_padding
text.chat_template
text.depth
text.file
text.hidden_layers
text.max_tokens
text.name
text.num_heads
text.shard_size
text.source
text.store_tokens
text.vocabulary
text.width
texture_vae.adversarial_weight
texture_vae.alignment.adaptive
texture_vae.alignment.cosine_margin
texture_vae.alignment.cosine_weight
texture_vae.alignment.distance_margin
texture_vae.alignment.distance_weight
texture_vae.alignment.weight
texture_vae.block_size
texture_vae.channels
texture_vae.file
texture_vae.kl_weight
texture_vae.latent_channels
texture_vae.layers_per_block
texture_vae.name
texture_vae.perceptual_weight
texture_vae.residual_width
texture_vae.source
tracking.experiment
tracking.required
tune.confirm_repeats
tune.halving.base_steps
tune.halving.first_steps
tune.heartbeat_seconds
tune.kind
tune.minutes
tune.num_images
tune.objectives
tune.pruner
tune.refine_steps
tune.repeats
tune.report_every
tune.sampler
tune.space.KEY.choices
tune.space.KEY.high
tune.space.KEY.log
tune.space.KEY.low
tune.space.KEY.step
tune.start
tune.storage
tune.study
tune.trials
""".split()
"""The frozen surface of params.yaml, sorted; a change here is a change for every user."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_is_valid_and_writes_out_every_field(file: Path) -> None:
    params = load_params(file)
    written = yaml.safe_load(file.read_text())
    space = written["tune"].pop("space")
    assert all(set(limits) <= set(SpaceParams.model_fields) for limits in space.values())
    dumped = params.model_dump(by_alias=True)
    dumped["tune"].pop("space")
    assert sorted(leaves(written)) == sorted(leaves(dumped))


def test_the_digits_preset_is_the_params_file_that_is_shipped() -> None:
    assert (REPOSITORY / "presets/digits.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()


def test_the_imagenet_preset_is_the_papers_xl_run_and_names_its_result_and_source() -> None:
    file = REPOSITORY / "presets/imagenet256-sfd-xl.yaml"
    comment = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "3.53" in comment and "2512.04926" in comment
    params = load_params(file)
    diffusion = params.diffusion
    assert (diffusion.model.size, params.schedule.kind, params.schedule.tau) == ("XL", "offset", 0.3)
    assert (diffusion.loss.velocity_weight, diffusion.loss.semantic_weight) == (1.0, 2.0)
    assert (diffusion.loss.cosine_weight, diffusion.loss.repa_weight) == (1.0, 1.0)
    assert (diffusion.loss.repa_depth, diffusion.loss.repa_width) == (2, 2048)
    training = diffusion.training
    assert (training.num_steps, training.batch_size, training.learning_rate) == (400_000, 256, 1e-4)
    assert (training.decay, training.weight_decay, training.ema_decay) == ("constant", 0.0, 0.9999)
    assert (training.beta2, training.max_grad_norm, training.precision) == (0.999, None, "auto")
    assert (params.sample.num_images, params.sample.sampler, params.sample.guidance.kind) == (50_000, "dopri5", "none")
    semantic, recipe = params.semantic, params.semantic.training
    assert (semantic.num_heads, semantic.kl_weight, recipe.num_steps, recipe.batch_size) == (6, 1e-7, 1_000_000, 64)
    assert (recipe.learning_rate, recipe.warmup_steps, recipe.warmup_from) == (5e-5, 500, 0.01)
    assert (recipe.decay, recipe.decay_start, recipe.decay_to) == ("cosine", 800_000, 0.1)
    assert (recipe.weight_decay, recipe.ema_decay) == (0.01, 0.0)
    assert params.first_judge.name == "inception"
    assert params.encoder.input_size // params.encoder.patch_size == 16


def test_what_is_printed_reads_back_as_the_same_parameters() -> None:
    for file in FILES:
        params = load_params(file)
        assert parse_params(yaml.safe_load(dump_params(params))) == params


def test_the_keys_are_exactly_these_so_that_growth_is_a_decision() -> None:
    expanded = [key.replace("NETWORK", network) for key in KEYS for network in (NETWORKS if "NETWORK" in key else [""])]
    expanded = [key.replace("runtime.judges.N.", "runtime.judge.") for key in expanded]  # for all judges
    assert sorted(KEYS) == KEYS
    dumped = parse_params(DIGITS).model_dump(by_alias=True)
    for section, mapping in (("tune", "space"), ("register", "gates")):
        dumped[section][mapping] = {"KEY": next(iter(dumped[section][mapping].values()))}
    dumped["diffusion"]["lora"] = LoraParams().model_dump()
    dumped["diffusion"]["token_routing"] = TokenRoutingParams().model_dump()
    dumped["diffusion"]["sparse_deep"] = SparseDeepParams(full_token_steps=0).model_dump()
    dumped["schedule"]["learnt"] = LearntParams().model_dump()
    dumped["text"]["training"] = dumped["encoder"]["training"]
    dumped["tune"]["halving"] = HalvingParams(base_steps=1, first_steps=1).model_dump()
    assert sorted(leaves(dumped)) == sorted(expanded)


def test_the_description_lists_every_field_once_and_says_what_network_stands_for() -> None:
    table = describe_params()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("|` ") for row in rows) == KEYS
    assert all(len(row) == 4 and row[3].strip(" |") for row in rows)
    assert f"`NETWORK` is one of {', '.join(f'`{name}`' for name in NETWORKS)}." in table.splitlines()[-1]


def test_sizes_have_one_list_and_the_description_agrees_with_it() -> None:
    assert list(get_args(ModelSize)) == list(SIZES)
    assert "XL 1152x28x16" in describe_params()
