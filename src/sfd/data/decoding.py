"""Strict decoding: an image file in, upright RGB pixels out, and no damaged picture accepted."""

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, ExifTags, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from sfd.data import jpeg, png
from sfd.data.files import ImageRefused, Picture, check_size, max_file_bytes

ALLOWED_FORMATS = "PNG, JPEG, WebP, BMP"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""

_pillow_limit = threading.Lock()


def decode_rgb(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Decodes one image completely, turns it upright by its EXIF orientation, and converts it to 8-bit RGB.

    Transparency is composited on white, 16 bits are scaled to 8, and of an animation the first frame is taken. Other metadata, and
    faults in them, play no part.

    Args:
        file: seekable binary stream; it is read from the start and stays open.
        max_pixels: limit on width * height, checked from the header before anything is decoded.

    Raises:
        ImageRefused: empty, truncated, damaged, too large, not an image, or not of format PNG, JPEG, WebP or BMP.
    """
    return _decoded(_read(file, max_pixels), max_pixels, check_whole=True)


def decode_checked(data: bytes, max_pixels: int) -> Image.Image:
    """As :func:`decode_rgb`, of a file that it has accepted before: damage that only a second decoder hears is not looked for."""
    return _decoded(data, max_pixels, check_whole=False)


def _read(file: BinaryIO, max_pixels: int) -> bytes:
    size, limit = file.seek(0, os.SEEK_END), max_file_bytes(max_pixels)
    if size > limit:
        raise ImageRefused(f"too large: {size} bytes, at most {limit}")
    file.seek(0)
    return file.read()


Reader = type[ImageFile.ImageFile]


def _decoded(data: bytes, max_pixels: int, *, check_whole: bool) -> Image.Image:
    if not data:
        raise ImageRefused("empty file")
    try:
        reader = _reader_of(data[:16])
        picture = _picture_of(reader, data, max_pixels)
        with _open(reader, picture.data, max_pixels) as image:
            if check_whole:
                _check_whole(reader, picture.data)
            image.load()
            oriented: dict[Any, Any] = {**image.info, **picture.metadata}
            rgb = _to_rgb(image, picture.data)
        turn = _TURNS.get(_orientation(oriented))
        return rgb if turn is None else rgb.transpose(turn)
    except (MemoryError, ImageRefused):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged data
        raise ImageRefused(_damage(error)) from error


def _reader_of(prefix: bytes) -> Reader:
    """The Pillow class for the first 16 bytes of a file; the file's name does not matter."""
    if prefix.startswith(png.SIGNATURE):
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


def _picture_of(reader: Reader, data: bytes, max_pixels: int) -> Picture:
    """Without the metadata of PNG and JPEG, at which Pillow may stumble. Those of WebP it hands out as they are, BMP has none."""
    if reader is PngImagePlugin.PngImageFile:
        return png.picture_of(data, max_pixels)
    if reader is JpegImagePlugin.JpegImageFile:
        return jpeg.picture_of(data)
    if reader is WebPImagePlugin.WebPImageFile and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ImageRefused("truncated")
    return Picture(data, {})


@contextmanager
def _open(reader: Reader, data: bytes, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    try:
        # Not Image.open: it refuses and warns by Pillow's own limit, which is global and not max_pixels.
        with _pillow_limit_at(max_pixels):
            image = reader(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise ImageRefused(f"too many pixels: at most {max_pixels}") from None
    with image:
        check_size(image.width, image.height, max_pixels)
        yield image


@contextmanager
def _pillow_limit_at(max_pixels: int) -> Iterator[None]:
    """Sets Pillow's global pixel limit, which the WebP reader checks, while one header is read."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_whole(reader: Reader, data: bytes) -> None:
    """Looks for the damage that Pillow accepts."""
    if reader is PngImagePlugin.PngImageFile:
        png.check_rows(data)
    if reader is JpegImagePlugin.JpegImageFile:
        jpeg.check_scans(data)


def _damage(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or "requires a buffer of at least" in text:  # the latter: struct, in a header
        return "truncated"
    return f"damaged: {text[:100]}"


def _orientation(metadata: Mapping[Any, Any]) -> int:
    """By EXIF, else XMP; 1, upright, if neither can be read."""
    for key in ("exif", "Raw profile type exif", "xmp"):
        if key in metadata:
            bearer = Image.Image()
            bearer.info[key] = metadata[key]
            try:
                orientation = bearer.getexif().get(ExifTags.Base.Orientation)
            except Exception:  # Pillow raises nearly every type on damaged EXIF
                continue
            if isinstance(orientation, int):
                return orientation
    return 1


def _to_rgb(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_16_bits_to_rgb(image)
    if isinstance(image, BmpImagePlugin.BmpImageFile) and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")  # many programs leave the fourth byte 0, and viewers show the colours
    key = image.info.get("transparency")
    if key is not None and isinstance(image, PngImagePlugin.PngImageFile) and png.has_wide_colours(data):
        return _white_where(image, _wide_colours(data) == np.array(key))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _wide_colours(data: bytes) -> npt.NDArray[np.uint16]:
    """The values of a PNG of 16 bits per colour, shape ``(H, W, 3)``."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def _white_where(image: Image.Image, is_key: npt.NDArray[np.bool_]) -> Image.Image:
    """``is_key``: of each value of an image in mode RGB."""
    pixels = np.array(image)
    pixels[is_key.all(axis=-1)] = 255
    return Image.fromarray(pixels)


def _grey_16_bits_to_rgb(image: Image.Image) -> Image.Image:
    """Scales modes I;16 and I, both with values 0..65535; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
