"""The classifier task: augmentation and labels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sfd.data.images import ImageBatch
from sfd.training.classifier import MAX_SHIFT, Augmentation, ClassifierTask, augment, num_outputs

CPU = torch.device("cpu")


class NoData:
    def __len__(self) -> int:
        return 1

    def __getitems__(self, _indices: list[int]) -> ImageBatch:
        raise NotImplementedError


class Recorder(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.pixels = torch.empty(0)

    def forward(self, pixels: Tensor) -> Tensor:
        self.pixels = pixels
        return torch.linspace(0, 1, self.outputs).expand(len(pixels), -1)


def make(num_classes: int, mirror: bool = False, seed: int = 0, purpose: str = "judge") -> ClassifierTask:
    return ClassifierTask(purpose, nn.Identity(), NoData(), num_classes, mirror, seed)


def middle(size: int = 1, **draws: list[Any]) -> Augmentation:
    """Draws that change nothing, but for those given."""
    middles = Augmentation.of(torch.full((size, 6), 0.5))
    return middles._replace(**{name: torch.tensor(values) for name, values in draws.items()})


def pictures(size: int = 1) -> Tensor:
    return torch.rand(size, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_draws_in_the_middle_leave_an_image_as_it_is() -> None:
    images = pictures()
    torch.testing.assert_close(augment(images, middle(), mirror=False), images, rtol=0, atol=1e-5)
    assert not torch.allclose(augment(images, middle(angle=[1.0]), mirror=False), images, atol=0.05)


def test_images_are_mirrored_only_where_that_keeps_the_class() -> None:
    images = pictures()
    torch.testing.assert_close(augment(images, middle(flip=[0.1]), mirror=True), images.flip(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(augment(images, middle(flip=[0.9]), mirror=True), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(augment(images, middle(flip=[0.1]), mirror=False), images, rtol=0, atol=1e-5)


def test_a_shift_moves_an_image_by_a_part_of_half_its_side() -> None:
    line = torch.zeros(1, 3, 1, 41)
    line[..., 20] = 1.0
    moved = augment(line, middle(shift=[[1.0, 0.5]]), mirror=False)
    assert int(moved[0, 0, 0].argmax()) == 20 - round(MAX_SHIFT * 41 / 2)


def test_the_border_is_continued_where_an_image_moves_away_from_it() -> None:
    assert torch.allclose(
        augment(torch.ones(4, 3, 8, 8), Augmentation.of(torch.rand(4, 6)), mirror=True), torch.ones(4, 3, 8, 8)
    )


def test_each_image_has_draws_of_its_own() -> None:
    images = pictures().expand(2, -1, -1, -1)
    draws = middle(2, angle=[0.5, 1.0])
    first, second = augment(images, draws, mirror=False)
    torch.testing.assert_close(first, images[0], rtol=0, atol=1e-5)
    assert not torch.allclose(first, second, atol=0.05)


def test_several_classes_are_told_apart_by_their_labels() -> None:
    network, labels = Recorder(3), torch.tensor([0, 2])
    images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    loss = make(3).losses(network, ImageBatch(images, labels), middle(2))["cross_entropy"]
    torch.testing.assert_close(loss, cross_entropy(torch.linspace(0, 1, 3).expand(2, -1), labels))
    torch.testing.assert_close(network.pixels, torch.ones(2, 3, 8, 8))
    assert num_outputs(3) == 3


def test_a_single_class_is_replaced_by_quarter_turns() -> None:
    network = Recorder(num_outputs(1))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(images, torch.zeros(4, dtype=torch.int64))
    loss = make(1).losses(network, batch, middle(4, turn=[0.0, 0.3, 0.6, 0.99]))["cross_entropy"]
    upright = images.float() / 127.5 - 1.0
    for turns, (before, after) in enumerate(zip(upright, network.pixels, strict=True)):
        torch.testing.assert_close(after, torch.rot90(before, turns, (1, 2)), rtol=0, atol=1e-4)
    torch.testing.assert_close(loss, cross_entropy(torch.linspace(0, 1, 4).expand(4, -1), torch.arange(4)))


def test_draws_depend_on_seed_purpose_and_step_alone() -> None:
    draws = make(3).noise(5, 7, CPU)
    assert [tuple(values.shape) for values in draws] == [(7,), (7,), (7, 2), (7,), (7,)]
    assert all(map(torch.equal, draws, make(3).noise(5, 7, CPU)))
    for other in (make(3, seed=1), make(3, purpose="encoder")):
        assert not any(map(torch.equal, draws, other.noise(5, 7, CPU)))
    assert not any(map(torch.equal, draws, make(3).noise(6, 7, CPU)))
    assert all(math.isclose(float(values.mean()), 0.5, abs_tol=0.01) for values in make(3).noise(0, 10_000, CPU))
