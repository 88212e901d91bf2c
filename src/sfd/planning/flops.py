"""Floating-point operations of the networks of a params file, counted by torch from shapes alone: nothing is computed or downloaded."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sfd.bench.measure import count_flops
from sfd.bench.networks import (
    LatentShape,
    bench_config,
    bench_schedule,
    random_encoder,
    random_semantic,
    random_texture_vae,
    text_network,
    text_of,
)
from sfd.bench.workloads import OneBatch, training_flops
from sfd.diffusion.guidance import guided_velocity
from sfd.encoders.judges.clip import clip_images
from sfd.encoders.judges.judge import judge_class
from sfd.encoders.semantic.encoder import semantic_class
from sfd.encoders.timm_networks import describe, judge_network, rebuild
from sfd.encoders.tokenizers.residual import ResidualDecoder
from sfd.encoders.vision import TrainableEncoder
from sfd.generation.images import build_sampler, build_scales
from sfd.generation.schedules import build_schedule, middle_schedule
from sfd.models.backbone import build_backbone
from sfd.models.conditions import placeholder
from sfd.names import SAMPLERS
from sfd.params import JudgeParams, LearntParams, Params
from sfd.pipeline.diffusion import wants_features
from sfd.pipeline.schedule import probe_params

ADAPTIVE_EVALUATIONS = 100
"""Evaluations of the network per trajectory that an adaptive solver is taken to need; they depend on the weights. The digits need 120, guided."""
BACKWARD = 2
"""Operations of a backward pass, in forward passes; for the small networks, which are counted forward only."""


def train_step(params: Params, shape: LatentShape) -> float:
    """Of a training step of the diffusion model, per image: forward and backward, and reading its caption where no tokens are stored.

    On average over the training, whose last steps show all tokens to all blocks with ``diffusion.sparse_deep``.
    """
    image = OneBatch(shape, 1, wants_features(params, "stored"), params.seed, text_of(params))
    first, sparse = training_flops(params, shape, image), params.diffusion.sparse_deep
    reading = text_forward(params) if params.encodes_captions else 0
    if sparse is None or sparse.full_token_steps == 0:
        return reading + first
    steps = params.diffusion.training.num_steps
    share = sparse.full_token_steps / steps
    return reading + (1 - share) * first + share * training_flops(params, shape, image, at_step=steps - 1)


def probe_step(params: Params, learnt: LearntParams, shape: LatentShape) -> float:
    """Of a step of the probe that learns the schedule, per image."""
    return train_step(probe_params(params, learnt), shape)


def evaluation(params: Params, shape: LatentShape) -> int:
    """Of one evaluation of the diffusion model, per image."""
    with torch.device("meta"):
        network = build_backbone(bench_config(params, shape)).eval()
    x, t = torch.empty(1, *shape.latent, device="meta"), torch.empty(1, device="meta")
    condition = placeholder(network.config.condition, 1).to("meta")
    return _count(partial(network, x, t, t, condition))


def evaluations(params: Params) -> int:
    """Evaluations of a network per image that sampling needs, those of guidance included. A weak model counts as much as the strong one."""
    schedule = (
        build_schedule(params.sample.schedule) if params.sample.schedule else middle_schedule(bench_schedule(params))
    )
    scales, calls = build_scales(params.sample.guidance), 0

    def network(x: Tensor, _t_tex: Tensor, _t_sem: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    if SAMPLERS[params.sample.sampler].adaptive:
        return ADAPTIVE_EVALUATIONS * (2 if scales.active else 1)
    build_sampler(params.sample)(guided_velocity(network, network, scales, 1), torch.zeros(1, 2, 1, 1), schedule, 1)
    return calls


def features(params: Params) -> int:
    """Of the vision encoder, per view of an image; 0 where nothing needs it."""
    return _encoder(params) if params.needs_features else 0


def encoder_features(params: Params) -> int:
    """Of the vision encoder, per image, whatever needs it."""
    return _encoder(params)


def _encoder(params: Params) -> int:
    with torch.device("meta"):
        encoder = random_encoder(params.encoder, params.seed)
    return _count(partial(encoder, _image(params)))


def encoder_step(params: Params) -> int:
    """Of a training step of a vision encoder that is trained here, per image; 0 if it is not."""
    if params.encoder.source != "train":
        return 0
    with torch.device("meta"):
        network = TrainableEncoder(params.encoder, 2, params.seed)
    return (1 + BACKWARD) * _count(partial(network, _image(params).float()))


def text_step(params: Params) -> int:
    """Of a training step of a text encoder that is trained here, per caption; 0 if none is."""
    return (1 + BACKWARD) * text_forward(params)


def text_forward(params: Params) -> int:
    """Of a text encoder that is trained here, per caption of the most tokens; 0 if none is."""
    with torch.device("meta"):
        network = text_network(params)
        ids = torch.zeros(1, params.text.max_tokens, dtype=torch.int64)
    if network is None or not params.is_told_words:
        return 0
    return _count(partial(network, ids, torch.ones_like(ids, dtype=torch.bool)))


def texture(params: Params, shape: LatentShape) -> tuple[int, int]:
    """Of the texture VAE: encoding a view of an image, and decoding a latent. One that others trained has the widths of the parameters."""
    chosen = params.texture_vae
    if chosen.source in ("pretrained", "file"):
        unread = {"source": "file", "file": "not read", "latent_channels": shape.texture_channels}
        chosen = chosen.model_copy(update=unread)
    with torch.device("meta"):
        vae = random_texture_vae(chosen, params.seed)
        latent = torch.empty(1, shape.texture_channels, shape.grid, shape.grid)
    noise = torch.empty(vae.latent_shape(1, params.data.image_size), device="meta")
    return _count(partial(vae.encode, _image(params), noise)), _count(partial(vae.decode, latent))


def texture_step(params: Params, both: int) -> int:
    """Of a training step of the texture VAE, or of the network on a fitted one, per image; 0 if none is trained. ``both``: of its two parts."""
    chosen = params.texture_vae
    if not chosen.is_trained:
        return 0
    compared = _encoder(params) if chosen.needs_encoder else 0
    if chosen.perceptual_weight > 0.0:
        compared *= 3  # the features of the reconstruction as well, and back to its pixels: the encoder is frozen
    if chosen.alignment.weight > 0.0 and chosen.alignment.adaptive:
        compared += (
            BACKWARD * both // 2
        )  # the gradient of the reconstruction at the encoder's end: once more through the decoder
    if chosen.source == "train":
        return (1 + BACKWARD) * both + compared
    with torch.device("meta"):
        network = ResidualDecoder(chosen.block_size, chosen.residual_width)
    return (1 + BACKWARD) * _count(partial(network, _image(params).float())) + compared


def semantic_step(params: Params, both: int) -> int:
    """Of a training step of the semantic encoder, per view of an image; 0 if none is trained. ``both``: of its two parts."""
    chosen = params.semantic
    if chosen.kind == "none" or chosen.file is not None or not semantic_class(chosen.kind).is_trained:
        return 0
    return (1 + BACKWARD) * both


def semantic(params: Params, shape: LatentShape) -> tuple[int, int]:
    """Of the semantic encoder, per view of an image: encoding features, and giving them back; 0 without one."""
    if params.semantic.kind == "none":
        return 0, 0
    with torch.device("meta"):
        network = random_semantic(params, shape.feature_dim)
        found = torch.empty(1, *shape.features)
        latent = torch.empty(1, shape.features[0], shape.semantic_channels)
    return _count(partial(network.encode, found)), _count(partial(network.decode, latent))


def judge(params: Params, chosen: JudgeParams) -> int:
    """Of a judge, per image."""
    with torch.device("meta"):
        if chosen.kind == "inception":  # the same layers; torch-fidelity's own needs its weights
            from torchvision.models import inception_v3

            network, size = inception_v3(weights=None, aux_logits=False, init_weights=False).eval(), 299
            return _count(partial(network, torch.empty(1, 3, size, size)))
        if chosen.source == "train":
            network = judge_class(chosen.kind).trainable(chosen, 2, params.seed).eval()
            return _count(partial(network, _image(params).float()))
        if chosen.kind == "clip":
            return _count(clip_images(chosen))
        network = rebuild(describe(judge_network(chosen)))
        return _count(partial(network, torch.empty(1, 3, chosen.input_size, chosen.input_size)))


def _image(params: Params) -> Tensor:
    size = params.data.image_size
    return torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta")


def _count(call: Callable[[], object]) -> int:
    with torch.no_grad():
        return count_flops(call)
