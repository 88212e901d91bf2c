"""The probe of a learnt schedule: a network and the knots of its curve, trained together (after arXiv 2606.19662).

Each part is trained at times of its own logit-normal, whatever the curve is. The curve says at which time the *other* part is then: that time
enters the noisy latent and the network, and through both the gradient reaches the knots. docs/learnt-schedule.md has the derivation.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfd.data.batches import BatchedDataset
from sfd.data.latents import LatentBatch
from sfd.diffusion.learnt import LearntCurve
from sfd.diffusion.loss import Predicted, interpolate
from sfd.diffusion.schedule import sample_logit_normal
from sfd.diffusion.terms.velocity import VelocityTerm
from sfd.models.backbone import Backbone
from sfd.models.words import Words
from sfd.params import LossParams
from sfd.seeding import generator
from sfd.training.captions import WordsOf, with_words
from sfd.training.diffusion import told


class Probe(nn.Module):
    """A backbone and the curve that it is trained along."""

    def __init__(self, backbone: Backbone, curve: LearntCurve) -> None:
        super().__init__()
        self.backbone, self.curve = backbone, curve

    def forward(
        self, x0: Tensor, x1: Tensor, t: Tensor, by_texture: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The velocity ``(B, C, H, W)`` along the curve, and the curve's energy.

        Args:
            x0: noise, ``(B, C, H, W)``.
            x1: data, of the same shape.
            t: time of one part, ``(B,)``.
            by_texture: whether that part is the texture, ``(B,)``.
            condition: as of the backbone.
        """
        t_tex = torch.where(by_texture, t, self.curve.texture_at(t))
        t_sem = torch.where(by_texture, self.curve.semantic_at(t), t)
        xt = interpolate(x0, x1, t_tex, t_sem, self.backbone.config.semantic_channels)
        return self.backbone(xt, t_tex, t_sem, condition).velocity, self.curve.energy()


class ProbeDraws(NamedTuple):
    """What a step of the probe draws, for B images.

    Attributes:
        x0: noise, ``(B, C, H, W)``.
        t: time of one part, ``(B,)``.
        by_texture: whether that part is the texture, bool ``(B,)``.
        dropout: uniform in [0, 1), ``(B,)``; an image is told nothing if it is below the share that is dropped.
    """

    x0: Tensor
    t: Tensor
    by_texture: Tensor
    dropout: Tensor


class ProbeTask:
    """The velocity error of both parts at their own times, and the curve's energy above that of ordinary diffusion.

    An image counts for the part whose time was drawn, twice, since that part is drawn for half of the images.
    """

    def __init__(
        self,
        network: Probe,
        dataset: BatchedDataset[LatentBatch],
        loss: LossParams,
        energy_weight: float,
        class_dropout: float,
        seed: int,
        channel_weights: Tensor | None = None,
        purpose: str = "schedule",
        null_words: Words | None = None,
        words_of: WordsOf | None = None,
    ) -> None:
        """``channel_weights``: as in :class:`sfd.diffusion.loss.Predicted`, on the device of the training. ``purpose``: names the random
        draws. ``null_words`` and ``words_of``: as of :class:`sfd.training.diffusion.DiffusionTask`."""
        self.null_words, self.words_of = null_words, words_of
        self.network, self.dataset, self.config = network, dataset, network.backbone.config
        self.loss, self.class_dropout, self.seed, self.purpose = loss, class_dropout, seed, purpose
        self.channel_weights = channel_weights
        self.weights: Mapping[str, float] = {"velocity": 1.0, "energy": energy_weight}
        self.term = VelocityTerm(loss)

    def noise(self, step: int, batch_size: int, device: torch.device) -> ProbeDraws:
        """All random draws of a step."""
        random, config = generator(self.seed, f"{self.purpose}/step", step, device), self.config
        shape = (batch_size, config.in_channels, config.input_size, config.input_size)
        return ProbeDraws(
            torch.randn(shape, generator=random, device=device),
            sample_logit_normal(batch_size, self.loss.time_mean, self.loss.time_std, random),
            torch.rand(batch_size, generator=random, device=device) < 0.5,
            torch.rand(batch_size, generator=random, device=device),
        )

    def complete(self, data: LatentBatch) -> LatentBatch:
        """As of :class:`sfd.training.diffusion.DiffusionTask`."""
        return with_words(data, self.words_of)

    def losses(self, network: nn.Module, data: LatentBatch, noise: ProbeDraws) -> dict[str, Tensor]:
        """The terms, batch means."""
        x1 = data.latents
        if self.null_words is not None and self.null_words.mask.device != x1.device:
            self.null_words = self.null_words.to(x1.device)
        condition = told(self.config.condition, data, noise.dropout < self.class_dropout, self.null_words)
        velocity, energy = network(noise.x0, x1, noise.t, noise.by_texture, condition)
        chosen = 2.0 * noise.by_texture, 2.0 * ~noise.by_texture
        target, semantic_channels = x1 - noise.x0, self.config.semantic_channels
        batch = Predicted(velocity.float(), target, semantic_channels, chosen, channel_weights=self.channel_weights)
        return {"velocity": self.term(batch).mean(), "energy": energy - 1.0}
