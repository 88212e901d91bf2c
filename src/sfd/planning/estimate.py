"""``sfd estimate``: parameters, floating-point operations, memory, disk and hours of every stage, before anything is started."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sfd.bench.networks import LatentShape, bench_config, latent_shape
from sfd.bench.workloads import measure_latents, measure_sample, measure_train
from sfd.data.latents import HELDOUT_IMAGES
from sfd.errors import UserError
from sfd.models.backbone import build_backbone
from sfd.names import SAMPLERS
from sfd.params import Params, Precision, TrainingParams
from sfd.pipeline.inputs import STAGES
from sfd.pipeline.schedule import probe_training
from sfd.pipeline.stage import PARALLEL
from sfd.pipeline.text_encoder import MOST_IMAGES
from sfd.planning import devices, flops
from sfd.planning.devices import BF16, FLOAT32, READ_PER_CORE, Device, device_named
from sfd.planning.needs import (
    ACTIVATION_BYTES,
    Numbers,
    image_gb,
    image_numbers,
    result_bytes,
    text_encoder_gb,
    tokens,
)
from sfd.tables import as_text
from sfd.training.optimizer import block_matrices
from sfd.workspace import Workspace

ORDER = list(STAGES)
"""Of the stages in the graph."""
START_SECONDS = 10.0
"""Importing and reading what a stage needs; by judgement."""
CHECK_STEPS = 3
CHECK_BATCH = 4
"""Measured steps, and images per step on a CPU, of ``--check``."""


@dataclass(frozen=True)
class Work:
    """What one stage does.

    Attributes:
        stage: its name.
        what: in words.
        count: images that its networks see, each view and each pass counted.
        per_image: floating-point operations per such image; 0 where no network runs.
        reads: image files that it reads.
        job: how they run, of :data:`sfd.planning.devices.REACHED`.
        dtype: of its products.
    """

    stage: str
    what: str
    count: float = 0.0
    per_image: float = 0.0
    reads: float = 0.0
    job: str = "inference"
    dtype: str = FLOAT32

    @property
    def flops(self) -> float:
        """Floating-point operations of the stage."""
        return self.count * self.per_image

    def seconds(self, device: Device, num_devices: int) -> float:
        """On so many devices, if its stage can be shared by them: starting, computing and reading images, which a GPU does at the same time."""
        computing = self.flops / device.flops(self.dtype, self.job)
        reading = self.reads / (READ_PER_CORE * device.cores)
        busy = max(computing, reading) if device.is_gpu else computing + reading
        return START_SECONDS + busy / (num_devices if self.stage in PARALLEL else 1)


@dataclass(frozen=True)
class Counted:
    """What the networks of a params file compute per image, and how many images of training and held out there are; None: it is not known.

    ``num_muon``: parameters of the diffusion model that Muon trains, with one average each where AdamW keeps two moments.
    """

    params: Params
    shape: LatentShape
    num_parameters: int
    num_muon: int
    num_images: Numbers | None
    train_step: float
    evaluation: int
    evaluations: int
    encode: int
    decode: int

    @property
    def draw(self) -> float:
        """Operations of drawing one image."""
        return self.evaluations * self.evaluation + self.decode


def count(params: Params, workspace: Workspace) -> Counted:
    """Counts everything. Raises :class:`UserError` if the parameters' networks do not fit together."""
    resolved = workspace.resolve_paths(params)
    shape = latent_shape(resolved)
    with torch.device("meta"):
        network = build_backbone(bench_config(resolved, shape))
    encode, decode = flops.texture(resolved, shape)
    is_muon = resolved.diffusion.training.optimizer == "muon"
    return Counted(
        params=resolved,
        shape=shape,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_muon=sum(weight.numel() for weight in block_matrices(network).values()) if is_muon else 0,
        num_images=image_numbers(params, workspace),
        train_step=flops.train_step(resolved, shape),
        evaluation=flops.evaluation(resolved, shape),
        evaluations=flops.evaluations(resolved),
        encode=encode,
        decode=decode,
    )


def works(counted: Counted, device: Device) -> Iterator[Work]:
    """What every stage does. Without a known number of images, the stages that depend on it are left out."""
    params, runtime = counted.params, counted.params.runtime
    vae, semantic = params.texture_vae, flops.semantic(params, counted.shape)
    vae_step = flops.texture_step(params, counted.encode + counted.decode)
    judges = {each.name: flops.judge(params, each) for each in params.judges}
    features, samples = flops.features(params), params.sample.num_images
    yield _training(
        "encoder",
        params.encoder.source,
        params.encoder.training,
        flops.encoder_step(params),
        device,
        runtime.encoder.compile,
    )
    if params.diffusion.model.condition == "text":
        text = params.text
        yield _training("text", text.source, text.training, flops.text_step(params), device, runtime.text.compile)
    yield _training("texture_vae", vae.source, vae.training, vae_step, device, runtime.texture_vae.compile)
    for each in params.judges:
        step = (1 + flops.BACKWARD) * judges[each.name] if each.source == "train" else 0
        yield _training("judge", f"{each.name}, {each.source}", each.training, step, device, runtime.judge.compile)
    if counted.num_images is not None:
        yield from _reading(counted, counted.num_images, features, semantic[0], list(judges.values()), device)
    step = flops.semantic_step(params, sum(semantic))
    yield _training("semantic", params.semantic.kind, params.semantic.training, step, device, runtime.semantic.compile)
    yield _schedule(counted, device)
    diffusion, compiled = params.diffusion, runtime.diffusion.compile
    if diffusion.source == "file":
        yield Work("diffusion", "file")
    else:
        yield _training("diffusion", diffusion.model.size, diffusion.training, counted.train_step, device, compiled)
    yield Work(
        "sample",
        f"{samples:,} images, {counted.evaluations} evaluations",
        samples,
        counted.draw,
        dtype=_dtype(runtime.sample.precision, device),
    )
    yield Work(
        "evaluate",
        f"judges {samples:,} samples",
        samples,
        sum(judges.values()),
        samples,
        dtype=_dtype(runtime.evaluate.precision, device),
    )


def _schedule(counted: Counted, device: Device) -> Work:
    """The probe of a learnt schedule, with all its repeats; nothing for a given one."""
    params, learnt = counted.params, counted.params.schedule.learnt
    if learnt is None:
        return Work("schedule", params.schedule.kind)
    size, training = learnt.probe_size or params.diffusion.model.size, probe_training(params, learnt)
    training = training.model_copy(update={"num_steps": learnt.repeats * training.num_steps})
    step = flops.probe_step(params, learnt, counted.shape)
    return _training("schedule", f"learnt, {size}", training, step, device, params.runtime.diffusion.compile)


def _reading(
    counted: Counted, numbers: Numbers, features: int, semantic: int, judges: list[int], device: Device
) -> Iterator[Work]:
    """The stages that read the images. ``features``, ``semantic``, ``judges``: operations per image of these networks, of each judge."""
    params, runtime, (train, heldout) = counted.params, counted.params.runtime, numbers
    views = train * (1 + params.data.mirror)
    yield Work("prepare", f"reads {train + heldout:,} images", reads=train + heldout)
    if params.diffusion.model.condition == "text" and params.encoder.source != "none":
        seen = min(train, MOST_IMAGES) + min(heldout, HELDOUT_IMAGES)
        yield Work("text", f"features of {seen:,} images", seen, flops.encoder_features(params), seen)
    if params.semantic.kind != "none":
        seen = min(train, params.features.max_images)
        both = seen * (1 + (params.data.mirror and params.features.mirror))
        dtype = _dtype(runtime.features.precision, device)
        yield Work("features", f"of {both:,} views", both, features, seen, dtype=dtype)
    encoded = min(heldout, HELDOUT_IMAGES)
    per_view = counted.encode + params.latents.tiles**2 * features + semantic
    dtype = _dtype(runtime.latents.precision, device)
    yield Work("latents", f"of {views + encoded:,} views", views + encoded, per_view, train + encoded, dtype=dtype)
    # All judges see the held-out images and the floors: training images, and their reconstructions. The first sees all training images
    # where copies of them are looked for.
    floor, everything = min(params.sample.num_images, train), params.evaluate.memorisation
    first = heldout + floor + (views if everything else floor)
    operations = first * judges[0] + (heldout + 2 * floor) * sum(judges[1:]) + floor * (counted.encode + counted.decode)
    reads = heldout + floor + (train if everything else floor)
    dtype = _dtype(runtime.evaluate.precision, device)
    yield Work("reference", f"judges {first:,} images", first, operations / max(1, first), reads, dtype=dtype)


def _training(
    stage: str, what: str, training: TrainingParams | None, step: float, device: Device, is_compiled: bool
) -> Work:
    """A stage that trains a network, or takes one that others trained. ``step``: operations per image."""
    job = "compiled training" if is_compiled else "training"
    if training is None or not step:
        return Work(stage, what)
    return Work(
        stage,
        f"{what}, {training.num_steps:,} steps of batch {training.batch_size}",
        training.num_steps * training.batch_size,
        step,
        job=job,
        dtype=_dtype(training.precision, device),
    )


def _dtype(precision: Precision, device: Device) -> str:
    """As :func:`sfd.precision.computing_type` decides on a GPU with bf16, or on a CPU."""
    return BF16 if precision == "bf16" or (precision == "auto" and device.is_gpu) else FLOAT32


def measured_seconds(params: Params, device: Device) -> dict[str, float]:
    """Seconds per image of training, sampling and encoding, as ``sfd bench`` measures them, with few steps."""
    batch = None if device.is_gpu else CHECK_BATCH
    found = {
        "latents": measure_latents(params, batch, CHECK_STEPS),
        "diffusion": measure_train(params, batch, CHECK_STEPS),
        "sample": measure_sample(params, batch, CHECK_STEPS),
    }
    return {stage: 1 / measured[0].images_per_second for stage, measured in found.items()}


def estimate(params: Params, workspace: Workspace, name: str | None, num_devices: int, check: bool) -> str:
    """The tables, and what they assume.

    Args:
        params: of a preset or a project.
        workspace: whose root paths are relative to.
        name: the device; None: the one at hand.
        num_devices: how many share the stages that several processes can share.
        check: measure this machine, too.

    Raises:
        UserError: there is no such device, or ``check`` is asked for another device than the one at hand; or as :func:`count`.
    """
    device = device_named(name)
    if check and device.name != devices.at_hand():
        raise UserError(f"--check measures this machine, and {device.name} is not its device; leave one of the two out")
    counted = count(params, workspace)
    in_order = sorted(works(counted, device), key=lambda work: ORDER.index(work.stage))
    measured = measured_seconds(counted.params, device) if check else {}
    tables = [list(_stage_rows(counted, in_order, device, num_devices, measured))]
    if params.diffusion.source == "train":
        tables.append(list(_memory_rows(counted, device, num_devices)))
    return "\n\n".join([_head(counted), *map(as_text, tables), _assumptions(counted, in_order, device, num_devices)])


def _head(counted: Counted) -> str:
    shape = counted.shape
    return (
        f"diffusion model {counted.params.diffusion.model.size}: {counted.num_parameters:,} parameters; latents {shape.latent}, "
        f"{tokens(counted.params, shape)} tokens\n"
        f"GFLOP per image: training step {counted.train_step / 1e9:,.4g}, one evaluation {counted.evaluation / 1e9:,.4g}, "
        f"encoding texture {counted.encode / 1e9:,.4g}, decoding it {counted.decode / 1e9:,.4g}"
    )


def _stage_rows(
    counted: Counted, in_order: list[Work], device: Device, num_devices: int, measured: dict[str, float]
) -> Iterator[list[str]]:
    """Of each stage; the last column is the measured time per image divided by the estimated one."""
    num_train = 0 if counted.num_images is None else counted.num_images[0]
    sizes = result_bytes(counted.params, counted.shape, num_train, counted.num_parameters)
    yield ["stage", "what", "TFLOP", "hours", "GB on disk", *(["measured / estimated"] if measured else [])]
    hours = 0.0
    for work in in_order:
        spent = work.seconds(device, num_devices) / 3600
        hours += spent
        row = [work.stage, work.what, f"{work.flops / 1e12:,.4g}" if work.flops else "-", f"{spent:,.3g}"]
        row.append(f"{sizes[work.stage] / 1e9:,.3g}" if sizes.get(work.stage) else "-")
        if measured:
            row.append(_ratio(work, device, measured))
        yield row
    yield ["all", "", "", f"{hours:,.3g}", f"{sum(sizes.values()) / 1e9:,.3g}", *([""] if measured else [])]


def _ratio(work: Work, device: Device, measured: dict[str, float]) -> str:
    """Measured by estimated time per image; "-" for a stage that was not measured."""
    if work.stage not in measured:
        return "-"
    return f"{measured[work.stage] * device.flops(work.dtype, work.job) / work.per_image:.2f}"


def _memory_rows(counted: Counted, device: Device, num_devices: int) -> Iterator[list[str]]:
    """Of a training step on one device."""
    params, number = counted.params, counted.num_parameters / 1e9
    training = params.diffusion.training
    is_sharded = params.runtime.diffusion.sharding == "fsdp"
    share = num_devices if is_sharded else 1
    batch = training.batch_size / num_devices / training.accumulation_steps
    activations = batch * image_gb(params, counted.shape, on_gpu=device.is_gpu)
    averages = 1 + len(training.more_ema_decays)
    parts = {
        "weights": 4 * number / share,
        "gradients": 4 * number / share,
        f"moments of the optimizer, {training.optimizer}": (8 * number - 4 * counted.num_muon / 1e9) / share,
        "averages of the weights": 4 * averages * number / share,
        f"activations of {batch:g} images": activations,
    }
    if params.encodes_captions:
        parts["text encoder"] = text_encoder_gb(params)
    yield ["memory of a training step of diffusion, per device", "GB"]
    for name, size in parts.items():
        yield [name, f"{size:,.2f}"]
    total = sum(parts.values())
    yield ["all", f"{total:,.2f} of {device.memory_gb:,.0f}{'' if total <= device.memory_gb else ': too much'}"]


def _assumptions(counted: Counted, in_order: list[Work], device: Device, num_devices: int) -> str:
    """What the hours rest on."""
    jobs = sorted({(work.job, work.dtype) for work in in_order if work.per_image})
    speeds = ", ".join(f"{job} in {dtype} {device.flops(dtype, job) / 1e12:,.3g}" for job, dtype in jobs)
    lines = [
        f"{num_devices} x {device.name}: {device.bf16 / 1e12:,.4g} TFLOP/s in bf16 and {device.float32 / 1e12:,.4g} in float32 ({device.source}); "
        f"taken as reached, TFLOP/s: {speeds}",
        f"images are read at {READ_PER_CORE:g} per second and CPU core, by {device.cores} cores per device"
        + (", while networks compute" if device.is_gpu else ""),
        f"activations: {ACTIVATION_BYTES[device.is_gpu, counted.params.runtime.diffusion.compile]} bytes per image, block, token and channel, "
        "from measured peaks without activation checkpointing (docs/benchmarks.md)",
    ]
    if counted.num_images is None:
        lines.append("the number of images is not known, so the stages that read them are left out")
    if counted.params.encodes_captions and counted.params.text.source != "train":
        lines.append(
            "the text encoder reads the captions of each batch (text.store_tokens: false); its time and memory are not counted, for its size is "
            "not known before it is fetched"
        )
    if SAMPLERS[counted.params.sample.sampler].adaptive:
        lines.append(f"an adaptive sampler is taken to need {flops.ADAPTIVE_EVALUATIONS} evaluations per trajectory")
    if counted.params.sample.guidance.kind == "autoguidance":
        lines.append(
            "the weak model of AutoGuidance is taken to cost as much as the model, so sampling takes less if it is smaller"
        )
    return "assumed\n" + "\n".join(f"  {line}" for line in lines)
