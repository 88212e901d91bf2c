"""From conditions and seeds to images: the trained model, its schedule, its latents' statistics and the decoder as one thing."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sfd.data.latents import ChannelStatistics
from sfd.diffusion.guidance import GuidanceScales, guided_velocity
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import Schedule
from sfd.encoders.texture_vae import TextureVae, load_texture_vae
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.generation.schedules import build_schedule
from sfd.models.backbone import Backbone, BackboneConfig
from sfd.models.conditions import Value
from sfd.names import SAMPLERS, load
from sfd.params import GuidanceParams, SampleParams
from sfd.processes import inference_device
from sfd.seeding import derive_seed


def build_sampler(params: SampleParams) -> Sampler:
    """The sampler that the parameters describe."""
    return Sampler(load(SAMPLERS, params.sampler), params.num_steps, params.uses_published_rule, params.timestep_shift)


def build_scales(params: GuidanceParams) -> GuidanceScales:
    """The guidance scales that the parameters describe; all 1 for kind ``none``."""
    if params.kind == "none":
        return GuidanceScales()
    return GuidanceScales(params.scale_texture, params.scale_semantic, params.start_texture, params.start_semantic)


def image_seed(seed: int, index: int) -> int:
    """The seed of image ``index`` of a stage that is seeded by ``seed``."""
    return derive_seed(seed, "sample/image", index)


def _check_weak(strong: BackboneConfig, weak: BackboneConfig) -> None:
    """Guidance subtracts velocities of the same latent, at the same times, for the same condition."""
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


class ImageGenerator:
    """Draws images. Image i depends on its condition and its seed, not on the others in its batch (up to rounding; dopri5: its tolerance)."""

    def __init__(
        self,
        model: DiffusionModel,
        decoder: TextureVae,
        weak: Backbone | None = None,
        device: torch.device | None = None,
    ) -> None:
        """``weak`` is AutoGuidance's model; without it, guidance is by the null value of the condition.

        Raises:
            UserError: the weak model draws other latents, has another condition, or has another number of times.
        """
        if weak is not None:
            _check_weak(model.network.config, weak.config)
        self.device = device or inference_device()
        self.model, self.decoder = model, decoder.to(self.device)
        self.network = model.network.to(self.device)
        self.weak = weak.to(self.device) if weak is not None else None
        self.statistics = ChannelStatistics(model.statistics.mean.to(self.device), model.statistics.std.to(self.device))

    @classmethod
    def load(cls, model_folder: Path, decoder_folder: Path, weak_folder: Path | None = None) -> "ImageGenerator":
        """Reads what the stages ``diffusion`` and ``texture_vae`` left."""
        weak = DiffusionModel.load(weak_folder).network if weak_folder is not None else None
        return cls(DiffusionModel.load(model_folder), load_texture_vae(decoder_folder), weak)

    @torch.no_grad()
    def __call__(
        self,
        values: Sequence[Value],
        seeds: Sequence[int],
        sampler: Sampler,
        scales: GuidanceScales,
        schedule: Schedule | None = None,
    ) -> Tensor:
        """Images uint8 ``(B, 3, S, S)`` on the CPU, along ``schedule`` or that of the training.

        Args:
            values, seeds: the condition's value and the seed of each image.

        Raises:
            UserError: the condition has no such value; there is no null value to be guided away from; or the model was trained with
                a range of offsets and ``schedule`` does not choose one.
        """
        config = self.network.config
        condition = config.condition.batch(values, self.device)
        shape = (config.in_channels, config.input_size, config.input_size)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(
            self.device
        )
        weak_condition = condition
        if scales.active and self.weak is None:
            weak_condition = config.condition.null(len(values), self.device)
        velocity = guided_velocity(
            partial(self._velocity, self.network, condition),
            partial(self._velocity, self.weak or self.network, weak_condition),
            scales,
            config.semantic_channels,
        )
        latent = sampler(velocity, noise, schedule or self.model.schedule, config.semantic_channels)
        texture = self.statistics.restore(latent)[:, : config.in_channels - config.semantic_channels]
        return self.decoder.decode(texture).cpu()

    @staticmethod
    def _velocity(network: Backbone, condition: Tensor, x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        velocity: Tensor = network(x, t_tex, t_sem, condition).velocity
        return velocity.float()

    def sample(
        self, values: Sequence[Value], seeds: Sequence[int], params: SampleParams, batch_size: int, fill: bool = False
    ) -> Iterator[Tensor]:
        """:meth:`__call__` as the parameters say, in batches of at most ``batch_size`` images.

        ``fill`` also draws images for the free places of the last batch, and drops them. Matrix products round by the shape of their
        batch, so with a single shape an image's bytes do not depend on the others in its batch (except with an adaptive sampler, see above).

        Raises:
            UserError: as :meth:`__call__` does; or the guidance asked for is not by the weak model that is here, or not here.
        """
        if params.guidance.kind != "none" and (params.guidance.kind == "autoguidance") != (self.weak is not None):
            raise UserError(
                f"sample.guidance.kind is `{params.guidance.kind}`, but the images are drawn "
                f"{'without' if self.weak is None else 'with'} a weak model: give sample.guidance.weak_model with `autoguidance` alone"
            )
        sampler, scales = build_sampler(params), build_scales(params.guidance)
        schedule = build_schedule(params.schedule) if params.schedule is not None else None
        for first in range(0, len(values), batch_size):
            rows = slice(first, first + batch_size)
            count = len(values[rows])
            spare = batch_size - count if fill else 0
            batch = [*values[rows], *[values[0]] * spare], [*seeds[rows], *[seeds[0]] * spare]
            yield self(*batch, sampler, scales, schedule)[:count]
