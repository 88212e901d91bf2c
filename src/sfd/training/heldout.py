"""The loss on held-out images while the diffusion model is trained."""

import torch
from accelerate.utils import gather_object
from torch import nn

from sfd.class_mix import evenly_spaced
from sfd.data.batches import each_tensor, in_batches
from sfd.data.latents import LatentDataset
from sfd.precision import Inference
from sfd.processes import rank, world_size
from sfd.training.curves import HELDOUT_PREFIX
from sfd.training.diffusion import DiffusionTask

BATCH_SIZE = 50
"""Images per call of the network. It decides the draws, so it is no option."""


class HeldoutLoss:
    """The terms of the loss on the same held-out images with the same noise, times and dropped conditions, whenever it is called.

    The losses of a training are those of the weights as they are, on another batch in each step. This one is that of the averaged weights,
    and moves with them alone. It is computed in float32, whatever the precision of the training.
    """

    def __init__(self, task: DiffusionTask, dataset: LatentDataset, num_images: int, together: bool = False) -> None:
        """``num_images``: the most that are used of the data set; they are evenly spaced. ``together``: all processes call it and share the
        work."""
        self.task, self.dataset, self.inference = task, dataset, Inference.float32()
        self.batches = in_batches(evenly_spaced(len(dataset), num_images), BATCH_SIZE)
        self.share = slice(rank(), None, world_size()) if together else slice(None)
        self.together = together

    @torch.no_grad()
    def __call__(self, network: nn.Module, _step: int) -> dict[str, float]:
        """The mean of each term, and of their weighted sum. They are the same whoever shares the work."""
        was_training = network.training
        network.to(self.inference.device).eval()
        numbers = range(len(self.batches))[self.share]
        mine = [(number, self._losses(network, number)) for number in numbers]
        network.train(was_training)
        found = sorted(gather_object(mine) if self.together else mine)
        num_images = sum(map(len, self.batches))
        means = {
            name: sum(losses[place] * len(self.batches[number]) for number, losses in found) / num_images
            for place, name in enumerate(self.task.weights)
        }
        means["total"] = sum(weight * means[name] for name, weight in self.task.weights.items())
        return {HELDOUT_PREFIX + name: value for name, value in means.items()}

    def _losses(self, network: nn.Module, number: int) -> list[float]:
        """The terms of one batch, in the order of the task's weights."""
        rows, device = self.batches[number], self.inference.device
        data = each_tensor(self.task.complete(self.dataset.__getitems__(rows)), lambda value: value.to(device))
        draws = each_tensor(self.task.heldout_noise(number, len(rows)), lambda value: value.to(device))
        with self.inference.arithmetic():
            losses = self.task.losses(network, data, draws)
        values: list[float] = torch.stack([losses[name] for name in self.task.weights]).double().tolist()
        return values
