"""Membership inference by loss: can an attacker who has the model tell training images from held-out ones?

A model that has memorised its images has a lower loss on them than on unseen images of the same source
(arXiv 1709.01604; on diffusion models arXiv 2302.03262). This is a baseline: attacks with reference models, such as
LiRA (arXiv 2112.03570), find more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfd.data.batches import in_batches, read_ahead
from sfd.data.images import ManifestImages
from sfd.diffusion.loss import interpolate
from sfd.diffusion.terms.velocity import velocity_loss
from sfd.encoders.composite import CompositeEncoder
from sfd.generation.model import DiffusionModel
from sfd.generation.schedules import middle_schedule
from sfd.models.backbone import Output
from sfd.params import ReadingRuntime
from sfd.seeding import derive_seed, generator

PROGRESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Values of u at which the loss is computed."""
DRAWS = 4
"""Number of noise draws at each value of u."""

Array = npt.NDArray[np.float64]

CONFIDENCE, RESAMPLES = 0.95, 2000


@dataclass(frozen=True)
class Separation:
    """``auc``: the probability that a member has a lower loss than a non-member; 0.5 means that the attacker learns nothing.

    ``interval``: 95 %, percentile bootstrap; members and non-members are resampled separately.
    """

    auc: float
    interval: tuple[float, float]


@torch.no_grad()
def image_losses(
    model: DiffusionModel,
    network: Callable[..., Output],
    latents: Tensor,
    class_indices: Tensor,
    semantic_weight: float,
    seed: int,
) -> Tensor:
    """Mean squared velocity error of each image, ``(B,)`` float64 on the CPU. All images get the same times and noises.

    ``network``: the model's, as it is to be called. ``latents``, normalised ``(B, C, H, W)``, and ``class_indices`` ``(B,)`` are on its
    device. ``semantic_weight``: see :func:`sfd.diffusion.terms.velocity.velocity_loss`.
    """
    schedule, channels = middle_schedule(model.schedule_params), model.network.config.semantic_channels
    condition = model.condition.of_images(class_indices)
    total = torch.zeros(len(latents), dtype=torch.float64)
    draws = list(product(PROGRESS, range(DRAWS)))
    for number, (u, _) in enumerate(draws):
        noise = torch.randn(latents.shape[1:], generator=generator(seed, "audit/noise", number)).to(latents.device)
        x0 = noise.expand_as(latents)
        t_tex, t_sem = schedule.times(latents.new_full((len(latents),), u))
        xt = interpolate(x0, latents, t_tex, t_sem, channels)
        velocity = network(xt, t_tex, t_sem, condition).velocity
        total += velocity_loss(velocity, latents - x0, channels, semantic_weight).double().cpu()
    return total / len(draws)


def losses_of_images(
    model: DiffusionModel,
    network: Callable[..., Output],
    encode: CompositeEncoder,
    images: ManifestImages,
    rows: list[int],
    runtime: ReadingRuntime,
    semantic_weight: float,
    seed: int,
) -> Tensor:
    """:func:`image_losses` of these rows of ``images``, encoded by ``encode`` as for training."""
    losses, numbers = [], in_batches(range(len(rows)), runtime.batch_size)
    with read_ahead(images, in_batches(rows, runtime.batch_size), runtime.num_workers) as batches:
        for draws, batch in zip(numbers, batches, strict=True):
            latents, _ = encode(batch.images, draws)
            # Latents are stored, and trained on, in half precision.
            normalised = model.statistics.normalise(latents.half().float().cpu()).to(encode.device)
            classes = batch.class_indices.to(encode.device)
            losses.append(image_losses(model, network, normalised, classes, semantic_weight, seed))
    return torch.cat(losses)


def separation(members: Tensor, others: Tensor, seed: int) -> Separation:
    """How well losses tell members ``(N,)`` from others ``(M,)``."""
    from scipy.stats import bootstrap

    random = np.random.default_rng(derive_seed(seed, "audit/bootstrap"))
    data = (members.numpy(), others.numpy())
    resampled = bootstrap(
        data, _auc, n_resamples=RESAMPLES, vectorized=True, confidence_level=CONFIDENCE, method="percentile", rng=random
    )
    low, high = resampled.confidence_interval
    return Separation(float(_auc(*data)), (float(low), float(high)))


def _auc(members: Array, others: Array, axis: int = -1) -> Array:
    """Area under the ROC curve of the guess that low losses are those of members: Mann and Whitney's U as a share of all pairs."""
    from scipy.stats import mannwhitneyu

    pairs = members.shape[axis] * others.shape[axis]
    share: Array = mannwhitneyu(others, members, axis=axis, method="asymptotic").statistic / pairs
    return share
