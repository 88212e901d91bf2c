"""Training of a texture VAE, or of the network on top of a fitted tokenizer: errors of pixels and features, a discriminator, and
the alignment of the latent with features."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, l1_loss, mse_loss, relu

from sfd.data.batches import BatchedDataset
from sfd.data.images import ImageBatch
from sfd.encoders.texture_vae import TrainableAutoencoder
from sfd.encoders.tokenizers.residual import ResidualDecoder
from sfd.encoders.tokenizers.tokenizer import Tokenizer
from sfd.params import TextureVaeParams
from sfd.pixels import to_pixels
from sfd.seeding import generator, seeded_initialisation
from sfd.training.alignment import Alignment, gradient_ratio

Features = Callable[[Tensor], Tensor]
"""Pixels ``(B, 3, S, S)`` in [-1, 1] -> features ``(B, N, D)`` of a frozen network, with gradients."""


class Discriminator(nn.Sequential):
    """Says of each patch of 18 x 18 pixels whether it is real: pixels ``(B, 3, S, S)`` -> ``(B, 1, S/4, S/4)`` (pix2pix, arXiv 1611.07004)."""

    def __init__(self, seed: int, width: int = 32) -> None:
        with seeded_initialisation(seed, "texture_vae/discriminator"):
            super().__init__(
                nn.Conv2d(3, width, 4, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.GroupNorm(4, 2 * width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(2 * width, 1, 3, padding=1),
            )

    def terms(self, pixels: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The two sides of the hinge loss (arXiv 1705.02894), each with gradients for its own network alone.

        So one optimizer serves both: Adam treats every weight by itself.
        """
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        real, fake = self(pixels), self(reconstruction.detach())
        return {
            "adversarial": -functional_call(self, frozen, (reconstruction,)).mean(),
            "discriminator": relu(1.0 - real).mean() + relu(1.0 + fake).mean(),
        }


class WithOthers(nn.Module):
    """A network, and others that are trained beside it (its discriminator, the map of its alignment)."""

    def __init__(self, network: nn.Module, **others: nn.Module) -> None:
        super().__init__()
        self.network = network
        for name, other in others.items():
            self.add_module(name, other)

    def forward(self, *inputs: Tensor) -> object:
        """That of the network."""
        return self.network(*inputs)


class _ReconstructionTask:
    """Squared and absolute error of the pixels, and the terms that have a weight.

    Attributes:
        network: what is trained. Its weights are updated in place, those of the network that was given, too.
    """

    purpose = "texture_vae"

    def __init__(
        self,
        params: TextureVaeParams,
        network: nn.Module,
        dataset: BatchedDataset[ImageBatch],
        seed: int,
        features: Features | None,
        alignment: Alignment | None = None,
    ) -> None:
        self.dataset, self.seed, self.features = dataset, seed, features
        self.network = network
        self.discriminator: Discriminator | None = None
        self.weights: Mapping[str, float] = {"mse": 1.0, "l1": 1.0}
        others: dict[str, nn.Module] = {} if alignment is None else {"alignment": alignment}
        self.is_perceptual = features is not None and params.perceptual_weight > 0.0
        if self.is_perceptual:
            self.weights = {**self.weights, "perceptual": params.perceptual_weight}
        if params.adversarial_weight > 0.0:
            self.discriminator = others["discriminator"] = Discriminator(seed)
            self.weights = {**self.weights, "adversarial": params.adversarial_weight, "discriminator": 1.0}
        if others:
            self.network = WithOthers(network, **others)

    def wanted(self, pixels: Tensor) -> Tensor | None:
        """The features of the images themselves; None where no term needs them."""
        if self.features is None:
            return None
        with torch.no_grad():
            return self.features(pixels)

    def terms(self, pixels: Tensor, reconstruction: Tensor, wanted: Tensor | None) -> dict[str, Tensor]:
        """Batch means. ``wanted``: what :meth:`wanted` said."""
        found = {"mse": mse_loss(reconstruction, pixels), "l1": l1_loss(reconstruction, pixels)}
        if self.is_perceptual and self.features is not None and wanted is not None:
            found["perceptual"] = (1.0 - cosine_similarity(self.features(reconstruction), wanted, dim=-1)).mean()
        if self.discriminator is not None:
            found |= self.discriminator.terms(pixels, reconstruction)
        return found


class TextureVaeTask(_ReconstructionTask):
    """An autoencoder, with a small KL term.

    ``features``: for the perceptual term and the alignment; None: without them. ``alignment``: the map of the latter, and its losses.
    """

    def __init__(
        self,
        params: TextureVaeParams,
        network: TrainableAutoencoder,
        dataset: BatchedDataset[ImageBatch],
        image_size: int,
        seed: int,
        features: Features | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        super().__init__(params, network, dataset, seed, features, alignment)
        self.alignment = alignment
        self.last_layer: Any = network.autoencoder.encoder.conv_out
        grid = image_size // 2 ** (len(params.channels) - 1)
        self.latent_shape = (params.latent_channels, grid, grid)
        self.weights = {**self.weights, "kl": params.kl_weight}
        if alignment is not None:
            # The last two are shown only: they are in the first one.
            shown = {"alignment_cosine": 0.0, "alignment_distance": 0.0}
            self.weights = {**self.weights, "alignment": alignment.params.weight, **shown}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        """The noise of a sample of the latent, ``(B, C, H, W)``."""
        random = generator(self.seed, "texture_vae/posterior", step, device)
        return torch.randn(batch_size, *self.latent_shape, generator=random, device=device)

    def losses(self, network: nn.Module, data: ImageBatch, noise: Tensor) -> dict[str, Tensor]:
        """The terms, batch means. The classes are not used."""
        pixels = to_pixels(data.images)
        reconstruction, kl, latent = network(pixels, noise)
        wanted = self.wanted(pixels)
        found = {**self.terms(pixels, reconstruction, wanted), "kl": kl.mean()}
        if self.alignment is not None and wanted is not None:
            found |= self._aligned(self.alignment, latent, wanted, found)
        return found

    def _aligned(
        self, alignment: Alignment, latent: Tensor, wanted: Tensor, found: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The terms of the alignment, the first one with its adaptive weight. ``found``: the other terms."""
        params = alignment.params
        cosine, distance = alignment.terms(latent, wanted)
        loss = params.cosine_weight * cosine + params.distance_weight * distance
        if params.adaptive:
            of_pixels = [self.weights[name] * found[name] for name in ("mse", "l1", "perceptual") if name in found]
            loss = gradient_ratio(torch.stack(of_pixels).sum(), loss, self.last_layer.weight) * loss
        return {"alignment": loss, "alignment_cosine": cosine.detach(), "alignment_distance": distance.detach()}


class ResidualTask(_ReconstructionTask):
    """The network on top of a fitted tokenizer, which stays as it is. ``features``: as in :class:`TextureVaeTask`."""

    def __init__(
        self,
        params: TextureVaeParams,
        network: ResidualDecoder,
        tokenizer: Tokenizer,
        dataset: BatchedDataset[ImageBatch],
        seed: int,
        features: Features | None = None,
    ) -> None:
        super().__init__(params, network, dataset, seed, features)
        self.tokenizer = tokenizer

    def noise(self, _step: int, batch_size: int, device: torch.device) -> Tensor:
        """Nothing is drawn: ``(B, 0)``."""
        return torch.empty(batch_size, 0, device=device)

    def losses(self, network: nn.Module, data: ImageBatch, _noise: Tensor) -> dict[str, Tensor]:
        """The terms, batch means. The classes are not used."""
        pixels = to_pixels(data.images)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            decoded = self.tokenizer.decode_pixels(self.tokenizer.encode_pixels(pixels))
        return self.terms(pixels, network(decoded), self.wanted(pixels))
