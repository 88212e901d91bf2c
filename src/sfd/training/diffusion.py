"""Training of the diffusion model: the schedule's two times, the terms of the loss."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sfd.data.latents import ChannelStatistics
from sfd.diffusion.loss import LossTerm, Predicted, interpolate
from sfd.diffusion.schedule import (
    OffsetRange,
    Schedule,
    per_part_weights,
    sample_logit_normal,
    sample_progress_per_part,
)
from sfd.errors import UserError
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.names import LOSS_TERMS, SIZES, load
from sfd.params import LossParams, ModelParams, ScheduleParams
from sfd.seeding import generator
from sfd.training.loop import BatchedDataset, Tensors


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


class DiffusionDraws(NamedTuple):
    """What a training step draws, for B images.

    Attributes:
        x0: noise, ``(B, C, H, W)``.
        t_tex: time of the texture, ``(B,)``.
        t_sem: time of the semantics, ``(B,)``.
        weight_tex: weight of the texture's velocity error, ``(B,)``.
        weight_sem: weight of the semantics' velocity error, ``(B,)``.
        dropout: uniform in [0, 1), ``(B,)``; an image is told nothing if it is below the share that is dropped.
    """

    x0: Tensor
    t_tex: Tensor
    t_sem: Tensor
    weight_tex: Tensor
    weight_sem: Tensor
    dropout: Tensor


class DiffusionTask:
    """Velocity matching along the schedule (arXiv 2512.04926). A term with weight 0 is neither computed nor logged.

    ``features_of``: gives the encoder's features for a batch of latents, where the data set does not hold them.
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
        self.weights: Mapping[str, float] = {name: weight for name, weight in loss.weights().items() if weight > 0.0}
        self.terms: dict[str, LossTerm] = {name: load(LOSS_TERMS, name)(loss) for name in self.weights}
        self.needs_features = any(term.needs_features for term in self.terms.values())

    def noise(self, step: int, batch_size: int, device: torch.device) -> DiffusionDraws:
        """All random draws of a step."""
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
        dropout = torch.rand(batch_size, generator=random, device=device)
        return DiffusionDraws(x0, *schedule.times(u), *weights, dropout)

    def losses(self, network: nn.Module, data: Tensors, noise: DiffusionDraws) -> dict[str, Tensor]:
        """``data``: latents ``(B, C, H, W)``, classes ``(B,)``, and stored features ``(B, N, D)``. Terms are batch means."""
        x1, labels = data[:2]
        semantic_channels = self.config.semantic_channels
        condition = self._condition(labels, noise.dropout < self.class_dropout)
        xt = interpolate(noise.x0, x1, noise.t_tex, noise.t_sem, semantic_channels)
        output = network(xt, noise.t_tex, noise.t_sem, condition, with_projection=self.needs_features)
        batch = Predicted(
            output.velocity.float(), x1 - noise.x0, semantic_channels, (noise.weight_tex, noise.weight_sem)
        )
        if self.needs_features:
            features = data[2] if self.features_of is None else self.features_of(x1)
            batch = replace(batch, projection=output.projection.float(), features=features)
        return {name: term(batch).mean() for name, term in self.terms.items()}

    def _condition(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """What the network is told: the class of each image ``(B,)``, or the null class for the ones that are ``dropped`` ``(B,)``."""
        return torch.where(dropped, self.config.null_class, labels)
