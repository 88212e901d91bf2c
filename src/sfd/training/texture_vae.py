"""Training of a small texture VAE."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from sfd.encoders.texture_vae import TrainableAutoencoder, to_pixels
from sfd.params import TextureVaeParams
from sfd.seeding import generator
from sfd.training.loop import BatchedDataset, Tensors


class TextureVaeTask:
    """Squared and absolute error plus a small KL term."""

    purpose = "texture_vae"

    def __init__(
        self,
        params: TextureVaeParams,
        network: TrainableAutoencoder,
        dataset: BatchedDataset,
        image_size: int,
        seed: int,
    ) -> None:
        self.network, self.dataset, self.seed = network, dataset, seed
        grid = image_size // 2 ** (len(params.channels) - 1)
        self.latent_shape = (params.latent_channels, grid, grid)
        self.weights: Mapping[str, float] = {"mse": 1.0, "l1": 1.0, "kl": params.kl_weight}

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensors:
        """The posterior's noise."""
        random = generator(self.seed, "texture_vae/posterior", step, device)
        return (torch.randn(batch_size, *self.latent_shape, generator=random, device=device),)

    def losses(self, network: nn.Module, data: Tensors, noise: Tensors) -> dict[str, Tensor]:
        """``data``: images uint8 ``(B, 3, S, S)`` and classes, which are not used."""
        pixels = to_pixels(data[0])
        reconstruction, kl = network(pixels, noise[0])
        return {"mse": mse_loss(reconstruction, pixels), "l1": l1_loss(reconstruction, pixels), "kl": kl.mean()}
