"""Types of an audit: the samples that it examines, and its findings."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from sfd.audit.membership import Separation
from sfd.data.decoding import decode_rgb
from sfd.data.files import ImageRefused, open_regular
from sfd.data.images import read_crop, to_tensor_uint8
from sfd.errors import UserError
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


@dataclass(frozen=True)
class Crops:
    """Images of a folder as training images are seen."""

    folder: Path
    files: list[str]
    params: DataParams

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Centre crops uint8 ``(B, 3, S, S)``. Raises :class:`UserError` naming a file that is no image any more."""
        return to_tensor_uint8([self._crop(self.folder / self.files[index]) for index in indices])

    def _crop(self, file: Path) -> Image.Image:
        try:
            return read_crop(file, self.params.image_size, self.params.max_pixels)
        except ImageRefused as reason:
            raise UserError(f"{file} has changed since the audit began ({reason}); run it again") from None


class Size(NamedTuple):
    """Of an image, pixels. On its way to pinned memory, older versions of torch turn a plain tuple into a list."""

    width: int
    height: int


@dataclass(frozen=True)
class SizesOf:
    """The sizes of files that may be images."""

    folder: Path
    files: list[str]
    max_pixels: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: list[int]) -> list[Size | str]:
        """The size of each file, or why it is no image that can be used. All of it is decoded."""
        return [self._size(self.folder / self.files[index]) for index in indices]

    def _size(self, file: Path) -> Size | str:
        try:
            with open_regular(file) as stream:
                return Size(*decode_rgb(stream, self.max_pixels).size)
        except ImageRefused as reason:
            return str(reason)


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
