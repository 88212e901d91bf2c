"""Images of unequal classes, samples that are training images, a judge of eight features, and a VAE that loses nothing."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from support import draw_images
from torch import Tensor, nn

from sfd.class_mix import ClassMix
from sfd.data.manifest import TRAIN
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge
from sfd.generation.samples import plan
from sfd.models.conditions import ClassCondition, Condition
from sfd.params import DataParams

OPTIONS = {"kid_subsets": 4, "kid_subset_size": 8}


class Stripes(Judge):
    """Sees where the light is: the means of four rows and four columns."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.digest, self.classes, self.num_features = "stripes", "0" * 64, 2, 8
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float().mean(dim=1) * self.scale
        rows, columns = pixels.mean(dim=2).unflatten(1, (4, 4)), pixels.mean(dim=1).unflatten(1, (4, 4))
        upright = columns.flatten(1).var(dim=1) - rows.flatten(1).var(dim=1)
        return torch.cat([rows.mean(2), columns.mean(2)], dim=1), torch.stack([-upright, upright], dim=1)


class Copies:
    """A texture VAE that loses nothing."""

    def latent_shape(self, number: int, size: int) -> tuple[int, ...]:
        return (number, 3, size, size)

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def prepared(folder: Path) -> Prepared:
    """180 and 60 images to train on, 60 and 20 held out."""
    draw_images(folder / "images/lying", 240, 1, vertical=False)
    draw_images(folder / "images/upright", 80, 2, vertical=True)
    options = {"source": "folder", "root": str(folder / "images"), "image_size": 16, "holdout_fraction": 0.25}
    params = DataParams.model_validate(options | {"mirror": False})
    prepare(params, 0, folder / "prepare")
    return Prepared.load(params, folder / "prepare")


def condition_of(data: Prepared) -> ClassCondition:
    counts = data.images(TRAIN).class_indices.bincount().tolist()
    return ClassCondition.from_data(data.summary.classes, counts)


def draw(data: Prepared, out: Path, condition: Condition, num_images: int, mix: ClassMix) -> Path:
    """What stage `sample` would leave of a model that has learnt its training images by heart."""
    train, values = data.images(TRAIN), condition.plan(num_images, mix)
    table = plan(values, condition, seed=0)
    (out / "images").mkdir(parents=True)
    given: Counter[Any] = Counter()
    for file, value in zip(table["file"], values, strict=True):
        rows = [row for row, label in enumerate(train.class_indices.tolist()) if value in (None, label)]
        pixels = train.__getitems__([rows[given[value] % len(rows)]]).images[0]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(out / "images" / file)
        given[value] += 1
    table.to_csv(out / "samples.csv", index=False)
    return out
