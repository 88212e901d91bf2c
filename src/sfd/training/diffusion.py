"""Training of the diffusion model: the schedule's two times, the terms of the loss."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sfd.data.batches import BatchedDataset
from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.diffusion.loss import LossTerm, Predicted, interpolate
from sfd.diffusion.schedule import (
    OffsetRange,
    Schedule,
    per_part_weights,
    sample_logit_normal,
    sample_progress_per_part,
)
from sfd.encoders.tiles import join_tokens, map_to_tokens, split_tokens
from sfd.errors import UserError
from sfd.models.backbone import Backbone
from sfd.models.conditions import Condition, Told
from sfd.models.tokens import Route, Routing
from sfd.models.words import Words
from sfd.names import LOSS_TERMS, load
from sfd.params import LossParams
from sfd.seeding import generator
from sfd.training.captions import WordsOf, with_words


def active_terms(loss: LossParams) -> dict[str, Any]:
    """The classes of the terms whose weight is above 0 (:class:`sfd.diffusion.loss.LossTerm`), by name."""
    return {name: load(LOSS_TERMS, name) for name, weight in loss.weights().items() if weight > 0.0}


def needs_features(loss: LossParams) -> bool:
    """Whether a term that is on compares the network with the encoder's features."""
    return any(term.needs_features for term in active_terms(loss).values())


class SemanticDecoder(Protocol):
    """A frozen network that turns semantic latents back into features."""

    def decode(self, latent: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, D)``."""


class DecodedFeatures:
    """REPA's target from the latents themselves: the semantic part, decoded. Costs a forward pass of the decoder, and no disk."""

    def __init__(
        self, decoder: SemanticDecoder, statistics: ChannelStatistics, semantic_channels: int, tiles: int = 1
    ) -> None:
        """``statistics``: on the decoder's device. ``tiles``: parts along one side that were encoded one by one, and are decoded so."""
        self.decoder, self.statistics, self.semantic_channels, self.tiles = (
            decoder,
            statistics,
            semantic_channels,
            tiles,
        )

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Normalised composite latents ``(B, C, H, W)`` -> features ``(B, N, D)``."""
        semantic = self.statistics.restore(latents)[:, -self.semantic_channels :]
        decoded = self.decoder.decode(split_tokens(map_to_tokens(semantic), self.tiles))
        return join_tokens(decoded, self.tiles).float()


class DiffusionDraws(NamedTuple):
    """What a training step draws, for B images.

    Attributes:
        x0: noise, ``(B, C, H, W)``.
        t_tex: time of the texture, ``(B,)``.
        t_sem: time of the semantics, ``(B,)``.
        weight_tex: weight of the texture's velocity error, ``(B,)``.
        weight_sem: weight of the semantics' velocity error, ``(B,)``.
        dropout: uniform in [0, 1), ``(B,)``; an image is told nothing if it is below the share that is dropped.
        kept: positions of the tokens that go through all blocks, ``(B, K)``; None: all tokens do.
        without_deep: images whose deep path is left out, ``(B,)``; None: none (:mod:`sfd.models.tokens`).
    """

    x0: Tensor
    t_tex: Tensor
    t_sem: Tensor
    weight_tex: Tensor
    weight_sem: Tensor
    dropout: Tensor
    kept: Tensor | None = None
    without_deep: Tensor | None = None


class DiffusionTask:
    """Velocity matching along the schedule (arXiv 2512.04926). A term with weight 0 is neither computed nor logged.

    ``features_of``: gives the encoder's features for a batch of latents, where the data set does not hold them. ``channel_weights``: as
    in :class:`sfd.diffusion.loss.Predicted`, on the device of the training. ``routing``: what the middle blocks see, for a network that
    ``routes_tokens``; None: all tokens. ``null_words``: the empty caption, for a condition of words. ``words_of``: reads the captions of a
    batch, where the data set holds no words.
    """

    purpose = "diffusion"

    def __init__(
        self,
        network: Backbone,
        dataset: BatchedDataset[LatentBatch],
        loss: LossParams,
        schedule: Schedule | OffsetRange,
        class_dropout: float,
        seed: int,
        features_of: Callable[[Tensor], Tensor] | None = None,
        channel_weights: Tensor | None = None,
        routing: Routing | None = None,
        null_words: Words | None = None,
        words_of: WordsOf | None = None,
    ) -> None:
        self.routing, self.null_words, self.words_of = routing, null_words, words_of
        self.network, self.dataset, self.config = network, dataset, network.config
        self.features_of, self.channel_weights = features_of, channel_weights
        self.loss, self.schedule, self.class_dropout, self.seed = loss, schedule, class_dropout, seed
        self.weights: Mapping[str, float] = {name: weight for name, weight in loss.weights().items() if weight > 0.0}
        self.terms: dict[str, LossTerm] = {name: term(loss) for name, term in active_terms(loss).items()}
        self.needs_features = needs_features(loss)

    def noise(self, step: int, batch_size: int, device: torch.device) -> DiffusionDraws:
        """All random draws of a step."""
        draws = self._draw(generator(self.seed, "diffusion/step", step, device), batch_size)
        if self.routing is None:
            return draws
        # From a generator of their own, so that routing changes no other draw.
        random = generator(self.seed, "diffusion/tokens", step, device)
        return draws._replace(**self.routing.draw(step, batch_size, random)._asdict())

    def heldout_noise(self, batch: int, batch_size: int) -> DiffusionDraws:
        """The draws of a batch of held-out images, at every step the same ones, on the CPU and so the same on every device.

        All blocks see all tokens, as in sampling.
        """
        return self._draw(generator(self.seed, "diffusion/heldout", batch), batch_size)

    def _draw(self, random: torch.Generator, batch_size: int) -> DiffusionDraws:
        """Draws on the generator's device."""
        config, loss, device = self.config, self.loss, random.device
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

    def complete(self, data: LatentBatch) -> LatentBatch:
        """The batch with words, on the device, where it has texts."""
        return with_words(data, self.words_of)

    def losses(self, network: nn.Module, data: LatentBatch, noise: DiffusionDraws) -> dict[str, Tensor]:
        """The terms, batch means."""
        x1 = data.latents
        semantic_channels = self.config.semantic_channels
        if self.null_words is not None and self.null_words.mask.device != x1.device:
            self.null_words = self.null_words.to(x1.device)  # once, so that no step waits for it
        condition = told(self.config.condition, data, noise.dropout < self.class_dropout, self.null_words)
        xt = interpolate(noise.x0, x1, noise.t_tex, noise.t_sem, semantic_channels)
        route = self._route(noise)
        output = network(xt, noise.t_tex, noise.t_sem, condition, with_projection=self.needs_features, **route)
        batch = Predicted(
            output.velocity.float(), x1 - noise.x0, semantic_channels, (noise.weight_tex, noise.weight_sem)
        )
        if self.channel_weights is not None:
            batch = replace(batch, channel_weights=self.channel_weights)
        if self.needs_features:
            features = data.features if self.features_of is None else self.features_of(x1)
            features = None if features is None else features.float()
            # REPA's block saw all tokens, or those that stay.
            has_all = noise.kept is None or output.projection.shape[1] != noise.kept.shape[1]
            kept = None if has_all else noise.kept
            batch = replace(batch, projection=output.projection.float(), features=features, kept=kept)
        return {name: term(batch).mean() for name, term in self.terms.items()}

    def _route(self, noise: DiffusionDraws) -> dict[str, Route]:
        """Arguments of the network that not every backbone has."""
        if self.routing is None or (noise.kept is None and noise.without_deep is None):
            return {}
        return {"route": Route(noise.kept, self.routing.first_blocks, self.routing.last_blocks, noise.without_deep)}


def told(condition: Condition, data: LatentBatch, dropped: Tensor, null_words: Words | None = None) -> Told:
    """What the network is told: the condition of each image, or its null value for the ones that are ``dropped`` ``(B,)``.

    ``null_words``: the empty caption, on the images' device, which a condition of words needs.
    """
    values = condition.of_images(data.class_indices, data.words)
    if not condition.has_null:
        return values
    if isinstance(values, Words):
        if null_words is None:
            raise UserError(
                "the latents do not hold the empty caption, which dropped captions become: make stage `latents` again"
            )
        empty = condition.of_images(data.class_indices[:1], null_words)
        assert isinstance(empty, Words)
        return values.replaced(dropped, empty)
    null = condition.null(len(values), values.device)
    assert isinstance(null, Tensor)
    return torch.where(dropped.reshape(-1, *[1] * (values.ndim - 1)), null, values)
