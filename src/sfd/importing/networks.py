"""Published weights of the three kinds, written as the stages ``diffusion``, ``semantic`` and ``texture_vae`` write theirs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from sfd.data.latents import ChannelStatistics
from sfd.data.sources.common import nfc
from sfd.encoders.ldm import ldm_config, rename_ldm_keys
from sfd.encoders.semantic.encoder import save_semantic
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.encoders.texture_vae import KlVae
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.importing.checkpoints import SEFI, Weights, load_strictly, pick_weights, read_checkpoint
from sfd.importing.origin import describe_networks, read_latent_networks
from sfd.importing.sefi import config_from_weights as config_of_sefi
from sfd.importing.sefi import joined, read_facts, read_folder, root_of
from sfd.models.conditions import ClassCondition
from sfd.models.flux2 import Flux2
from sfd.models.lightningdit import LightningDiT
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.models.published import config_from_weights
from sfd.params import ScheduleParams, parse_yaml

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Kind = Literal["diffusion", "semantic-vae", "texture-vae"]

PUBLISHED_TAU = 0.3
PUBLISHED_SEMANTIC_CHANNELS = 16
"""Of the published SFD models (arXiv 2512.04926)."""

HEAD_KEYS = ("transformer_heads", "num_heads", "heads")
"""What the number of heads is called in the configuration of a SemVAE."""


@dataclass(frozen=True)
class DiffusionFacts:
    """What the weights of a diffusion model cannot say.

    Attributes:
        statistics: files with ``mean`` and ``std`` of the latents' channels: of all in one, or of texture's and of semantics'.
        semantic_channels: None: as many as the second file of statistics has; else 16 for a model of two times, and 0 for one of one.
        tau: the offset that it was trained with. None: 0.3 for a model of two times, and for SeFi-Image what its ``sefi_config.yaml`` says, or
            0.1; one of one time is synchronous.
        classes: file with one class name per line, in the order of their indices. None: the indices are the names, and the last row of the
            class table is the null class.
        texture_vae, encoder, semantic_vae: folders of the networks that its latents came from, whose digests the model then records. None: not
            known, and never compared.
        knots: the curve of its training instead of an offset, as ``schedule.knots`` (LWD, arXiv 2606.19662). None: it has an offset, or one time.
    """

    statistics: tuple[Path, ...] = ()
    semantic_channels: int | None = None
    tau: float | None = None
    classes: Path | None = None
    texture_vae: Path | None = None
    encoder: Path | None = None
    semantic_vae: Path | None = None
    knots: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Imported:
    """A network with its weights: how to write it, and what to say of it."""

    network: nn.Module
    weights: Weights
    save: Callable[[Path], None]
    facts: list[str]

    def report(self, kind: Kind, out: Path) -> str:
        """Lines that say what was read, what of the file is unused, and where the result is."""
        count = sum(parameter.numel() for parameter in self.network.parameters())
        lines = [f"{kind}: {count:,} parameters from {self.weights.source}", *self.facts]
        return "\n".join([*lines, *(f"unused: {part}" for part in self.weights.unused), f"written to {out}"])


def import_weights(
    source: Path,
    kind: Kind,
    out: Path,
    facts: DiffusionFacts,
    drop: tuple[str, ...] = (),
    heads: int | None = None,
) -> str:
    """Reads a published file and writes the folder ``out``, whole or not at all; returns what there is to say.

    Args:
        out: a folder that does not exist yet, or is empty.
        facts: for kind ``diffusion``.
        drop: prefixes of keys to drop.
        heads: attention heads, for kind ``semantic-vae``, if the file does not say them.

    Raises:
        UserError: ``out`` is in use, the file cannot be read safely, is of another kind, or does not fit strictly.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; give a new one, nothing is overwritten")
    if kind != "diffusion" and facts != DiffusionFacts():
        raise UserError(
            "--statistics, --semantic-channels, --tau, --knots, --classes, --texture-vae, --encoder and --semantic-vae are of kind diffusion, "
            f"not of {kind}"
        )
    if kind != "semantic-vae" and heads is not None:
        raise UserError(f"--heads is of kind semantic-vae, not of {kind}")
    if kind == "diffusion" and not facts.statistics:
        raise UserError(
            "a diffusion model draws normalised latents, so the statistics that restore them are part of it: give --statistics "
            "latents_stats.pt --statistics latents_sv_stats.pt, which the published code keeps beside its latents"
        )
    content = read_folder(source) if kind == "diffusion" and source.is_dir() else read_checkpoint(source)
    if kind == "diffusion":
        imported = read_diffusion(source, content, facts, drop)
    elif kind == "semantic-vae":
        imported = read_semantic_vae(source, content, drop, heads)
    else:
        imported = read_texture_vae(source, content, drop)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as passing:
            imported.save(Path(passing) / "made")
            (Path(passing) / "made").replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); give another folder") from error
    return imported.report(kind, out)


def read_diffusion(source: Path, content: Any, facts: DiffusionFacts, drop: tuple[str, ...] = ()) -> Imported:
    """A LightningDiT of the published code: a file with ``ema`` or ``model``, or a plain state dict; or the transformer of SeFi-Image.

    Raises:
        UserError: the weights do not fit strictly, or what the user says of them contradicts them; or a folder holds no such network.
    """
    weights = pick_weights(source, content, "diffusion", ("ema", "model"), drop)
    if SEFI in weights.state:
        return _read_sefi(weights, facts)
    parts = [_read_statistics(file) for file in facts.statistics]
    two_times = "t_embedder_sem.mlp.0.weight" in weights.state
    semantic_channels = _semantic_channels(facts, [len(part.mean) for part in parts], two_times)
    schedule = _schedule(facts, two_times)
    names = _read_classes(facts.classes) if facts.classes is not None else None
    table = weights.state.get("y_embedder.embedding_table.weight")
    has_null_class = names is None or table is None or len(table) != len(names)
    try:
        config = config_from_weights(weights.state, semantic_channels, has_null_class)
        with torch.device("meta"):
            network = LightningDiT(config)
    except ValueError as error:
        raise UserError(f"{source} holds no diffusion model that is known here: {error}") from error
    load_strictly(network, weights, f"a diffusion model of {config.depth} blocks, {config.hidden_size} wide")
    statistics = ChannelStatistics(torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts]))
    numbered = config.condition.choices or []
    _check_against_weights(facts, config, len(statistics.mean), numbered, names or numbered)
    if names is not None:
        network.config = replace(config, condition=ClassCondition(tuple(names), has_null_class))
    networks = read_latent_networks(facts.texture_vae, facts.encoder, facts.semantic_vae, config)
    said = [*_describe(network.config, schedule), *describe_networks(networks)]
    return Imported(network, weights, DiffusionModel(network, schedule, statistics, networks).save, said)


def _read_sefi(weights: Weights, facts: DiffusionFacts) -> Imported:
    """The transformer of SeFi-Image. Raises as :func:`read_diffusion`."""
    if facts.classes is not None:
        raise UserError(f"{weights.source} draws images for texts and not for classes: leave --classes out")
    root = root_of(weights.source)
    beside, parts = read_facts(root), [_read_statistics(file) for file in facts.statistics]
    counted = _semantic_channels(facts, [len(part.mean) for part in parts], two_times=True)
    semantic_channels = counted if len(parts) == 2 or facts.semantic_channels is not None else beside.semantic_channels
    schedule = _schedule(facts, two_times=True, usual=beside.tau)
    try:
        config = config_of_sefi(weights.state, semantic_channels, beside)
        with torch.device("meta"):
            network = Flux2(config)
    except ValueError as error:
        raise UserError(f"{weights.source} holds no SeFi-Image that is known here: {error}") from error
    what = (
        f"a SeFi-Image of {config.double_blocks} double and {config.single_blocks} single blocks, {config.width} wide"
    )
    load_strictly(network, weights, what)
    statistics, from_vae = joined(parts, semantic_channels, root)
    if len(statistics.mean) != config.in_channels:
        raise UserError(
            f"the statistics are of {len(statistics.mean)} channels, but the model has {config.in_channels}: give those of texture and those of "
            f"semantics, in this order, or semantics' alone ({semantic_channels}) if {root / 'vae'} holds texture's"
        )
    networks = read_latent_networks(facts.texture_vae, facts.encoder, facts.semantic_vae, config)
    words = config.condition.words
    said = [
        f"Flux2: {config.double_blocks} double and {config.single_blocks} single blocks, {config.width} wide, {config.num_heads} heads",
        f"latents {config.in_channels} x {config.input_size} x {config.input_size}, the last {semantic_channels} semantic; two times, "
        f"{_lead(schedule)}",
        *([] if words is None else [f"texts of {words.length} tokens, {words.width} numbers each"]),
        *([f"texture's statistics: those of {root / 'vae'}"] if from_vae else []),
        *describe_networks(networks),
    ]
    return Imported(network, weights, DiffusionModel(network, schedule, statistics, networks).save, said)


def _check_against_weights(
    facts: DiffusionFacts, config: LightningDiTConfig, channels: int, numbered: list[str], names: list[str]
) -> None:
    """Raises :class:`UserError` if what the user says of the weights contradicts them.

    ``channels``: of the statistics; ``numbered``: the classes of the weights; ``names``: what the user calls them.
    """
    if channels != config.in_channels:
        raise UserError(
            f"the statistics are of {channels} channels ({', '.join(map(str, facts.statistics))}), but the model has "
            f"{config.in_channels}; give the files that belong to it, texture's first"
        )
    if not config.two_times <= config.semantic_channels < config.in_channels:
        raise UserError(
            f"of {config.in_channels} channels {config.semantic_channels} cannot be the semantic ones, where a model has "
            f"{'two times' if config.two_times else 'one time'}; correct --semantic-channels"
        )
    if len(names) != len(numbered):
        raise UserError(
            f"{facts.classes} names {len(names)} classes, but the class table has {len(numbered) + config.condition.has_null} rows; "
            "give a name for each row, or for each but the last one, the null class"
        )


def _describe(config: LightningDiTConfig, schedule: ScheduleParams) -> list[str]:
    """The network in words, and what was assumed of it."""
    parts = [name.removeprefix("use_") for name, value in config.to_dict().items() if name.startswith("use_") and value]
    lead = f"two times, {_lead(schedule)}" if config.two_times else "one time"
    said = [
        f"{config.depth} blocks, {config.hidden_size} wide, {config.num_heads} heads, patch {config.patch_size}, {', '.join(parts)}",
        f"latents {config.in_channels} x {config.input_size} x {config.input_size}, the last {config.semantic_channels} semantic; {lead}",
        f"{len(config.condition.choices or [])} classes{' and the null class' if config.condition.has_null else ''}",
    ]
    if config.repa_depth:
        kind = "a 3x3 convolution" if config.repa_projector == "conv" else f"{config.repa_width} wide"
        said.append(f"REPA projector: {kind}, to features of {config.feature_dim}")
    return said


def _lead(schedule: ScheduleParams) -> str:
    """How semantics lead, in words."""
    if schedule.kind != "offset":
        return f"the curve of knots {', '.join(f'{knot:g}' for knot in schedule.knots)}"
    covered = schedule.tau_range
    return f"tau {schedule.tau}" if covered is None else f"tau {covered.low:g} to {covered.high:g}"


def parse_knots(text: str) -> tuple[float, ...]:
    """The numbers of a text such as ``0,0.75,0,0,0.25``. Raises :class:`UserError` if they are not valid ``schedule.knots``."""
    try:
        knots = tuple(float(part) for part in text.split(","))
        return ScheduleParams.model_validate({"kind": "curve", "knots": knots}).knots
    except ValueError:  # pydantic's errors are of this type
        raise UserError(
            f"--knots is {text!r}, but a curve has 2 to 33 numbers of 0 or more, not all 0, separated by commas, such as 0,0.75,0,0,0.25"
        ) from None


def _schedule(
    facts: DiffusionFacts, two_times: bool, usual: float | tuple[float, float] = PUBLISHED_TAU
) -> ScheduleParams:
    """``usual``: the offset, or the range of offsets, where the user names none."""
    tau, knots = facts.tau, facts.knots
    if tau is not None and knots is not None:
        raise UserError(f"--tau {tau:g} and --knots name two schedules of one training: leave one of them out")
    if not two_times:
        if tau or knots:
            named = f"--tau is {tau:g}" if tau else "--knots is given"
            raise UserError(f"{named}, but the model has one time, so it is synchronous: leave {named.split()[0]} out")
        return ScheduleParams.model_validate({"kind": "sync"})
    if knots is not None:
        return ScheduleParams.model_validate({"kind": "curve", "knots": knots})
    known = {"low": usual[0], "high": usual[1]} if isinstance(usual, tuple) else usual
    return ScheduleParams.model_validate({"kind": "offset", "tau": known if tau is None else tau})


def _semantic_channels(facts: DiffusionFacts, counts: list[int], two_times: bool) -> int:
    if len(counts) > 2:
        raise UserError(
            f"--statistics is given {len(counts)} times; give one file of all channels, or texture's and semantics'"
        )
    said = facts.semantic_channels
    if len(counts) == 2:
        if said is not None and said != counts[1]:
            raise UserError(
                f"--semantic-channels is {said}, but {facts.statistics[1]} has {counts[1]} channels; leave the option out, "
                "or give the statistics of the semantic latent second"
            )
        return counts[1]
    if said is not None:
        return said
    return PUBLISHED_SEMANTIC_CHANNELS if two_times else 0


def _read_statistics(file: Path) -> ChannelStatistics:
    """Mean and standard deviation of channels, of any shape with the channels alone in it. Raises :class:`UserError`."""
    content = read_checkpoint(file)
    stored = content if isinstance(content, Mapping) else {}
    found = [stored.get(key, stored.get(f"{key}_broadcast")) for key in ("mean", "std")]
    mean, std = (value.flatten().float() if isinstance(value, torch.Tensor) else None for value in found)
    if mean is None or std is None or mean.shape != std.shape:
        raise UserError(f"{file} holds no statistics: tensors `mean` and `std` of the same shape are needed")
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0.0).all()):
        raise UserError(f"{file}: means must be finite and standard deviations above 0; get the file again")
    return ChannelStatistics(mean.clone(), std.clone())


def _read_classes(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # not splitlines, which also ends lines within names
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); give a text file in UTF-8 with one class name per line"
        ) from error
    names = [nfc(line.strip()) for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UserError(
            f"{file} must name every class once, but {f'names {twice[0]!r} twice' if twice else 'is empty'}"
        )
    return names


def read_semantic_vae(source: Path, content: Any, drop: tuple[str, ...] = (), heads: int | None = None) -> Imported:
    """A published SemVAE: ``model_state_dict``, and under ``config`` a YAML text that says the number of heads, unless ``heads`` says it.

    Raises:
        UserError: the weights do not fit strictly, or the number of heads is not there or does not divide the width.
    """
    weights = pick_weights(source, content, "semantic-vae", ("model_state_dict",), drop)
    state = weights.state
    missing = [key for key in ("encoder.0.weight", "decoder.0.weight") if key not in state or state[key].ndim != 2]
    if missing:
        raise UserError(f"{source} holds no SemVAE: {missing[0]} is missing, or is no matrix")
    (width, input_dim), latent_dim = state["encoder.0.weight"].shape, state["decoder.0.weight"].shape[1]
    heads = _read_heads(source, content, width, heads)
    blocks = len({key.split(".")[1] for key in state if key.startswith("encoder.") and ".attn." in key})
    with torch.device("meta"):
        network = SemVae(SemVaeConfig(input_dim, width, heads, blocks, latent_dim))
    load_strictly(network, weights, f"a SemVAE of {blocks} + {blocks} blocks, {width} wide")
    said = [
        f"{blocks} + {blocks} blocks, {width} wide, {heads} heads; features of {input_dim} to {latent_dim} channels"
    ]
    return Imported(network, weights, lambda folder: save_semantic(folder, network), said)


def _read_heads(source: Path, content: Any, width: int, given: int | None) -> int:
    """The number of heads, which no shape of the weights says."""
    text = content.get("config")
    if text is None and given is not None:
        found = [given]
    elif not isinstance(text, str):
        raise UserError(
            f"{source} has no YAML text under `config` ({'missing' if text is None else type(text).__name__}), so the number of heads "
            "is not known; give it as --heads (the published SemVAE has 6), or give a file whose config says it"
        )
    else:
        tree = parse_yaml(text, f"{source}: `config`", accept_ambiguous=True)
        found = sorted({value for key, value in _walk(tree) if key in HEAD_KEYS and isinstance(value, int)})
    if len(found) != 1:
        raise UserError(
            f"{source}: `config` must say one number of heads under {' or '.join(HEAD_KEYS)}, but says {found or 'none'}"
        )
    if given not in (None, found[0]):
        raise UserError(f"{source}: `config` says {found[0]} heads, but --heads is {given}; leave the option out")
    if found[0] < 1 or width % found[0]:
        raise UserError(
            f"{source}: {found[0]} heads do not divide the width {width}; config and weights do not belong together"
        )
    return found[0]


def _walk(node: Any) -> list[tuple[str, Any]]:
    """All keys of nested mappings with their values."""
    if not isinstance(node, dict):
        return []
    return [*node.items(), *(pair for value in node.values() for pair in _walk(value))]


def read_texture_vae(source: Path, content: Any, drop: tuple[str, ...] = ()) -> Imported:
    """An LDM autoencoder: a file with ``state_dict``, or a plain state dict; its training keys ``loss.*`` are dropped.

    Raises:
        UserError: the weights do not fit strictly. Keys are then named as in diffusers.
    """
    weights = pick_weights(source, content, "texture-vae", ("state_dict",), drop, known=("loss.",))
    network, config = _build_autoencoder(weights)
    load_strictly(network, weights, "an LDM autoencoder, here in diffusers' names,")
    channels = ", ".join(map(str, config["block_out_channels"]))
    said = [
        f"{config['layers_per_block']} layers at each of {channels} channels; latents of {config['latent_channels']} channels, "
        f"{2 ** (len(config['block_out_channels']) - 1)} times smaller than images"
    ]
    return Imported(network, weights, KlVae(network).save, said)


def _build_autoencoder(weights: Weights) -> tuple["AutoencoderKL", dict[str, Any]]:
    """On the meta device; renames the weights."""
    from diffusers import AutoencoderKL

    try:
        config = ldm_config(weights.state)
        weights.state = rename_ldm_keys(weights.state, num_levels=len(config["block_out_channels"]))
        with torch.device("meta"):
            return AutoencoderKL(**config).eval(), config
    except KeyError as error:
        raise UserError(
            f"{weights.source} is no whole LDM autoencoder: {error.args[0]} is missing or not known"
        ) from error
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{weights.source} holds no LDM autoencoder that is known here: {' '.join(str(error).split())}"
        ) from error
