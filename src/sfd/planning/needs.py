"""``sfd preset check``: what a preset needs of a machine, and what the machine has, before anything starts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from sfd.bench.networks import LatentShape, bench_config, latent_shape, text_network
from sfd.data.sources.arrangement import split_of
from sfd.models.backbone import build_backbone
from sfd.names import HELDOUT, TRAIN
from sfd.params import Params
from sfd.planning.machine import Machine, hub_copy, read_machine, url_answers
from sfd.preset import load_preset
from sfd.preset_use import with_own_data
from sfd.sizes import SIZES
from sfd.tables import as_text
from sfd.workspace import Workspace

IMAGENET = 1_281_167, 50_000
"""Training and validation images of ImageNet, which are not counted: a walk through so many files takes minutes."""
DIGITS = 1797
"""Images of the built-in data set."""
Numbers = tuple[int, int]
"""Of training and of held-out images."""
SECTIONS = ("encoder", "text", "texture_vae", "judges", "semantic", "diffusion", "sample", "evaluate")
"""Sections that may name files."""
STATE_BYTES, CHECKPOINT_BYTES, WEIGHT_BYTES = 20, 16, 4
"""Per parameter: while it is trained (weights, gradient, average, two moments), in a checkpoint, and in a model; float32."""
ACTIVATION_BYTES = {(True, True): 46, (True, False): 75, (False, True): 150, (False, False): 150}
"""Per image, block, token and channel in a training step, by (on a GPU, compiled). From the peaks of two trainings of SFD-XL on an H200
(docs/benchmarks.md): 35.1 and 49.6 GiB with 64 images. On a CPU, in float32, twice as much: by judgement."""
PROGRAM_GB = 4.0
"""Host memory of Python, libraries and loaders; by judgement."""
PNG_BYTES = 2
"""Of a sample, per pixel; by judgement."""
CPU_FLOPS, MOST_CPU_DAYS = 1e11, 14
"""What a few CPU cores compute per second, and the days of training from which on a GPU is needed."""


@dataclass(frozen=True)
class Need:
    """One line of the check. ``remedy``: what to do; empty where nothing is missing."""

    subject: str
    needed: str
    found: str
    remedy: str = ""


def check_preset(name: str, workspace: Workspace, own: Params | None) -> tuple[str, bool]:
    """A table of what the preset needs and what is there, and whether all is there.

    Args:
        workspace: whose root paths are relative to; its disk counts.
        own: the parameters of the project, whose ``data`` a preset would leave as it is if it is no preset's; None outside of a project.

    Raises:
        UserError: there is no preset of that name.
    """
    params = load_preset(name)
    if own is not None:
        params = with_own_data(params, own)
    found = needs(params, workspace, read_machine(workspace.root))
    rows = [["", "needed", "found", "what to do"]]
    rows += [[need.subject, need.needed, need.found, need.remedy] for need in found]
    missing = [need.subject for need in found if need.remedy]
    verdict = f"missing: {', '.join(missing)}" if missing else "nothing is missing"
    return f"{as_text(rows)}\n\n{verdict}", not missing


def needs(params: Params, workspace: Workspace, machine: Machine) -> list[Need]:
    """Everything that the parameters need: files, disk, memory, hubs."""
    images, numbers = _images(params, workspace)
    num_train = None if numbers is None else numbers[0]
    shape = latent_shape(workspace.resolve_paths(params))
    with torch.device("meta"):
        network = build_backbone(bench_config(params, shape))
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    return [
        *images,
        *_files(params, workspace),
        _disk(params, machine, shape, num_train, num_parameters),
        *_memory(params, machine, shape, num_parameters),
        *_hubs(params, machine),
    ]


def _images(params: Params, workspace: Workspace) -> tuple[list[Need], Numbers | None]:
    """The images, and their numbers; None if these are not known."""
    data = params.data
    if data.source == "digits":
        return [Need("images", "built in", "built in")], _divided(DIGITS, params)
    root = workspace.resolve(data.root)
    if data.source == "huggingface" and not root.exists():
        return [], None  # a name on the hub, see _hubs
    needed = f"{data.root}, with train/ and val/ of class folders" if data.layout == "splits" else data.root
    if not root.exists():
        return [Need("images", needed, "no such folder or file", "put them there, or change data.root")], _expected(
            params
        )
    if data.layout == "splits":
        return [_split_folders(root, needed)], _expected(params) or (_count(root, TRAIN), _count(root, HELDOUT))
    count = _count(root)
    found = "nothing in it" if count == 0 else f"{count:,} files"
    remedy = "put them there, or change data.root" if count == 0 else ""
    holds_one_each = data.source == "folder"  # the files of other sources hold many
    return [Need("images", needed, found, remedy)], _divided(count, params) if holds_one_each else None


def image_numbers(params: Params, workspace: Workspace) -> Numbers | None:
    """The numbers of training and held-out images, as nearly as they are known without reading them; None if they are not."""
    return _images(params, workspace)[1]


def _divided(count: int, params: Params) -> Numbers:
    """``count`` images, divided as ``data.holdout_fraction`` says."""
    heldout = round(params.data.holdout_fraction * count)
    return count - heldout, heldout


def _expected(params: Params) -> Numbers | None:
    """ImageNet's numbers, if the parameters read it as the presets do."""
    is_imagenet = params.data.layout == "splits" and (params.tracking.experiment or "").startswith("sfd-imagenet")
    return IMAGENET if is_imagenet else None


def _split_folders(root: Path, needed: str) -> Need:
    counts = {TRAIN: 0, HELDOUT: 0}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = split_of(folder.name)
        if split is not None:
            counts[split] += sum(entry.is_dir() for entry in os.scandir(folder))
    found = f"{counts[TRAIN]:,} class folders of training, {counts[HELDOUT]:,} of held-out images"
    return Need("images", needed, found, "" if all(counts.values()) else "put the images of both splits there")


def _count(root: Path, split: str | None = None) -> int:
    """Files at or below a path; of one split: in the folders of this one that are named so."""
    if split is not None:
        return sum(_count(folder) for folder in root.iterdir() if folder.is_dir() and split_of(folder.name) == split)
    return sum(len(files) for _, _, files in os.walk(root)) if root.is_dir() else 1


def _files(params: Params, workspace: Workspace) -> Iterator[Need]:
    """The files and folders that the parameters name."""
    for section in SECTIONS:
        for path in params.paths(section):
            is_there = workspace.resolve(path).exists()
            remedy = "" if is_there else "see `sfd preset show`: Before the first run, Reference"
            yield Need(section, str(path), "there" if is_there else "no such file or folder", remedy)


def _disk(params: Params, machine: Machine, shape: LatentShape, num_train: int | None, num_parameters: int) -> Need:
    """Room for the results of all stages."""
    subject, found = "disk", f"{machine.disk_gb:,.0f} GB free"
    if num_train is None:
        return Need(subject, "depends on the number of images", found)
    sizes = {name: size / 1e9 for name, size in result_bytes(params, shape, num_train, num_parameters).items()}
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items() if size >= 0.5)
    needed = f"{total:,.1f} GB" + (f": {parts}" if parts else "")
    return Need(subject, needed, found, "free some, or use another disk" if total > machine.disk_gb else "")


def result_bytes(params: Params, shape: LatentShape, num_train: int, num_parameters: int) -> dict[str, int]:
    """Bytes of the large results, by stage."""
    views = 1 + params.data.mirror
    feature, encoder = 2 * prod(shape.features), params.encoder
    seen = (
        2 * (encoder.input_size // encoder.patch_size) ** 2 * shape.feature_dim
    )  # stage `features` knows no quadrants
    stored = min(num_train, params.features.max_images) if params.semantic.kind != "none" else 0
    latent = 2 * prod(shape.latent) + (feature if params.latents.store_features else 0)
    training, sample = params.diffusion.training, params.sample
    kept = 0 if training.keep_every is None else training.num_steps // training.keep_every
    on_the_way = 0 if params.diffusion.source == "file" else 2 * CHECKPOINT_BYTES + kept * WEIGHT_BYTES
    text = params.text
    has_tokens = params.is_told_words and text.store_tokens
    return {
        **({"text": 2 * num_train * text.max_tokens * text.width} if has_tokens else {}),
        "features": stored * (1 + (params.data.mirror and params.features.mirror)) * seen,
        "latents": num_train * views * latent,
        "diffusion": num_parameters * (WEIGHT_BYTES + on_the_way),
        "sample": sample.num_images * PNG_BYTES * params.data.image_size**2,
        "register": num_parameters * WEIGHT_BYTES,
    }


def _memory(params: Params, machine: Machine, shape: LatentShape, num_parameters: int) -> Iterator[Need]:
    """Memory of a training step of the diffusion model, the largest of all, and of the host."""
    training, runtime = params.diffusion.training, params.runtime.diffusion
    flops = 6.0 * num_parameters * tokens(params, shape) * training.num_steps * training.batch_size
    days, host = flops / CPU_FLOPS / 86_400, PROGRAM_GB + num_parameters * CHECKPOINT_BYTES / 1e9
    if machine.gpu is None and days > MOST_CPU_DAYS:
        found = f"none; {days:,.0f} days on CPU cores, by estimate"
        yield Need("GPU", "one or more", found, "use a machine with a GPU that torch sees")
    else:
        gpus = max(1, machine.num_gpus)
        state = num_parameters * STATE_BYTES / 1e9 / (gpus if runtime.sharding == "fsdp" else 1)
        state += text_encoder_gb(params)
        image = image_gb(params, shape, on_gpu=machine.gpu is not None)
        batch = training.batch_size / gpus / training.accumulation_steps
        if machine.gpu is None:
            host += state + batch * image
            yield Need("GPU", f"none: {days:,.2g} days on CPU cores, by estimate", "none")
        else:
            remedy = (
                "" if state + batch * image <= machine.gpu_memory_gb else _smaller_batch(params, machine, state, image)
            )
            more = ", and the text encoder" if params.encodes_captions and params.text.source != "train" else ""
            needed = f"{state + batch * image:,.0f} GB each, by estimate, with {batch:g} images at a time{more}"
            yield Need("GPU", needed, f"{gpus} x {machine.gpu} of {machine.gpu_memory_gb:,.0f} GB", remedy)
    short = "" if host <= machine.memory_gb else "use a machine with more memory"
    yield Need("memory", f"{host:,.1f} GB, by estimate", f"{machine.memory_gb:,.0f} GB", short)


def text_encoder_gb(params: Params) -> float:
    """Weights of the text encoder beside a training step that encodes captions; 0 for one that others trained, whose size is not known."""
    with torch.device("meta"):
        network = text_network(params) if params.encodes_captions else None
    return 0.0 if network is None else sum(p.numel() for p in network.parameters()) * WEIGHT_BYTES / 1e9


def tokens(params: Params, shape: LatentShape) -> int:
    """Tokens of an image in the backbone."""
    return (shape.grid // params.diffusion.model.patch_size) ** 2


def image_gb(params: Params, shape: LatentShape, *, on_gpu: bool) -> float:
    """What an image adds to the memory of a training step."""
    width, depth, _ = SIZES[params.diffusion.model.size]
    per_value = ACTIVATION_BYTES[on_gpu, params.runtime.diffusion.compile]
    return per_value * depth * width * tokens(params, shape) / 1e9


def _smaller_batch(params: Params, machine: Machine, state: float, image: float) -> str:
    """How the training could fit into the GPUs' memory."""
    share = params.diffusion.training.batch_size // max(1, machine.num_gpus)
    fitting = (parts for parts in range(1, share + 1) if share % parts == 0)
    parts = next((each for each in fitting if state + share / each * image <= machine.gpu_memory_gb), None)
    if parts is None:
        return "use larger GPUs, or several with runtime.diffusion.sharding: fsdp"
    return f"set diffusion.training.accumulation_steps to {parts}, or use more GPUs"


def _hubs(params: Params, machine: Machine) -> Iterator[Need]:
    """What is fetched when it is first used: from the model hub, or from where Inception-v3 is."""
    for subject, repository in _repositories(params):
        copy = hub_copy(repository)
        found = (
            f"in {copy}" if copy else "the hub answers" if machine.has_hub else "not here, and the hub does not answer"
        )
        is_missing = copy is None and not machine.has_hub
        remedy = "connect, or give files: `source: file`" if is_missing else ""
        yield Need(subject, f"{repository} of the hub", found, remedy)
    if any(judge.kind == "inception" and judge.source == "pretrained" for judge in params.judges):
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        answers = url_answers(URL_INCEPTION_V3)
        remedy = "" if answers else "connect, or give files: `source: file`"
        yield Need("judges", URL_INCEPTION_V3, "answers" if answers else "does not answer", remedy)


def _repositories(params: Params) -> Iterator[tuple[str, str]]:
    """Section and repository on the model hub of every pretrained network, and the images' if they have one."""
    if params.encoder.source == "pretrained" and (params.needs_features or params.texture_vae.needs_encoder):
        yield "encoder", f"timm/{params.encoder.name}"
    if params.texture_vae.source == "pretrained":
        yield "texture_vae", str(params.texture_vae.name)
    if params.is_told_words and params.text.source == "pretrained":
        yield "text", str(params.text.name)
    for judge in params.judges:
        if judge.kind == "timm" and judge.source == "pretrained":
            yield "judges", f"timm/{judge.model}"
        if judge.kind == "clip" and judge.source == "pretrained":
            yield "judges", str(judge.model)
    if params.data.source == "huggingface" and not Path(params.data.root).expanduser().exists():
        yield "images", f"datasets/{params.data.root}"
