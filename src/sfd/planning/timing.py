"""A few real steps of the candidate networks on this machine, on random images and weights, in seconds of time in all."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn

from sfd.bench.measure import time_steps
from sfd.bench.networks import LatentShape, latent_shape, random_encoder, text_network
from sfd.bench.workloads import measure_latents, measure_sample, measure_train
from sfd.encoders.judges.judge import judge_class, load_judge
from sfd.encoders.tokenizers.residual import ResidualDecoder
from sfd.encoders.vision import TrainableEncoder
from sfd.params import Params, TrainingParams, with_values
from sfd.pixels import to_pixels
from sfd.precision import Inference, bf16_pays
from sfd.processes import inference_device
from sfd.seeding import generator
from sfd.sizes import SIZES

STEPS = 3
"""Measured steps of each kind, after as many to warm up; medians count."""
SLOW_STEP = 0.3
"""After a step that took so many seconds, larger sizes are not timed: their time follows from their number of weights."""
BF16_GAIN = 0.95
"""A training is in bf16 on a CPU if a step takes at most this share of one in float32: small networks lose more by the casts than they gain."""
BATCH = 16
"""Images per call of a frozen network."""
_IMPORTS = "import mlflow, timm, diffusers, sfd.pipeline.stage"


@dataclass(frozen=True)
class Timings:
    """Seconds.

    Attributes:
        start: a stage needs to start.
        read: reading an image.
        step: a training step of the diffusion model, by size, in the quicker precision.
        draw: drawing an image, by size.
        encode: making the latents of one view of an image.
        features: the encoder alone.
        judge: the judge's features of an image.
        encoder_step: a training step of an encoder that is trained here; else 0.
        judge_step: the same of the judge.
        tokenizer_step: the same of the network on top of principal components.
        text_step: the same of a text encoder.
        fit: a view's share in fitting the semantic components.
        tokens: latent positions of an image.
        latent_channels: of texture and semantics.
        feature_dim: channels of the encoder's features; 0 without.
        step_fp32: a training step in float32 of the sizes that a CPU trains in bf16.
    """

    start: float
    read: float
    step: dict[str, float]
    draw: dict[str, float]
    encode: float
    features: float
    judge: float
    encoder_step: float = 0.0
    judge_step: float = 0.0
    tokenizer_step: float = 0.0
    text_step: float = 0.0
    fit: float = 0.0
    tokens: int = 64
    latent_channels: int = 20
    feature_dim: int = 0
    step_fp32: dict[str, float] = field(default_factory=dict)

    def step_of(self, size: str) -> float:
        """Of a training step in any size: that of the nearest size in :attr:`step`, in proportion to the weights."""
        weight = _weight(size)
        nearest = min(self.step, key=lambda known: abs(log(_weight(known) / weight)))
        return self.step[nearest] * weight / _weight(nearest)


def time_networks(params: Params, sizes: tuple[str, ...], read: float) -> Timings:
    """Times the networks of these parameters, and the diffusion model in each of the sizes. ``read``: seconds to read an image."""
    shape = latent_shape(params)
    step, draw, step_fp32 = _time_sizes(params, sizes)
    encoder_step = judge_step = 0.0
    if params.encoder.source == "train":
        encoder = TrainableEncoder(params.encoder, 2, params.seed)
        encoder_step = _step_seconds(encoder, params, params.encoder.training)
    if params.first_judge.source == "train":
        judge = judge_class(params.first_judge.kind).trainable(params.first_judge, 2, params.seed)
        judge_step = _step_seconds(judge, params, params.first_judge.training)
    return Timings(
        start=_start_seconds(),
        read=read,
        step=step,
        draw=draw,
        encode=1 / measure_latents(params, BATCH, STEPS)[0].images_per_second,
        features=_features_seconds(params),
        judge=_judge_seconds(params),
        encoder_step=encoder_step,
        judge_step=judge_step,
        tokenizer_step=_tokenizer_step_seconds(params),
        text_step=_text_step_seconds(params),
        fit=_fit_seconds(shape),
        tokens=shape.grid**2,
        latent_channels=shape.latent[0],
        feature_dim=shape.feature_dim,
        step_fp32=step_fp32,
    )


def _time_sizes(params: Params, sizes: tuple[str, ...]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Seconds by size: ``step``, ``draw`` and ``step_fp32`` of :class:`Timings`."""
    step: dict[str, float] = {}
    draw: dict[str, float] = {}
    step_fp32: dict[str, float] = {}
    largest = sizes[0]
    tries_bf16 = inference_device().type == "cpu" and bf16_pays()
    for size in sizes:
        if step and step[largest] > SLOW_STEP:
            for known in (step, draw, step_fp32):
                if largest in known:
                    known[size] = known[largest] * _weight(size) / _weight(largest)
            continue
        largest, sized = size, with_values(params, {"diffusion.model.size": size})
        step[size], draw[size] = _train_seconds(sized), _draw_seconds(sized)
        if tries_bf16:
            rounded = _train_seconds(with_values(sized, {"diffusion.training.precision": "bf16"}))
            if rounded <= BF16_GAIN * step[size]:
                step[size], step_fp32[size] = rounded, step[size]
    return step, draw, step_fp32


def _train_seconds(params: Params) -> float:
    return measure_train(params, None, STEPS)[0].median_seconds


def _weight(size: str) -> int:
    """In proportion to the weights of a size."""
    width, depth, _ = SIZES[size]
    return depth * width**2


def _median(call: Callable[[], object]) -> float:
    return statistics.median(time_steps(call, STEPS))


def _draw_seconds(params: Params) -> float:
    """Per image: the decoder's share from the difference of two numbers of steps, as drawing with all of them would take too long."""
    few, more = 2, 4
    seconds = {}
    for steps in (few, more):
        shorter = with_values(params, {"sample.num_steps": steps})
        seconds[steps] = measure_sample(shorter, BATCH, STEPS)[0].median_seconds
    per_step = max(0.0, (seconds[more] - seconds[few]) / (more - few))
    return (seconds[few] + per_step * (params.sample.num_steps - few)) / BATCH


def _fit_seconds(shape: LatentShape) -> float:
    """Per view: the covariance of its features."""
    if not shape.feature_dim:
        return 0.0
    tokens = torch.randn(BATCH * shape.grid**2, shape.feature_dim, dtype=torch.float64)
    return _median(lambda: tokens.T @ tokens) / BATCH


def _images(params: Params, count: int) -> Tensor:
    size, random = params.data.image_size, generator(params.seed, "planning/images")
    shape = (count, 3, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=random).to(inference_device())


def _features_seconds(params: Params) -> float:
    """Per image; 0 where no encoder is used."""
    if not params.needs_features:
        return 0.0
    inference, images = Inference.of(params.runtime.features), _images(params, BATCH)
    encoder = inference.place(random_encoder(params.encoder, params.seed))
    return _median(lambda: encoder(images)) / BATCH


def _judge_seconds(params: Params) -> float:
    """Per image. A judge that others trained is loaded as stage ``judge`` loads it."""
    chosen = params.first_judge
    kind, images, inference = judge_class(chosen.kind), _images(params, BATCH), Inference.of(params.runtime.evaluate)
    if chosen.source == "train":
        network = inference.function(inference.place(kind.trainable(chosen, 2, params.seed).eval()))
        with torch.no_grad():
            return _median(lambda: network(to_pixels(images))) / BATCH
    with tempfile.TemporaryDirectory() as folder:
        kind.save_pretrained(Path(folder), chosen)
        judge = inference.place(load_judge(Path(folder)))
    return _median(lambda: judge(images)) / BATCH


def _tokenizer_step_seconds(params: Params) -> float:
    """A training step of the network on top of principal components; 0 without one."""
    vae = params.texture_vae
    if not vae.is_fitted or vae.training is None:
        return 0.0
    return _step_seconds(ResidualDecoder(vae.block_size, vae.residual_width), params, vae.training)


def _step_seconds(network: nn.Module, params: Params, training: TrainingParams | None) -> float:
    """A training step of a small network: forward, backward, AdamW."""
    assert training is not None  # a rule of the parameters
    pixels = to_pixels(_images(params, training.batch_size))
    return _update_seconds(network, lambda: network(pixels))


def _text_step_seconds(params: Params) -> float:
    """A training step of a text encoder, on captions of a third of the most tokens; 0 where none is trained."""
    text = params.text
    if params.diffusion.model.condition != "text" or text.source != "train" or text.training is None:
        return 0.0
    network = text_network(params)
    assert network is not None
    shape = (text.training.batch_size, max(2, text.max_tokens // 3))
    ids, mask = (torch.ones(shape, dtype=dtype, device=inference_device()) for dtype in (torch.int64, torch.bool))
    return _update_seconds(network, lambda: network(ids, mask))


def _update_seconds(network: nn.Module, forward: Callable[[], Tensor]) -> float:
    network.train().to(inference_device())
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        forward().square().mean().backward()
        optimizer.step()

    return _median(step)


def _start_seconds() -> float:
    """Importing what every stage imports, in a process of its own."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - started
