"""The four jobs: the pipeline's own training loop, generator, encoder and loader, on synthetic data."""

import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sfd.bench.measure import WARM_UP_STEPS, Measurement, count_flops, peak_memory_gib, reset_peak_memory, time_steps
from sfd.bench.networks import (
    LatentShape,
    bench_config,
    bench_schedule,
    latent_shape,
    random_backbone,
    random_composite_encoder,
    random_semantic,
    random_texture_vae,
    text_of,
)
from sfd.data.batches import choose_workers, read_batches
from sfd.data.latents import STATISTICS, ChannelStatistics, LatentBatch, LatentDataset, LatentsIndex
from sfd.data.shards import Shard, shard_bounds, write_index, write_shards
from sfd.encoders.texture_vae import KlVae
from sfd.generation.images import ImageGenerator, image_seed
from sfd.generation.model import DiffusionModel
from sfd.generation.schedules import build_training_schedule
from sfd.models.backbone import Backbone, build_backbone
from sfd.models.conditions import TextFacts, Value, placeholder_encoder
from sfd.models.words import stack_words
from sfd.params import Params
from sfd.pipeline.diffusion import wants_features
from sfd.precision import Inference, computing_type
from sfd.processes import inference_device
from sfd.seeding import generator
from sfd.training.backbone import build_routing
from sfd.training.diffusion import DecodedFeatures, DiffusionTask
from sfd.training.loop import train
from sfd.training.order import SeededBatchSampler


class OneBatch:
    """A data set in memory that returns the same random batch every time. Its captions have all the tokens that they can have."""

    def __init__(
        self, shape: LatentShape, batch_size: int, with_features: bool, seed: int, text: TextFacts | None = None
    ) -> None:
        random = generator(seed, "bench/latents")
        self.null_words = None if text is None else stack_words([torch.zeros(1, text.width)])
        self.batch = LatentBatch(
            torch.randn(batch_size, *shape.latent, generator=random),
            torch.randint(shape.num_classes, (batch_size,), generator=random),
            torch.randn(batch_size, *shape.features, generator=random) if with_features else None,
            None if text is None else stack_words([torch.ones(text.max_tokens, text.width)] * batch_size),
        )

    def __len__(self) -> int:
        return len(self.batch.latents)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        first: LatentBatch = tree_map_only(Tensor, lambda values: values[: len(indices)], self.batch)
        return first


class _Enough(Exception):
    """Ends the loop before its last step, which would write a checkpoint."""


def measure_train(params: Params, batch_size: int | None, num_steps: int) -> list[Measurement]:
    """Measures steps of the training loop of stage ``diffusion``: draws, forward, backward, optimizer, averaging, logged losses.

    All weights are trained; ``init_from`` and ``lora`` are ignored.
    """
    shape = latent_shape(params)
    training = params.diffusion.training
    training = training.model_copy(
        update={
            "batch_size": batch_size or training.batch_size,
            "num_steps": WARM_UP_STEPS + num_steps + 1,
        }
    )
    # The loop waits for the device where it logs.
    runtime = params.runtime.diffusion.model_copy(update={"checkpoint_every": training.num_steps, "log_every": 1})
    with_features = wants_features(params, "stored")
    dataset = OneBatch(shape, training.batch_size, with_features, params.seed, text_of(params))
    network = random_backbone(params, shape)
    network.checkpoint_activations(runtime.activation_checkpointing)
    task = _task(params, network, dataset, shape)
    flops = training.batch_size * training_flops(
        params, shape, OneBatch(shape, 1, with_features, params.seed, text_of(params))
    )
    ends: list[float] = []

    def log(_metrics: dict[str, float], step: int) -> None:
        ends.append(time.perf_counter())
        if step == WARM_UP_STEPS + num_steps:
            raise _Enough

    reset_peak_memory()
    with tempfile.TemporaryDirectory() as work:
        with suppress(_Enough):
            train(task, training, params.seed, Path(work), "bench", log, runtime)
    seconds = [after - before for before, after in zip(ends[:-1], ends[1:], strict=True)][-num_steps:]
    dtype = computing_type(training.precision, inference_device())
    return [Measurement("train", training.batch_size, tuple(seconds), peak_memory_gib(), dtype, flops)]


def _task(params: Params, network: Backbone, dataset: OneBatch, shape: LatentShape) -> DiffusionTask:
    diffusion = params.diffusion
    schedule = build_training_schedule(bench_schedule(params))
    features_of = None
    if wants_features(params, "decoded"):
        # The loop moves the backbone to its device; a backbone on the meta device stays there.
        own = next(network.parameters()).device
        device = own if own.type == "meta" else inference_device()
        decoder = random_semantic(params, shape.feature_dim).to(device)
        tiles = params.latents.tiles
        features_of = DecodedFeatures(decoder, _no_statistics(shape).to(device), shape.semantic_channels, tiles)
    dropout = diffusion.model.class_dropout
    routing = build_routing(diffusion, shape.grid)
    words = dataset.null_words
    return DiffusionTask(
        network, dataset, diffusion.loss, schedule, dropout, params.seed, features_of, routing=routing, null_words=words
    )


def _no_statistics(shape: LatentShape) -> ChannelStatistics:
    """Statistics that leave latents unchanged."""
    return ChannelStatistics(torch.zeros(shape.latent[0]), torch.ones(shape.latent[0]))


def training_flops(params: Params, shape: LatentShape, image: OneBatch, at_step: int = 0) -> int:
    """Floating-point operations of the forward and backward pass of one image, counted from shapes alone.

    ``at_step``: the step of the training, from 0, that decides which tokens the blocks see.
    """
    with torch.device("meta"):
        network = build_backbone(bench_config(params, shape))
    task = _task(params, network, image, shape)
    drawn = image.batch, task.noise(at_step, 1, torch.device("cpu"))
    data, noise = tree_map_only(Tensor, lambda value: value.to("meta"), drawn)

    def step() -> None:
        losses = task.losses(network, data, noise)
        torch.stack([weight * losses[term] for term, weight in task.weights.items()]).sum().backward()

    return count_flops(step)


class NoDecoder(KlVae):
    """Replaces the texture VAE if only the backbone is measured: returns the texture latents unchanged."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity())

    def decode(self, latent: Tensor) -> Tensor:
        return latent


def measure_sample(
    params: Params, batch_size: int | None, num_steps: int, with_decoder: bool = True
) -> list[Measurement]:
    """Measures calls of the generator of stage ``sample``: solver, guidance, decoder. A step is one batch of images."""
    shape, inference = latent_shape(params), Inference.of(params.runtime.sample)
    count = batch_size or params.runtime.sample.batch_size
    network = random_backbone(params, shape).eval().requires_grad_(False)
    model = DiffusionModel(network, bench_schedule(params), _no_statistics(shape))
    decoder = random_texture_vae(params.texture_vae, params.seed) if with_decoder else NoDecoder()
    # For AutoGuidance, this model also stands in for the weak one, which would cost less.
    images = ImageGenerator(model, decoder, inference=inference, encode=placeholder_encoder(model.condition))
    values: list[Value] = [None] * count if model.condition.words else model.condition.plan(count)
    seeds = [image_seed(params.seed, index) for index in range(count)]

    def step() -> None:
        for _ in images.sample(values, seeds, params.sample, count):
            pass

    calls: list[None] = []
    hook = network.register_forward_hook(lambda *_: calls.append(None))
    flops = count_flops(step)
    hook.remove()
    reset_peak_memory()
    seconds = time_steps(step, num_steps)
    name = "sample" if with_decoder else "sample, latents only"
    return [Measurement(name, len(values), seconds, peak_memory_gib(), inference.dtype, flops, len(calls))]


def measure_latents(params: Params, batch_size: int | None, num_steps: int) -> list[Measurement]:
    """Measures calls of the encoder of stage ``latents``; an image and its horizontal flip count as two images."""
    inference = Inference.of(params.runtime.latents)
    encode = random_composite_encoder(params, inference)
    count, size = batch_size or params.runtime.latents.batch_size, params.data.image_size
    random = generator(params.seed, "bench/images")
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=random)

    def step() -> None:
        for values in encode(images, list(range(count))):
            values.half().cpu()

    flops = count_flops(step)
    reset_peak_memory()
    seconds = time_steps(step, num_steps)
    return [Measurement("latents", count, seconds, peak_memory_gib(), inference.dtype, flops)]


def measure_load(params: Params, batch_size: int | None, num_steps: int) -> list[Measurement]:
    """Measures reading batches from shards, without and with features, with as many workers as training has.

    The files are in the page cache.
    """
    shape, num_views = latent_shape(params), 1 + params.data.mirror
    count = batch_size or params.diffusion.training.batch_size
    found = []
    with tempfile.TemporaryDirectory() as folder:
        _write_shards(Path(folder), shape, num_views, max(64, count), params)
        for with_features in (False, True) if params.needs_features else (False,):
            dataset, num_batches = LatentDataset(Path(folder), with_features), WARM_UP_STEPS + num_steps
            order = SeededBatchSampler(params.seed, "bench", len(dataset), count, 0, num_batches, slice(0, count))
            workers = choose_workers(params.runtime.diffusion.num_workers, dataset, len(dataset), count)
            with read_batches(dataset, order, workers) as batches:
                seconds = time_steps(partial(next, batches), num_steps)
            name = "load, latents and features" if with_features else "load, latents"
            found.append(Measurement(name, count, seconds, peak_memory_gib(), torch.float32))
    return found


def _write_shards(folder: Path, shape: LatentShape, num_views: int, num_images: int, params: Params) -> None:
    """Writes the shards that stage ``latents`` would write for ``num_images`` images."""
    random = generator(params.seed, "bench/shards")

    def make(start: int, end: int) -> Shard:
        rows = (end - start, num_views)
        return {
            "latents": torch.randn(*rows, *shape.latent, generator=random).half(),
            "features": torch.randn(*rows, *shape.features, generator=random).half(),
            "labels": torch.randint(shape.num_classes, rows[:1], generator=random),
        }

    bounds = shard_bounds(num_images, min(params.latents.shard_size, (num_images + 3) // 4))
    write_shards(folder, bounds, make, range(len(bounds)))
    write_index(folder, bounds, _latents_index(shape, num_views))
    _no_statistics(shape).save(folder / STATISTICS)


def _latents_index(shape: LatentShape, num_views: int) -> LatentsIndex:
    names = [str(index) for index in range(shape.num_classes)]
    channels = shape.texture_channels, shape.semantic_channels
    return LatentsIndex(num_views, shape.grid, *channels, shape.feature_dim, names, [1] * shape.num_classes, {}, 1)
