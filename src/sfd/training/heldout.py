"""The loss on held-out images while the diffusion model is trained."""

import torch
from torch import nn

from sfd.data.batches import each_tensor
from sfd.data.latents import LatentDataset
from sfd.processes import inference_device
from sfd.training.curves import HELDOUT_PREFIX
from sfd.training.diffusion import DiffusionTask

BATCH_SIZE = 50
"""Images per call of the network. It decides the draws, so it is no option."""


class HeldoutLoss:
    """The terms of the loss on the same held-out images with the same noise, times and dropped conditions, whenever it is called.

    The losses of a training are those of the weights as they are, on another batch in each step. This one is that of the averaged weights,
    and moves with them alone.
    """

    def __init__(self, task: DiffusionTask, dataset: LatentDataset, num_images: int) -> None:
        """``num_images``: the most that are used of the data set; they are evenly spaced."""
        number = min(num_images, len(dataset))
        self.task, self.dataset, self.device = task, dataset, inference_device()
        self.rows = [n * len(dataset) // number for n in range(number)]

    @torch.no_grad()
    def __call__(self, network: nn.Module, _step: int) -> dict[str, float]:
        """The mean of each term, and of their weighted sum."""
        was_training = network.training
        network.to(self.device).eval()
        sums = dict.fromkeys(self.task.weights, 0.0)
        for first in range(0, len(self.rows), BATCH_SIZE):
            rows = self.rows[first : first + BATCH_SIZE]
            data = each_tensor(self.dataset.__getitems__(rows), lambda value: value.to(self.device))
            draws = self.task.heldout_noise(first // BATCH_SIZE, len(rows))
            losses = self.task.losses(network, data, each_tensor(draws, lambda value: value.to(self.device)))
            for name, value in losses.items():
                sums[name] += float(value) * len(rows)
        network.train(was_training)
        means = {name: value / len(self.rows) for name, value in sums.items()}
        means["total"] = sum(weight * means[name] for name, weight in self.task.weights.items())
        return {HELDOUT_PREFIX + name: value for name, value in means.items()}
