"""Image files in, square RGB pixels out: strict decoding, the ADM centre crop, batches by manifest row."""

import copy
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from sfd.data.files import ImageRefused, ImageStore, open_regular
from sfd.errors import UserError

ALLOWED_FORMATS = "PNG, JPEG, WebP, BMP"
# Longer images lose their ends before the centre crop resizes them, which bounds its memory.
MAX_ASPECT = 100

_pillow_limit = threading.Lock()


def decode_rgb(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Decodes one image completely, turns it upright by its EXIF orientation, and converts it to 8-bit RGB.

    Transparency is composited on white, 16 bits are scaled to 8, and of an animation the first frame is taken.

    Args:
        file: seekable binary stream; it is read from the start and stays open.
        max_pixels: limit on width * height, checked from the header before anything is decoded.

    Raises:
        ImageRefused: empty, truncated, damaged, too large, not an image, or not of format PNG, JPEG, WebP or BMP.
    """
    image = _open_header(file, max_pixels)
    if image.width * image.height > max_pixels:
        raise ImageRefused(f"too many pixels: {image.width} x {image.height}, at most {max_pixels}")
    try:
        image.load()
        if isinstance(image, PngImagePlugin.PngImageFile):
            _check_png_end(file)
        return _to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged data
        raise ImageRefused(_damage(error)) from error


def _open_header(file: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    file.seek(0)
    prefix = file.read(16)
    if not prefix:
        raise ImageRefused("empty file")
    reader = _reader_of(prefix)
    if reader is WebPImagePlugin.WebPImageFile and file.seek(0, os.SEEK_END) < 8 + int.from_bytes(
        prefix[4:8], "little"
    ):
        raise ImageRefused("truncated")
    file.seek(0)
    try:
        # Not Image.open: it refuses and warns by Pillow's own limit, which is global and not max_pixels.
        with _pillow_limit_at(max_pixels):
            return reader(file)
    except Image.DecompressionBombError:
        raise ImageRefused(f"too many pixels: at most {max_pixels}") from None
    except MemoryError:
        raise
    except Exception as error:  # as in decode_rgb
        raise ImageRefused(_damage(error)) from error


def _reader_of(prefix: bytes) -> type[ImageFile.ImageFile]:
    """The Pillow class for the first 16 bytes of a file; the file's name does not matter."""
    if prefix.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if prefix.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if prefix.startswith(b"RIFF") and prefix[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if prefix.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    Image.init()
    for name, (_, accept) in sorted(Image.OPEN.items()):
        if len(prefix) == 16 and accept is not None and accept(prefix):
            raise ImageRefused(f"format not allowed: {name}, only {ALLOWED_FORMATS}")
    raise ImageRefused("not an image")


@contextmanager
def _pillow_limit_at(max_pixels: int) -> Iterator[None]:
    """Sets Pillow's global pixel limit, which the WebP reader checks, while one header is read."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_png_end(file: BinaryIO) -> None:
    """Pillow accepts a PNG that ends after its last pixel; a whole one has an IEND chunk."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND" and len(file.read(4)) == 4:
            return
        file.seek(length + 4, os.SEEK_CUR)
    raise ImageRefused("truncated")


def _damage(error: Exception) -> str:
    if isinstance(error, ImageRefused):
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or "requires a buffer of at least" in text:  # the latter: struct, in a header
        return "truncated"
    return f"damaged: {text[:100]}"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_16_bits_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _grey_16_bits_to_rgb(image: Image.Image) -> Image.Image:
    """Scales modes I;16 and I, both with values 0..65535; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre crop of ADM (github.com/openai/guided-diffusion, ``center_crop_arr``).

    Halve with a box filter while the short side is at least twice ``size``, resize bicubically so that it is ``size``,
    cut out the middle. An image longer than 100 times its short side loses its ends first: ADM would run out of memory.

    Args:
        image: RGB, any size.
        size: side of the result, pixels.
    """
    short = min(image.size)
    if max(image.size) > MAX_ASPECT * short:
        image = _middle(image, min(image.width, MAX_ASPECT * short), min(image.height, MAX_ASPECT * short))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return Image.fromarray(np.asarray(image)[top : top + height, left : left + width])


def read_crop(path: Path, size: int, max_pixels: int) -> Image.Image:
    """A file as it enters the pipeline: :func:`decode_rgb`, then :func:`center_crop`. Raises :class:`ImageRefused`."""
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


class ManifestImages(torch.utils.data.Dataset[ImageBatch]):
    """The images of a manifest as centre crops, read in whole batches.

    With a ``DataLoader``, pass ``collate_fn=lambda batch: batch`` (or any identity): a batch arrives already stacked.

    Args:
        manifest: columns ``sha256`` and ``class_index`` of the store's rows, in its order.
        store: the files.
        size: side of the crops, pixels.
        max_pixels: as in :func:`decode_rgb`.
    """

    def __init__(self, manifest: pd.DataFrame, store: ImageStore, size: int, max_pixels: int) -> None:
        self.store = store
        self.size = size
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
            return center_crop(decode_rgb(io.BytesIO(data), self.max_pixels), self.size)
        except ImageRefused as reason:
            raise UserError(
                f"{self.store.place(index)} has changed since stage `prepare` ({reason}); rerun `dvc repro`"
            ) from None
