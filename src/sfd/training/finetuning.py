"""Starting from a trained model: what is copied, resized, re-initialised and unused; and low-rank adapters (arXiv 2106.09685)."""

import copy
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfd.data.latents import ChannelStatistics, LatentDataset
from sfd.data.networks import START_REMEDY, check_networks, compared_at_start
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.models.backbone import Axis, Backbone, BackboneConfig, channel_names
from sfd.params import DiffusionParams, LoraParams
from sfd.seeding import seeded_initialisation
from sfd.training.loop import Trained


@dataclass(frozen=True)
class Transfer:
    """Names of tensors, by what became of them; ``in_part`` says of each what was re-initialised.

    ``from_null``: those of the copied ones that hold the row of the null class (:func:`_start_as_null`).
    """

    copied: tuple[str, ...]
    in_part: dict[str, str]
    resized: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unused: tuple[str, ...]
    from_null: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """A line for each fate that any tensor had."""
        lines = [f"copied: {_modules(self.copied)}"]
        lines += [f"copied in part: {name} (re-initialised: {what})" for name, what in self.in_part.items()]
        for fate, names in (
            ("resized (computed for the new grid)", self.resized),
            ("re-initialised", self.reinitialised),
            ("unused", self.unused),
        ):
            lines += [f"{fate}: {_modules(names)}"] if names else []
        if self.from_null:
            lines.append(
                f"words in place of classes: {', '.join(self.from_null)} is the row of the null class; before words have an effect, the network is "
                "told what that model is told without a class"
            )
        return lines

    def save(self, file: Path) -> None:
        """Writes all names as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def _modules(names: Iterable[str]) -> str:
    """Names of tensors, counted by the module that holds them."""
    counted = [(module, len(list(group))) for module, group in groupby(names, lambda name: name.split(".")[0])]
    return ", ".join(f"{module} ({count} tensor{'s' * (count > 1)})" for module, count in counted)


@torch.no_grad()
def transfer(source: DiffusionModel, network: Backbone) -> Transfer:
    """Copies all weights that fit into ``network``, which is freshly initialised.

    Rows of the condition's tables follow their names; the null class is kept. Semantic channels are copied where both models have the
    same number of them; texture channels must be the same. Time embedders fit where both models have one time, or both have two; the
    REPA projector where depth, kind and widths are the same. Fixed tables are those of the new grid.

    Raises:
        UserError: the backbones differ, or the texture channels.
    """
    theirs, ours = source.network.config, network.config
    _check_backbone(source.network, network)
    old, old_axes, axes = source.network.state_dict(), source.network.named_axes(), network.named_axes()
    copied: list[str] = []
    resized: list[str] = []
    reinitialised: list[str] = []
    in_part: dict[str, str] = {}
    for name, value in network.state_dict().items():
        is_projector = name.startswith(f"{network.projector}.")
        if name in axes and name in old_axes:
            missing = copy_entries(axes[name], old_axes[name])
            if missing:
                in_part[name] = (
                    f"{len(missing)} of {len(axes[name].names)}: {textwrap.shorten(', '.join(missing), 100)}"
                )
            else:
                copied.append(name)
        elif (
            name in old
            and old[name].shape == value.shape
            and not (is_projector and ours.repa_depth != theirs.repa_depth)
        ):
            value.copy_(old[name])
            copied.append(name)
        else:
            (resized if name in network.computed else reinitialised).append(name)
    from_null = _start_as_null(source.network, network)
    copied += from_null
    reinitialised = [name for name in reinitialised if name not in from_null]
    unused = [name for name in old if name not in {*copied, *in_part, *resized}]
    return Transfer(
        tuple(copied), in_part, tuple(resized), tuple(reinitialised), tuple(unused), from_null=tuple(from_null)
    )


def _start_as_null(source: Backbone, network: Backbone) -> list[str]:
    """Where words take the place of classes, the null class becomes what is added to the times before any word has an effect.

    A network whose words have no effect at first, as a fresh LightningDiT's with cross-attention, then starts as ``source`` is when it is told
    no class. Returns the names of the tensors that were set.
    """
    theirs, ours = source.config.condition, network.config.condition
    table, bias = (
        each.state_dict().get(f"{each.embedding}.{name}")
        for each, name in ((source, "embedding_table.weight"), (network, "proj.bias"))
    )
    if ours.words is None or theirs.words is not None or not theirs.has_null or table is None or bias is None:
        return []
    if table.shape[1:] != bias.shape:
        return []
    bias.copy_(table[-1])
    return [f"{network.embedding}.proj.bias"]


def _check_backbone(source: Backbone, network: Backbone) -> None:
    theirs, ours = source.config, network.config
    there, here = ({"backbone": config.kind} | config.to_dict() for config in (theirs, ours))
    shared = ("backbone", *(network.shared_options if theirs.kind == ours.kind else ()))
    # A record leaves out what older versions did not know, where it is not in use.
    differ = [
        f"{key} is {there.get(key, False)} there and {here.get(key, False)} here"
        for key in shared
        if there.get(key, False) != here.get(key, False)
    ]
    if differ:
        raise UserError(
            f"diffusion.init_from: the backbones differ ({', '.join(differ)}); set diffusion.model to that of the model to start from"
        )
    channels = [config.in_channels - config.semantic_channels for config in (theirs, ours)]
    if channels[0] != channels[1]:
        raise UserError(
            f"diffusion.init_from: that model knows texture latents of {channels[0]} channels, but results/latents has {channels[1]}; "
            "set texture_vae to the one that the model was trained with"
        )


def copy_entries(target: Axis, source: Axis) -> list[str]:
    """Copies the entries whose names ``source`` has, too, in place; returns the names of the others."""
    places = {name: place for place, name in enumerate(source.names)}
    for place, name in enumerate(target.names):
        if name in places:
            target.tensor.select(target.axis, place).copy_(source.tensor.select(source.axis, places[name]))
    return [name for name in target.names if name not in places]


def source_statistics(source: DiffusionModel, network: Backbone, new: ChannelStatistics) -> ChannelStatistics:
    """The statistics that the weights expect; those of the new latents for channels that the source does not have."""
    theirs, ours = (_channels(config) for config in (source.network.config, network.config))
    mean, std = new.mean.clone(), new.std.clone()
    copy_entries(Axis(mean, 0, ours), Axis(source.statistics.mean, 0, theirs))
    copy_entries(Axis(std, 0, ours), Axis(source.statistics.std, 0, theirs))
    return ChannelStatistics(mean, std)


def _channels(config: BackboneConfig) -> list[str]:
    return channel_names(config.in_channels - config.semantic_channels, config.semantic_channels)


def describe_statistics(chosen: ChannelStatistics, new: ChannelStatistics) -> str:
    """How far the new latents are from mean 0 and standard deviation 1 when they are normalised: far means another encoder."""
    shift = ((new.mean - chosen.mean) / chosen.std).abs().max()
    ratio = new.std / chosen.std
    return (
        f"normalised, the new latents' channels have means within {shift:.2f} of 0 and standard deviations from "
        f"{ratio.min():.2f} to {ratio.max():.2f}"
    )


@dataclass(frozen=True)
class Start:
    """A network to train. ``report``: lines; ``transfer``: None if it starts from nothing."""

    network: Backbone
    transfer: Transfer | None = None
    report: tuple[str, ...] = ()
    adapters: Any = None

    @property
    def trainable(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def merged(self, averaged: nn.Module) -> Backbone:
        """The network as :meth:`finish` would leave it now; a copy where there are adapters."""
        if self.adapters is None:
            assert isinstance(averaged, Backbone)
            return averaged
        copied: Any = copy.deepcopy(self.adapters)
        copied.model.load_state_dict(averaged.state_dict())
        copied.merge_and_unload()
        network: Backbone = copied.model
        return network

    def finish(self, trained: Trained) -> None:
        """Puts the averaged weights into the network and merges the adapters, so that it is an ordinary one."""
        trained.copy_to(self.network)
        if self.adapters is not None:
            self.adapters.merge_and_unload()


def start_from(
    source: DiffusionModel, network: Backbone, dataset: LatentDataset, params: DiffusionParams, seed: int
) -> Start:
    """Prepares a freshly initialised network, and how ``dataset`` normalises its latents, for training on from ``source``.

    Raises:
        UserError: the models do not fit, see :func:`transfer`; the model was trained on latents of other networks than ``dataset``, and
            ``params.other_networks`` does not allow that; or as :func:`add_adapters` does.
    """
    _check_text_encoder(source, network, params)
    said = _check_latents(source, network, dataset, params)
    moved = transfer(source, network)
    new = dataset.statistics
    if params.init_statistics == "source":
        dataset.statistics = source_statistics(source, network, new)
    report = (
        *([said] if said else []),
        *moved.describe(),
        f"statistics of the {params.init_statistics} data: {describe_statistics(dataset.statistics, new)}",
    )
    adapters = None if params.lora is None else add_adapters(network, params.lora, moved, seed)
    start = Start(network, moved, report, adapters)
    total = sum(p.numel() for p in network.parameters())
    return replace(start, report=(*report, f"trained: {start.trainable:,} of {total:,} parameters"))


def _check_latents(source: DiffusionModel, network: Backbone, dataset: LatentDataset, params: DiffusionParams) -> str:
    """What there is to say of the networks that both models' latents came from; raises :class:`UserError` if they are others."""
    return check_networks(
        f"the model of diffusion.init_from {params.init_from}",
        source.networks,
        "results/latents",
        dataset.index.networks,
        compared_at_start(source.network.config.semantic_channels, network.config.semantic_channels),
        START_REMEDY,
        params.other_networks,
    )


def _check_text_encoder(source: DiffusionModel, network: Backbone, params: DiffusionParams) -> None:
    """Raises :class:`UserError` if both models are told words, of different text encoders, and ``params`` does not allow that."""
    there, here = (getattr(each.config.condition, "encoder", None) for each in (source.network, network))
    if there is None or here is None or there == here or params.other_networks:
        return
    raise UserError(
        f"the model of diffusion.init_from {params.init_from} was told words of another text encoder ({there[:12]}) than results/text has "
        f"({here[:12]}), so that its words would mean other things: use that text encoder, or set diffusion.other_networks to true"
    )


def add_adapters(network: Backbone, params: LoraParams, moved: Transfer, seed: int) -> Any:
    """Freezes the network but for the condition's embedding and what was re-initialised, and adds adapters in place; returns peft's tuner.

    An adapter is zero at first. The average of the weights holds the averages of its two factors.

    Raises:
        UserError: the backbone names no layers for adapters.
    """
    from peft import LoraConfig, LoraModel

    if not network.block_layers:
        raise UserError(
            f"diffusion.lora adapts the layers of a backbone's blocks, but the backbone `{network.config.kind}` names none (`block_layers`): set "
            "lora to null"
        )
    reinitialised = {*moved.in_part, *moved.reinitialised}
    # New layers, such as the first cross-attention of a model that was told classes, are trained in full.
    new = [
        layer
        for layer, _ in network.named_modules()
        if f"{layer}.weight" in reinitialised and re.fullmatch(network.block_layers, layer)
    ]
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, target_modules=network.block_layers, exclude_modules=new or None
    )
    # Without what stays as it was drawn, such as a mask token.
    trainable = [name for name, weight in network.named_parameters() if weight.requires_grad]
    with seeded_initialisation(seed, "diffusion/lora"):
        adapters = LoraModel(network, config, "default")
    for name in trainable:
        if name in reinitialised or name.startswith(f"{network.embedding}."):
            network.get_parameter(name).requires_grad_(True)
    return adapters
