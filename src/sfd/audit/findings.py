"""Types of an audit: the samples that it examines, and its findings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfd.audit.membership import Separation
from sfd.data.images import read_crop, to_tensor_uint8
from sfd.evaluation.memorisation import Memorisation
from sfd.params import DataParams


@dataclass(frozen=True)
class Samples:
    """Images to audit, as paths relative to ``folder``. ``version``: name and version of the model that made them, if a table says so.

    ``refused``: files that are not images, with reasons; only for a folder without a table. ``num_cropped``: number of images of
    another size. ``classes``: the name of each image's class, if a table has one.
    """

    folder: Path
    files: list[str]
    version: tuple[str, str] | None
    refused: dict[str, str]
    num_cropped: int
    classes: list[str] | None = None

    def class_indices(self, names: list[str]) -> list[int] | None:
        """The class of each image as an index into ``names``; None if an image has no class of that name."""
        index_of = {name: index for index, name in enumerate(names)}
        if self.classes is None or not set(self.classes) <= set(names):
            return None
        return [index_of[name] for name in self.classes]

    def load(self, rows: Sequence[int], params: DataParams) -> Tensor:
        """Centre crops uint8 ``(B, 3, S, S)``."""
        return to_tensor_uint8(
            [read_crop(self.folder / self.files[row], params.image_size, params.max_pixels) for row in rows]
        )

    def batches(self, size: int, params: DataParams) -> Iterator[Tensor]:
        """All samples in order, as batches of :meth:`load`."""
        for start in range(0, len(self.files), size):
            yield self.load(range(start, min(start + size, len(self.files))), params)


@dataclass(frozen=True)
class Neighbours:
    """How near samples lie to training images.

    ``identical``: for each row of ``found.table`` below the limit, whether the sample has the pixels of the training image.
    ``interval``, ``expected_interval``: 95 % intervals of the shares of samples, and of held-out images, below the limit.
    ``p_value``: probability that by chance as many samples or more lie below the limit.
    """

    found: Memorisation
    identical: list[bool]
    num_samples: int
    num_below: int
    interval: tuple[float, float]
    num_heldout: int
    num_heldout_below: int
    expected_interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Attack:
    """The outcome of membership inference by loss on the model in ``results/diffusion``.

    Both losses are means over ``num_images`` images.
    """

    num_images: int
    member_loss: float
    heldout_loss: float
    separation: Separation
