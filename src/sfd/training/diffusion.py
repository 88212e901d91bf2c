"""Training of the diffusion model: the schedule's two times, the three terms of the loss."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sfd.data.latents import ChannelStatistics
from sfd.diffusion.loss import cosine_loss, interpolate, repa_loss, velocity_loss
from sfd.diffusion.schedule import (
    OffsetRange,
    Schedule,
    per_part_weights,
    sample_logit_normal,
    sample_progress_per_part,
)
from sfd.errors import UserError
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.names import SIZES
from sfd.params import LossParams, ModelParams, ScheduleParams
from sfd.seeding import generator
from sfd.training.loop import BatchedDataset, Tensors

SHORTEST_VELOCITY = 0.1
"""Floor of a predicted velocity's length in the cosine term; usual lengths are 3 to 10.

The slope of a cosine is 1 / length. A fresh model predicts exactly zero, and with torch's floor of 1e-8 its first gradient is 1e7
times the usual one: Adam's second moment remembers that and keeps the output layer nearly still for thousands of steps.
"""


def model_config(
    model: ModelParams,
    loss: LossParams,
    schedule: ScheduleParams,
    *,
    grid: int,
    texture_channels: int,
    semantic_channels: int,
    num_classes: int,
    feature_dim: int,
) -> LightningDiTConfig:
    """The backbone for a data set: a size by name, the parts that are on, and the latents' shape.

    Raises:
        UserError: the patches do not tile the latents. (Whether REPA fits the backbone is checked with the parameters.)
    """
    width, depth, heads = SIZES[model.size]
    if grid % model.patch_size:
        raise UserError(
            f"diffusion.model.patch_size {model.patch_size} must divide the latents' side {grid}; set it to 1"
        )
    return LightningDiTConfig(
        input_size=grid,
        in_channels=texture_channels + semantic_channels,
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        num_classes=num_classes,
        patch_size=model.patch_size,
        semantic_channels=semantic_channels,
        two_times=schedule.kind != "sync",
        use_qknorm=model.use_qknorm,
        use_swiglu=model.use_swiglu,
        use_rope=model.use_rope,
        use_rmsnorm=model.use_rmsnorm,
        use_shift=model.use_shift,
        repa_depth=loss.repa_depth if loss.repa_weight > 0.0 else 0,
        repa_width=loss.repa_width,
        feature_dim=feature_dim,
    )


class SemanticDecoder(Protocol):
    """A frozen network that turns semantic latents back into features."""

    def decode(self, latent: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, D)``."""


class DecodedFeatures:
    """REPA's target from the latents themselves: the semantic part, decoded. Costs a forward pass of the decoder, and no disk."""

    def __init__(self, decoder: SemanticDecoder, statistics: ChannelStatistics, semantic_channels: int) -> None:
        self.decoder, self.statistics, self.semantic_channels = decoder, statistics, semantic_channels

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Normalised composite latents ``(B, C, H, W)`` -> features ``(B, N, D)``."""
        statistics = ChannelStatistics(self.statistics.mean.to(latents.device), self.statistics.std.to(latents.device))
        semantic = statistics.restore(latents)[:, -self.semantic_channels :]
        return self.decoder.decode(semantic.flatten(2).transpose(1, 2)).float()


class DiffusionTask:
    """Velocity matching along the schedule (arXiv 2512.04926). A term with weight 0 is neither computed nor logged.

    ``features_of``: gives REPA's target for a batch of latents, where the data set does not hold it.
    Raises :class:`UserError` if all weights are 0.
    """

    purpose = "diffusion"

    def __init__(
        self,
        network: LightningDiT,
        dataset: BatchedDataset,
        loss: LossParams,
        schedule: Schedule | OffsetRange,
        class_dropout: float,
        seed: int,
        features_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.network, self.dataset, self.config = network, dataset, network.config
        self.features_of = features_of
        self.loss, self.schedule, self.class_dropout, self.seed = loss, schedule, class_dropout, seed
        weights = {"velocity": loss.velocity_weight, "cosine": loss.cosine_weight, "repa": loss.repa_weight}
        self.weights: Mapping[str, float] = {term: weight for term, weight in weights.items() if weight > 0.0}
        if not self.weights:
            raise UserError(
                "diffusion.loss: velocity_weight, cosine_weight and repa_weight are all 0, so nothing would be learnt; raise one of them"
            )

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensors:
        """Noise ``(B, C, H, W)``, times of texture and semantics, weights of both, and uniform draws for class dropout, each ``(B,)``."""
        config, loss = self.config, self.loss
        random = generator(self.seed, "diffusion/step", step, device)
        x0 = torch.randn(
            batch_size, config.in_channels, config.input_size, config.input_size, generator=random, device=device
        )
        schedule = self.schedule.draw(batch_size, random) if isinstance(self.schedule, OffsetRange) else self.schedule
        if loss.timestep_sampling == "per_part":
            u = sample_progress_per_part(schedule, batch_size, loss.time_mean, loss.time_std, random)
            weights = per_part_weights(schedule, u, loss.time_mean, loss.time_std)
        else:
            u = sample_logit_normal(batch_size, loss.time_mean, loss.time_std, random)
            weights = (torch.ones_like(u), torch.ones_like(u))
        return x0, *schedule.times(u), *weights, torch.rand(batch_size, generator=random, device=device)

    def losses(self, network: nn.Module, data: Tensors, noise: Tensors) -> dict[str, Tensor]:
        """``data``: latents ``(B, C, H, W)``, classes ``(B,)``, and stored features ``(B, N, D)``. Terms are batch means."""
        x1, labels = data[:2]
        x0, t_tex, t_sem, texture_weight, semantic_weight, drop = noise
        semantic_channels = self.config.semantic_channels
        labels = torch.where(drop < self.class_dropout, self.config.null_class, labels)
        xt = interpolate(x0, x1, t_tex, t_sem, semantic_channels)
        output = network(xt, t_tex, t_sem, labels, with_projection="repa" in self.weights)
        velocity, target = output.velocity.float(), x1 - x0
        terms = {}
        if "velocity" in self.weights:
            weights = (texture_weight, semantic_weight)
            terms["velocity"] = velocity_loss(
                velocity, target, semantic_channels, self.loss.semantic_weight, weights
            ).mean()
        if "cosine" in self.weights:
            terms["cosine"] = cosine_loss(velocity, target, SHORTEST_VELOCITY).mean()
        if "repa" in self.weights:
            features = data[2] if self.features_of is None else self.features_of(x1)
            terms["repa"] = repa_loss(output.projection.float(), features).mean()
        return terms
