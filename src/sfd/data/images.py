"""Square RGB pixels: the ADM centre crop, tensors, batches by manifest row."""

import copy
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from sfd.data.decoding import decode_checked, decode_rgb
from sfd.data.files import ImageRefused, ImageStore, open_regular
from sfd.errors import UserError

# Longer images lose their ends before the centre crop resizes them, which bounds its memory.
MAX_ASPECT = 100


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre crop of ADM (github.com/openai/guided-diffusion, ``center_crop_arr``).

    Halve with a box filter while the short side is at least twice ``size``, resize bicubically so that it is ``size``,
    cut out the middle. An image longer than 100 times its short side loses its ends first: ADM would run out of memory.

    Args:
        image: RGB, any size.
        size: side of the result, pixels.
    """
    image = _without_ends(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


def classifier_crop(image: Image.Image, size: int) -> Image.Image:
    """The crop with which ImageNet classifiers are tested: the short side resized bicubically to 8/7 of ``size``, and of that the centre.

    With 224 for ``size`` that is 256, as in the published training of SemVAE. Sides and offsets are rounded as torchvision does. Very long images
    lose their ends as in :func:`center_crop`.

    Args:
        image: RGB, any size.
        size: side of the result, pixels.
    """
    image, short = _without_ends(image), round(size * 8 / 7)
    width, height = (int(short * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _without_ends(image: Image.Image) -> Image.Image:
    longest = MAX_ASPECT * min(image.size)
    return (
        image if max(image.size) <= longest else _middle(image, min(image.width, longest), min(image.height, longest))
    )


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return Image.fromarray(np.asarray(image)[top : top + height, left : left + width])


def read_crop(path: Path, size: int, max_pixels: int) -> Image.Image:
    """A file as it enters the pipeline: :func:`sfd.data.decoding.decode_rgb`, then :func:`center_crop`. Raises :class:`ImageRefused`."""
    with open_regular(path) as file:
        return center_crop(decode_rgb(file, max_pixels), size)


def png_bytes(image: torch.Tensor) -> bytes:
    """An image uint8 ``(3, H, W)`` as a PNG file; equal pixels give equal bytes."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, format="PNG")
    return stream.getvalue()


def to_tensor_uint8(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stacks RGB images of one size: uint8 ``(B, 3, H, W)``, values 0..255."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


class _JoinedStore:
    """The rows of one store, then those of another."""

    def __init__(self, first: ImageStore, second: ImageStore) -> None:
        self.first, self.second = first, second
        self.paths = first.paths + second.paths

    def _locate(self, row: int) -> tuple[ImageStore, int]:
        num_first = len(self.first.paths)
        return (self.first, row) if row < num_first else (self.second, row - num_first)

    def read(self, row: int) -> bytes:
        store, row = self._locate(row)
        return store.read(row)

    def place(self, row: int) -> str:
        store, row = self._locate(row)
        return store.place(row)


class ImageBatch(NamedTuple):
    """Images and what they show.

    Attributes:
        images: uint8 ``(B, 3, S, S)``.
        class_indices: the class of each image, int64 ``(B,)``.
    """

    images: torch.Tensor
    class_indices: torch.Tensor


class Pixels:
    """The images of a data set without their classes."""

    def __init__(self, images: "ManifestImages") -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """These rows, uint8 ``(B, 3, S, S)``."""
        return self.images.__getitems__(indices).images


class ManifestImages(torch.utils.data.Dataset[ImageBatch]):
    """The images of a manifest as centre crops, read in whole batches.

    With a ``DataLoader``, pass ``collate_fn=lambda batch: batch`` (or any identity): a batch arrives already stacked.

    Args:
        manifest: columns ``sha256`` and ``class_index`` of the store's rows, in its order.
        store: the files.
        size: side of the crops, pixels.
        max_pixels: as in :func:`sfd.data.decoding.decode_rgb`.
        crop: what cuts a square of side ``size`` out of an image.
    """

    def __init__(
        self,
        manifest: pd.DataFrame,
        store: ImageStore,
        size: int,
        max_pixels: int,
        crop: Callable[[Image.Image, int], Image.Image] = center_crop,
    ) -> None:
        self.store = store
        self.size = size
        self.crop = crop
        self.max_pixels = max_pixels
        self.sha256: list[str] = manifest["sha256"].tolist()
        self.class_indices = torch.tensor(manifest["class_index"].tolist(), dtype=torch.int64)

    @property
    def paths(self) -> list[str]:
        """The images' paths in the manifest."""
        return self.store.paths

    def joined(self, other: "ManifestImages") -> "ManifestImages":
        """These images, then those of ``other``, as crops of this set's size."""
        both = copy.copy(self)
        both.store = _JoinedStore(self.store, other.store)
        both.sha256 = self.sha256 + other.sha256
        both.class_indices = torch.cat([self.class_indices, other.class_indices])
        return both

    def __len__(self) -> int:
        return len(self.sha256)

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        """These rows; images have side ``size``.

        Raises:
            UserError: a file is missing, or differs from the one that ``prepare`` saw.
        """
        return ImageBatch(to_tensor_uint8([self._crop(index) for index in indices]), self.class_indices[indices])

    def _crop(self, index: int) -> Image.Image:
        try:
            data = self.store.read(index)
            if hashlib.sha256(data).hexdigest() != self.sha256[index]:
                raise ImageRefused("its content is another one")
            return self.crop(decode_checked(data, self.max_pixels), self.size)
        except ImageRefused as reason:
            raise UserError(
                f"{self.store.place(index)} has changed since stage `prepare` ({reason}); rerun `dvc repro`"
            ) from None
