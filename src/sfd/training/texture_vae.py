"""Training of a small texture VAE."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from sfd.data.images import ImageBatch
from sfd.encoders.texture_vae import TrainableAutoencoder, to_pixels
from sfd.params import TextureVaeParams
from sfd.seeding import generator
from sfd.training.batches import BatchedDataset


class TextureVaeTask:
    """Squared and absolute error plus a small KL term."""

    purpose = "texture_vae"

    def __init__(
        self,
        params: TextureVaeParams,
        network: TrainableAutoencoder,
        dataset: BatchedDataset[ImageBatch],
        image_size: int,
        seed: int,
    ) -> None:
        self.network, self.dataset, self.seed = network, dataset, seed
        grid = image_size // 2 ** (len(params.channels) - 1)
        self.latent_shape = (params.latent_channels, grid, grid)
        self.weights: Mapping[str, float] = {"mse": 1.0, "l1": 1.0, "kl": params.kl_weight}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        """The noise of a sample of the latent, ``(B, C, H, W)``."""
        random = generator(self.seed, "texture_vae/posterior", step, device)
        return torch.randn(batch_size, *self.latent_shape, generator=random, device=device)

    def losses(self, network: nn.Module, data: ImageBatch, noise: Tensor) -> dict[str, Tensor]:
        """The terms, batch means. The classes are not used."""
        pixels = to_pixels(data.images)
        reconstruction, kl = network(pixels, noise)
        return {"mse": mse_loss(reconstruction, pixels), "l1": l1_loss(reconstruction, pixels), "kl": kl.mean()}
