"""From conditions and seeds to images: the trained model, its schedule, the statistics of its latents and the decoder in one object."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfd.data.latents import ChannelStatistics
from sfd.data.networks import TEXTURE_VAE, WORDS, check_networks
from sfd.diffusion.guidance import GuidanceScales, guided_velocity
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import Schedule
from sfd.encoders.text.encoder import TextEncoder, load_text_encoder
from sfd.encoders.texture_vae import TextureVae, load_texture_vae
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.generation.schedules import build_schedule
from sfd.models.attention import AttentionSum
from sfd.models.backbone import Backbone, BackboneConfig, Output
from sfd.models.conditions import Condition, Encode, Told, Value
from sfd.names import SAMPLERS, load
from sfd.network_files import network_digest
from sfd.params import GuidanceParams, SampleParams
from sfd.precision import Inference
from sfd.processes import rank
from sfd.seeding import derive_seed


def build_sampler(params: SampleParams) -> Sampler:
    """The sampler that the parameters describe."""
    return Sampler(
        load(SAMPLERS, params.sampler),
        params.num_steps,
        params.uses_published_rule,
        params.timestep_shift,
        params.times,
    )


def build_scales(params: GuidanceParams) -> GuidanceScales:
    """The guidance scales that the parameters describe; all 1 for kind ``none``."""
    if params.kind == "none":
        return GuidanceScales()
    return GuidanceScales(
        texture=params.scale_texture,
        semantic=params.scale_semantic,
        start_texture=params.start_texture,
        start_semantic=params.start_semantic,
        end_texture=params.end_texture,
        end_semantic=params.end_semantic,
    )


def image_seed(seed: int, index: int) -> int:
    """The seed of image ``index``, if the stage has seed ``seed``."""
    return derive_seed(seed, "sample/image", index)


def _check_weak(strong: BackboneConfig, weak: BackboneConfig) -> None:
    """Raises :class:`UserError` unless both models have the same latents, times and conditions, because guidance subtracts their velocities."""
    shared = ("input_size", "in_channels", "semantic_channels", "two_times")
    differ = [
        f"{name} {getattr(weak, name)} instead of {getattr(strong, name)}"
        for name in shared
        if getattr(weak, name) != getattr(strong, name)
    ]
    ours, theirs = (config.condition for config in (strong, weak))
    if theirs.kind != ours.kind:
        differ.append(f"condition {theirs.kind} instead of {ours.kind}")
    elif len(theirs.choices or ()) != len(ours.choices or ()):
        differ.append(f"{len(theirs.choices or ())} classes instead of {len(ours.choices or ())}")
    if differ:
        raise UserError(
            f"the weak model does not match the model that it guides: {', '.join(differ)}; give one of the same kind"
        )


def check_decoder(model: DiffusionModel, folder: Path, other_networks: bool) -> None:
    """Raises :class:`UserError` if the texture VAE in ``folder`` is not that of the model's latents, unless ``other_networks`` allows that."""
    # Hundreds of megabytes are not read where there is nothing to compare them with.
    ours = {TEXTURE_VAE: network_digest(folder) if TEXTURE_VAE in model.networks else None}
    remedy = "decode with the texture VAE of its training, or set sample.other_networks to true"
    _tell(
        check_networks("the model", model.networks, f"{folder}", ours, (TEXTURE_VAE,), remedy, accepted=other_networks)
    )


def load_words(folder: Path, model: DiffusionModel, other_networks: bool) -> TextEncoder | None:
    """The text encoder in ``folder`` for a model that is told words; None for any other, which needs no such folder.

    Raises:
        UserError: it is missing, or is not that of the model's training, unless ``other_networks`` allows that.
    """
    recorded: str | None = getattr(model.condition, "encoder", None)
    if model.condition.words is None:
        return None
    encoder = load_text_encoder(folder)
    found = network_digest(folder)
    if recorded not in (None, found) and not other_networks:
        raise UserError(
            f"the model was told words of another text encoder ({recorded[:12] if recorded else ''}) than that in {folder} ({found[:12]}); use the "
            "text encoder of its training, or set sample.other_networks to true"
        )
    return encoder


def load_weak(folder: Path, strong: DiffusionModel, other_networks: bool) -> Backbone:
    """The weak model of AutoGuidance, for a model that it guides.

    Raises:
        UserError: it was trained on latents of other networks than the strong model, or normalised them by other statistics, unless
            ``other_networks`` allows that.
    """
    weak, what = DiffusionModel.load(folder), f"the weak model in {folder}"
    remedy = (
        "give one that was trained on the latents of the model that it guides, or set sample.other_networks to true"
    )
    place = "the model that it guides"
    _tell(check_networks(what, weak.networks, place, strong.networks, tuple(WORDS), remedy, accepted=other_networks))
    if not other_networks and not _normalise_alike(weak.statistics, strong.statistics):
        raise UserError(f"{what} normalises latents by other channel statistics than {place}; {remedy}")
    return weak.network


def _normalise_alike(one: ChannelStatistics, other: ChannelStatistics) -> bool:
    """Whether means differ by less than 1 % of the standard deviation, and standard deviations by less than 1 %; of the same channels."""
    if one.mean.shape != other.mean.shape:
        return True  # what else differs says more, see _check_weak
    near = ((one.mean - other.mean).abs() < 0.01 * other.std) & ((one.std - other.std).abs() < 0.01 * other.std)
    return bool(near.all())


def _tell(line: str) -> None:
    if line and rank() == 0:
        print(line, file=sys.stderr)


class ImageGenerator:
    """Draws images. An image depends on its condition and its seed, and not on the other images of its batch.

    This holds up to rounding, and with an adaptive sampler up to its tolerance.

    ``evaluated``: evaluations of a network so far, each counted once an image: two where a step is guided.
    """

    def __init__(
        self,
        model: DiffusionModel,
        decoder: TextureVae,
        weak: Backbone | None = None,
        inference: Inference | None = None,
        words: TextEncoder | None = None,
        encode: Encode | None = None,
    ) -> None:
        """``weak``: the weak model of AutoGuidance; without it, guidance uses the null value of the condition. ``inference``: how the networks
        are called; None: in float32. ``words``: the text encoder of a model that is told words, which always computes in float32; ``encode``:
        what takes its place where its words are known before.

        Raises:
            UserError: the weak model draws other latents, has another condition, or has another number of times.
        """
        if weak is not None:
            _check_weak(model.network.config, weak.config)
        self.inference = inference or Inference.float32()
        self.device = self.inference.device
        self.model, self.decoder = model, self.inference.place(decoder)
        self.network = self.inference.place(model.network)
        self.weak = self.inference.place(weak) if weak is not None else None
        strong = self.inference.function(self.network)
        self._functions = strong, strong if self.weak is None else self.inference.function(self.weak)
        self.statistics = model.statistics.to(self.device)
        self.evaluated = 0
        self.words = None if words is None else words.to(self.device)
        self.encode = encode if self.words is None else self.words.encode

    @classmethod
    def load(
        cls,
        model_folder: Path,
        decoder_folder: Path,
        weak_folder: Path | None = None,
        other_networks: bool = False,
        inference: Inference | None = None,
        text_folder: Path | None = None,
    ) -> "ImageGenerator":
        """Reads the results of the stages ``diffusion`` and ``texture_vae``, and the weak model of AutoGuidance.

        ``text_folder``: of the text encoder, which a model that is told words needs, and no other model.

        Raises:
            UserError: the model was trained on latents of another texture VAE, or the weak model on other latents, or the words are of another
                text encoder, unless ``other_networks`` allows that; or as the constructor does.
        """
        model = DiffusionModel.load(model_folder)
        check_decoder(model, decoder_folder, other_networks)
        weak = load_weak(weak_folder, model, other_networks) if weak_folder is not None else None
        words = None if text_folder is None else load_words(text_folder, model, other_networks)
        return cls(model, load_texture_vae(decoder_folder), weak, inference, words)

    @torch.no_grad()
    def __call__(
        self,
        values: Sequence[Value],
        seeds: Sequence[int],
        sampler: Sampler,
        scales: GuidanceScales,
        schedule: Schedule | None = None,
        path_drop: bool = False,
        negative_prompt: str | None = None,
        sums: Sequence[AttentionSum | None] | None = None,
    ) -> Tensor:
        """Draws images uint8 ``(B, 3, S, S)``, on the CPU.

        Args:
            values, seeds: the condition's value and the seed of each image.
            schedule: the schedule to sample along; None: the one of the training.
            path_drop: the weak velocity is that of the network without its middle blocks, and of the null value where there is one
                (SPRINT, :mod:`sfd.models.tokens`).
            negative_prompt: takes the null value's place in the weak velocity, of a model that is told words.
            sums: of the first images, what notes where they look at the prompt's tokens; not at those of the weak velocity. The images
                have the same bytes without.

        Raises:
            UserError: the condition has no such value; guidance needs a null value and there is none; the model was trained with
                a range of offsets and ``schedule`` does not choose one; or attention is asked of a network that has none to words or is
                compiled.
        """
        config = self.network.config
        watched = self._watched(sums)
        condition = self._told(config.condition, values)
        shape = (config.in_channels, config.input_size, config.input_size)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(
            self.device
        )
        weak_condition = condition
        if scales.active and self.weak is None and (config.condition.has_null or not path_drop):
            # The null value of words is the empty prompt.
            weak_condition = (
                config.condition.null(len(values), self.device, self.encode)
                if negative_prompt is None
                else self._told(config.condition, [negative_prompt] * len(values))
            )
        strong, weak = self._functions
        skipped: dict[str, Any] = {"skip_deep": True} if path_drop else {}
        velocity = guided_velocity(
            partial(self._velocity, strong, condition, **watched),
            partial(self._velocity, weak, weak_condition, **skipped),
            scales,
            config.semantic_channels,
        )
        latent = sampler(velocity, noise, schedule or self.model.schedule, config.semantic_channels)
        texture = self.statistics.restore(latent)[:, : config.in_channels - config.semantic_channels]
        return self.decoder.decode(texture).cpu()

    def _told(self, condition: Condition, values: Sequence[Value]) -> Told:
        """The network's argument for these values."""
        return condition.batch(values, self.device, self.encode)

    def _velocity(
        self,
        network: Callable[..., Output],
        condition: Told,
        x: Tensor,
        t_tex: Tensor,
        t_sem: Tensor,
        **options: Any,
    ) -> Tensor:
        """``options``: of the network, which not every backbone takes."""
        self.evaluated += len(x)
        return network(x, t_tex, t_sem, condition, **options).velocity

    def _watched(self, sums: Sequence[AttentionSum | None] | None) -> dict[str, Any]:
        """The network's option that asks for attention. Raises :class:`UserError` where there is none to be had."""
        if sums is None or not any(sums):
            return {}
        if not self.network.has_word_attention:
            raise UserError(
                "attention to words is asked for, but the model has no cross-attention: train one with diffusion.model.text_attention `cross`"
            )
        if self.inference.mode is not None:
            raise UserError(
                f"attention to words is asked for, but the network is compiled ({self.inference.mode}): draw without runtime.sample.compile"
            )
        return {"sums": sums}

    def sample(
        self,
        values: Sequence[Value],
        seeds: Sequence[int],
        params: SampleParams,
        batch_size: int,
        fill: bool = False,
        sums: Sequence[AttentionSum | None] | None = None,
    ) -> Iterator[Tensor]:
        """:meth:`__call__` as the parameters say, in batches of at most ``batch_size`` images.

        ``fill``: fill the last batch up with images that are then dropped. How matrix products round depends on the size of the batch. With
        one size for all, the bytes of an image do not depend on the other images of its batch (except with an adaptive sampler). ``sums``: as
        :meth:`__call__` takes it, one for each image.

        Raises:
            UserError: as :meth:`__call__` does; or AutoGuidance is requested without a weak model, or other guidance with one; or path-drop
                guidance of a model that has one path.
        """
        if params.guidance.kind != "none" and (params.guidance.kind == "autoguidance") != (self.weak is not None):
            raise UserError(
                f"sample.guidance.kind is `{params.guidance.kind}`, but the images are drawn "
                f"{'without' if self.weak is None else 'with'} a weak model: sample.guidance.weak_model belongs to `autoguidance` only"
            )
        path_drop = params.guidance.kind == "path_drop"
        if path_drop and not self.network.has_deep_path:
            raise UserError(
                "sample.guidance.kind is `path_drop`, but the model has no path that could be dropped: train one with diffusion.sparse_deep, or "
                "choose another kind"
            )
        sampler, scales = build_sampler(params), build_scales(params.guidance)
        schedule = build_schedule(params.schedule) if params.schedule is not None else None
        for first in range(0, len(values), batch_size):
            rows = slice(first, first + batch_size)
            count = len(values[rows])
            spare = batch_size - count if fill else 0
            batch = [*values[rows], *[values[0]] * spare], [*seeds[rows], *[seeds[0]] * spare]
            watched = None if sums is None else sums[rows]
            yield self(*batch, sampler, scales, schedule, path_drop, params.guidance.negative_prompt, watched)[:count]
