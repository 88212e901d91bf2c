"""The loss on held-out images: always on the same draws, and beside the losses of the training in one table."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfd.data.latents import LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.params import LossParams
from sfd.seeding import generator
from sfd.training.curves import write_curve
from sfd.training.diffusion import DiffusionTask
from sfd.training.heldout import BATCH_SIZE, HeldoutLoss

NUM_IMAGES = 120


class Latents:
    """Random latents and features of numbered images; notes which ones were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        self.asked += indices
        random = [generator(0, "latent", index) for index in indices]
        latents = torch.stack([torch.randn(6, 4, 4, generator=each) for each in random])
        features = torch.stack([torch.randn(16, 8, generator=each) for each in random])
        return LatentBatch(latents, torch.tensor(indices) % 3, features)


def make_task(seed: int = 0) -> DiffusionTask:
    condition = ClassCondition.numbered(3)
    config = LightningDiTConfig(
        4, 6, 32, 2, 2, condition, semantic_channels=2, two_times=True, repa_depth=1, repa_width=16, feature_dim=8
    )
    network, random = LightningDiT(config), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
    return DiffusionTask(network, Latents(), LossParams(), OffsetSchedule(0.3), 0.1, seed)


def heldout(task: DiffusionTask, num_images: int) -> tuple[HeldoutLoss, Latents]:
    latents = Latents()
    return HeldoutLoss(task, latents, num_images), latents  # type: ignore[arg-type]  # what it uses of a LatentDataset


def test_it_is_the_mean_of_every_term_over_the_images_with_draws_that_no_step_and_no_global_seed_changes() -> None:
    task = make_task()
    measure, latents = heldout(task, 70)
    torch.manual_seed(5)
    first, state = measure(task.network, 10), torch.get_rng_state()
    torch.manual_seed(6)
    assert measure(task.network, 20) == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state), "and it takes nothing from the global generator"
    rows = [n * NUM_IMAGES // 70 for n in range(70)]
    assert latents.asked == rows * 2

    sums = dict.fromkeys(task.weights, 0.0)
    for batch, part in enumerate((rows[:BATCH_SIZE], rows[BATCH_SIZE:])):
        with torch.no_grad():
            losses = task.losses(task.network, Latents().__getitems__(part), task.heldout_noise(batch, len(part)))
        for name, value in losses.items():
            sums[name] += float(value) * len(part) / 70
    assert first == pytest.approx(
        {f"heldout_{name}": value for name, value in sums.items()}
        | {"heldout_total": sum(task.weights[name] * value for name, value in sums.items())}
    )


def test_the_draws_are_not_those_of_a_step_and_follow_the_seed() -> None:
    task = make_task()
    at_step: Tensor = task.noise(0, BATCH_SIZE, torch.device("cpu")).x0
    drawn = task.heldout_noise(0, BATCH_SIZE).x0
    assert not torch.equal(drawn, at_step)
    assert torch.equal(drawn, make_task().heldout_noise(0, BATCH_SIZE).x0)
    assert not torch.equal(drawn, make_task(seed=1).heldout_noise(0, BATCH_SIZE).x0)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_in_which_it_was_and_without_gradients(training: bool) -> None:
    task = make_task()
    measure, latents = heldout(task, 1000)
    measure(task.network.train(training), 1)
    assert task.network.training is training and all(p.grad is None for p in task.network.parameters())
    assert latents.asked == list(range(NUM_IMAGES)), "more images than there are: all of them"


def test_the_table_has_a_column_for_each_term_on_held_out_images_and_empty_cells_where_none_was_measured(
    tmp_path: Path,
) -> None:
    rows = [
        {"step": 50, "velocity": 1.0, "total": 2.0},
        {"step": 70, "heldout_velocity": 1.5, "heldout_total": 2.5},
        {"step": 100, "velocity": 0.5, "total": 1.0, "heldout_velocity": 0.8, "heldout_total": 1.4},
    ]
    table, picture = write_curve(tmp_path, rows)
    with table.open(encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == ["step", "velocity", "total", "heldout_velocity", "heldout_total"]
    assert [row["heldout_total"] for row in found] == ["", "2.5", "1.4"] and found[1]["total"] == ""
    assert picture.is_file()
