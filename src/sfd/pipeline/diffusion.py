"""Stage ``diffusion``: network and data set from the parameters, training with sample grids, and what it leaves."""

import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from sfd.data.latents import LatentDataset
from sfd.data.networks import TEXTURE_VAE, check_networks
from sfd.data.text_tokens import open_captions
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.samplers.euler import Euler
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.terms.velocity import energy_weights
from sfd.encoders.semantic.encoder import load_semantic
from sfd.encoders.texture_vae import load_texture_vae
from sfd.errors import UserError
from sfd.generation.images import ImageGenerator, image_seed, load_words
from sfd.generation.model import DiffusionModel
from sfd.generation.prompts import GRID_PROMPTS, KnownWords
from sfd.generation.schedules import build_training_schedule, middle_schedule
from sfd.models.backbone import Backbone
from sfd.models.text_condition import NO_WORDS
from sfd.names import HELDOUT
from sfd.network_files import network_digest
from sfd.params import DiffusionParams, Params, registered_model
from sfd.pictures import labelled_grid, save_png
from sfd.pipeline.finished import GRIDS, STEPS, entry, keep, take_up
from sfd.pipeline.inputs import resolve_registered
from sfd.pipeline.schedule import with_schedule
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import check_shards
from sfd.processes import inference_device, rank, world_size
from sfd.sizes import USEFUL_IMAGES
from sfd.training.backbone import build_network, build_routing
from sfd.training.captions import words_of
from sfd.training.curves import write_curve
from sfd.training.diffusion import DecodedFeatures, DiffusionTask, needs_features
from sfd.training.finetuning import Start, start_from
from sfd.training.heldout import HeldoutLoss
from sfd.training.loop import Callback, train
from sfd.workspace import Workspace, average_name

GRID_SAMPLER = Sampler(Euler, num_steps=50)
"""Sample grids during training are quick looks, not results."""


def open_latents(params: Params, folder: Path) -> LatentDataset:
    """The latents that stage ``latents`` left in ``folder``, with features if the loss needs the stored ones, and with the captions that stage
    ``text`` left beside if the model is told words."""
    return LatentDataset(folder / "shards", wants_features(params, "stored"), open_captions(params, folder))


def wants_features(params: Params, target: str) -> bool:
    """Whether the loss needs the encoder's features, from this target."""
    loss = params.diffusion.loss
    return loss.repa_target == target and needs_features(loss)


def prepare_network(params: Params, dataset: LatentDataset, seed: int, source: DiffusionModel | None) -> Start:
    """The network to train, from nothing or from a trained model; then ``dataset`` normalises as ``init_statistics`` says.

    Raises :class:`UserError` if parameters, latents and the trained model do not fit.
    """
    network = build_network(params, dataset, seed)
    return Start(network) if source is None else start_from(source, network, dataset, params.diffusion, seed)


def decoded_features(workspace: Workspace, params: Params, dataset: LatentDataset) -> DecodedFeatures | None:
    """The semantic decoder as the source of features, if the loss needs them from there."""
    if not wants_features(params, "decoded"):
        return None
    device = inference_device()
    decoder = load_semantic(workspace.result("semantic") / "model").to(device)
    return DecodedFeatures(decoder, dataset.statistics.to(device), dataset.index.semantic_channels, dataset.index.tiles)


def build_task(
    workspace: Workspace, params: Params, network: Backbone, dataset: LatentDataset, seed: int
) -> DiffusionTask:
    """What the training loop must know. ``network`` then keeps for the backward pass what ``runtime`` says."""
    schedule, diffusion = build_training_schedule(params.schedule), params.diffusion
    network.checkpoint_activations(params.runtime.diffusion.activation_checkpointing)
    features_of = decoded_features(workspace, params, dataset)
    weights = None
    if diffusion.loss.channel_weights == "energy":
        weights = energy_weights(dataset.statistics.std, dataset.index.semantic_channels).to(inference_device())
    return DiffusionTask(
        network,
        dataset,
        diffusion.loss,
        schedule,
        diffusion.model.class_dropout,
        seed,
        features_of,
        weights,
        build_routing(diffusion, dataset.index.grid),
        dataset.null_words,
        words_of(dataset),
    )


def make_diffusion(stage: Stage, source: Path | None = None) -> None:
    """The diffusion model as ``diffusion.source`` says; ``source``: folder of the model to start from."""
    if stage.params.diffusion.source == "train":
        train_diffusion(stage, source)
    elif rank() == 0:
        adopt_diffusion(stage)


def adopt_diffusion(stage: Stage) -> None:
    """Writes the model that `sfd import` made as ``model/``.

    Raises:
        UserError: the folder holds no diffusion model, or one of another schedule, image size or texture VAE than the parameters say.
    """
    folder, params = stage.workspace.resolve(stage.params.diffusion.file or ""), stage.params
    model = DiffusionModel.load(folder)
    decoder = stage.upstream("texture_vae") / "model"
    config, vae = model.network.config, load_texture_vae(decoder)
    if model.schedule_params != params.schedule:
        own = {"offset": "tau", "power": "gamma", "curve": "knots"}.get(model.schedule_params.kind)
        shown = model.schedule_params.model_dump(mode="json")
        theirs = {key: value for key, value in shown.items() if key in ("kind", own)}
        raise UserError(f"the weights in {folder} have the schedule {theirs}: set schedule in params.yaml to that")
    wanted = vae.latent_shape(1, params.data.image_size)[1:]
    found = config.in_channels - config.semantic_channels, config.input_size, config.input_size
    if found != wanted:
        raise UserError(
            f"the weights in {folder} draw texture latents {found}, but images of data.image_size {params.data.image_size} have "
            f"{wanted} in this texture VAE: give texture_vae.file and data.image_size of the same publication"
        )
    said = check_networks(
        f"the model in {folder}",
        model.networks,
        "the result of stage texture_vae",
        {TEXTURE_VAE: network_digest(decoder)},
        (TEXTURE_VAE,),
        "give texture_vae.file of the same publication, or set diffusion.other_networks to true",
        stage.params.diffusion.other_networks,
    )
    if said:
        print(f"diffusion: {said}", file=sys.stderr)
    _leave_model(model, stage)


def train_diffusion(stage: Stage, source: Path | None) -> None:
    """Trains and writes ``model/``, ``curves.*``, ``grids/`` and ``steps/`` (weights that are kept on the way).

    ``averages/`` has ``model/`` and ``steps/`` of each further average of the weights.

    ``source``: folder of the model to start from.
    """
    params, runtime, seed = stage.params.diffusion, stage.params.runtime.diffusion, stage.params.seed
    followed = with_schedule(stage.params, stage.upstream("schedule"))
    dataset = open_latents(followed, stage.upstream("latents"))
    start = prepare_network(followed, dataset, seed, None if source is None else DiffusionModel.load(source))
    network = start.network
    _tell_start(start, stage)
    task = build_task(stage.workspace, followed, network, dataset, seed)
    model = DiffusionModel(network, followed.schedule, dataset.statistics, dataset.index.networks)
    together = runtime.sharding == "ddp"
    grids = SampleGrids(model, stage, runtime.grid_images, together)
    callbacks = [Callback(grids, runtime.grid_every, together=together), *_keep_weights(model, start, stage)]
    read = [dataset]
    if runtime.heldout_every is not None:
        read.append(_open_heldout(stage, dataset))
        heldout = HeldoutLoss(task, read[-1], runtime.heldout_images, together)
        callbacks.append(Callback(heldout, runtime.heldout_every, at_end=False, together=together))
    take_up(stage, runtime.grid_every)
    if rank() == 0:
        grids.show_newest()
        print(f"diffusion: the newest sample grid is {stage.workspace.preview}", file=sys.stderr)
    trained = train(
        task,
        params.training,
        seed,
        stage.work,
        stage.mark,
        stage.log,
        runtime,
        callbacks,
        runtime.sharding,
        params.training.more_ema_decays,
        partial(_check_read, stage.workspace, read),
    )
    if rank() != 0:
        return
    keep(stage)
    for decay, average in trained.more_averages.items():
        replace(model, network=start.merged(average)).save(stage.out / average_name(decay) / "model")
    start.finish(trained)
    stage.workspace.preview.unlink(missing_ok=True)  # the last one is in the result
    _leave_model(model, stage)
    stage.log_input(
        "latents",
        dataset.reader.shards[0].sha256,
        stage.upstream("latents"),
        "training",
        {"num_images": len(dataset.reader)},
    )
    stage.log_artifacts(*write_curve(stage.out, trained.curve))


def _check_read(workspace: Workspace, read: Sequence[LatentDataset]) -> None:
    """Checks the shards of latents and of captions. Raises :class:`UserError` as :func:`check_shards` does."""
    check_shards(workspace, "latents", [each.reader for each in read])
    check_shards(workspace, "text", [each.text.reader for each in read if each.text is not None])


def _open_heldout(stage: Stage, dataset: LatentDataset) -> LatentDataset:
    """Latents of held-out images, normalised as those that the model is trained on."""
    wanted = wants_features(stage.params, "stored")
    folder = stage.upstream("latents")
    heldout = LatentDataset(folder / HELDOUT, wanted, open_captions(stage.params, folder, HELDOUT))
    heldout.statistics = dataset.statistics
    return heldout


def _leave_model(model: DiffusionModel, stage: Stage) -> None:
    """Writes ``model/``, and logs what there is to say of any model, trained here or not."""
    model.save(stage.out / "model")
    stage.log({"parameters": float(sum(p.numel() for p in model.network.parameters()))})


def _tell_start(start: Start, stage: Stage) -> None:
    """Prints and logs what became of the weights that training starts from, and how many parameters it trains."""
    stage.log({"trainable_parameters": float(start.trainable)})
    if rank() != 0:
        return
    if start.transfer is None:
        _tell_short(stage.params.diffusion)
        return
    source = _describe_source(stage.workspace, stage.params.diffusion.init_from or "")
    if stage.run is not None:
        stage.run.log_tags({"sfd.init_from": source})
    lines = [f"starts from {source}", *start.report]
    print("\n".join(f"diffusion: {line}" for line in lines), file=sys.stderr)
    report = stage.out / "start.txt"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    start.transfer.save(stage.out / "start.json")
    stage.log_artifacts(report, stage.out / "start.json")


def _tell_short(params: DiffusionParams) -> None:
    """Says before the training, not after it, that it may be too short for a network of its size."""
    size, training = params.model.size, params.training
    images, useful = training.num_steps * training.batch_size, USEFUL_IMAGES.get(size, 0)
    if images < useful:
        print(
            f"diffusion: note: {training.num_steps:,} steps of {training.batch_size} are {images:,} images, and `sfd init` plans at least {useful:,} "
            f"for size {size} (simple pictures, like digits, need fewer): set diffusion.training.num_steps to "
            f"{math.ceil(useful / training.batch_size):,} for as many",
            file=sys.stderr,
        )


def _describe_source(workspace: Workspace, init_from: str) -> str:
    """The model to start from, with the version that an address means now."""
    if registered_model(init_from) is None:
        return init_from
    return f"{init_from}, version {resolve_registered(workspace, init_from)['version']}"


def _keep_weights(model: DiffusionModel, start: Start, stage: Stage) -> list[Callback]:
    """What keeps the weights of some steps: of each average of them."""
    training = stage.params.diffusion.training
    if training.keep_every is None:
        return []
    places = {None: stage.out} | {decay: stage.out / average_name(decay) for decay in training.more_ema_decays}
    return [
        Callback(KeptWeights(model, start, place / STEPS), training.keep_every, at_end=False, decay=decay)
        for decay, place in places.items()
    ]


class KeptWeights:
    """Writes the averaged weights of some steps, each as a model's folder."""

    def __init__(self, model: DiffusionModel, start: Start, folder: Path) -> None:
        self.model, self.start, self.folder = model, start, folder

    def __call__(self, averaged: nn.Module, step: int) -> None:
        """Writes one folder, in one rename."""
        target = self.folder / entry(step)
        fresh = target.with_suffix(".part")
        replace(self.model, network=self.start.merged(averaged)).save(fresh)
        shutil.rmtree(target, ignore_errors=True)  # written before a kill that its checkpoint did not survive
        fresh.replace(target)


class SampleGrids:
    """Draws the same images, by condition and seed, from the network as training goes on."""

    def __init__(self, model: DiffusionModel, stage: Stage, num_images: int, together: bool) -> None:
        """``together``: all processes call it, and each draws a part of the images."""
        self.together = together
        self.model, self.stage, self.folder = model, stage, stage.out / GRIDS
        self.decoder = load_texture_vae(stage.upstream("texture_vae") / "model")
        if model.condition.words is not None:
            num_images = min(num_images, GRID_PROMPTS)
        # As many of each value as fit, value by value.
        planned = Counter(model.condition.plan(num_images))
        self.per_row = min(planned.values())
        self.values = [value for value in planned for _ in range(self.per_row)]
        self.seeds = [image_seed(stage.params.seed, n) for n in range(len(self.values))]
        self.encode = self._know_words()

    def _know_words(self) -> KnownWords | None:
        """The prompts of the grids and the empty one, so that the text encoder takes no memory of the training."""
        words = load_words(self.stage.workspace.text_encoder, self.model, other_networks=False)
        return None if words is None else KnownWords(words.encode, [*map(str, self.values), NO_WORDS])

    def __call__(self, network: nn.Module, step: int) -> None:
        """Draws one grid; process 0 writes and logs it."""
        images = self._draw(network)
        if self.together:
            images = torch.cat(gather_object([images]))
        if rank() != 0:
            return
        file = self.folder / f"{entry(step)}.png"
        file.parent.mkdir(exist_ok=True)
        labels = [self.model.condition.label(value) for value in self.values]
        save_png(labelled_grid(images, labels, self.per_row), file)
        self.show_newest()
        self.stage.log_artifacts(file)

    def _draw(self, network: nn.Module) -> Tensor:
        """This process's part of the images, uint8 ``(n, 3, S, S)``."""
        assert isinstance(network, Backbone)
        most = math.ceil(len(self.values) / world_size()) if self.together else len(self.values)
        part = slice(rank() * most, (rank() + 1) * most)
        if not self.values[part]:
            size = self.stage.params.data.image_size
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        model = replace(self.model, network=network)
        was_training = network.training
        network.eval()
        images = ImageGenerator(model, self.decoder, encode=self.encode)(
            self.values[part],
            self.seeds[part],
            GRID_SAMPLER,
            GuidanceScales(),
            middle_schedule(self.model.schedule_params),
        )
        network.train(was_training)
        return images

    def show_newest(self) -> None:
        """Puts the newest grid where it can be seen; removes the one of another training."""
        preview, grids = self.stage.workspace.preview, sorted(self.folder.glob("step-*.png"))
        if not grids:
            preview.unlink(missing_ok=True)
            return
        preview.parent.mkdir(exist_ok=True)
        fresh = preview.with_suffix(".part")
        shutil.copyfile(grids[-1], fresh)
        fresh.replace(preview)  # in one rename, so that a viewer never sees half of it
