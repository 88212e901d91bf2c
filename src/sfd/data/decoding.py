"""Strict decoding: an image file in, upright RGB pixels out, and no damaged picture accepted."""

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from sfd.data import jpeg, png
from sfd.data.files import ImageRefused, Picture, check_size, max_file_bytes

ALLOWED_FORMATS = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP, and HEIC with the package pillow-heif"
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

_AVIF_BRANDS = (b"avif", b"avis")
_SHARED_BRANDS = (b"mif1", b"msf1")
"""Of AVIF and of HEIC; the compatible brands behind tell which."""
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
PREFIX_BYTES = 64
"""So many of the first bytes of a file tell its format."""
NOT_AN_IMAGE = "not an image"
_SURELY_ALLOWED = 2**26
"""Pixels; fewer than Pillow's own limit."""

_pillow_limit = threading.Lock()

# Images are decoded by several processes, each of which has one core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class Decoded(NamedTuple):
    """A decoded file.

    Attributes:
        rgb: upright, 8-bit RGB.
        is_transparent: whether any pixel was not fully opaque and is therefore composited on white in ``rgb``.
    """

    rgb: Image.Image
    is_transparent: bool


def decode_rgb(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Decodes one image completely, turns it upright by its EXIF orientation, and converts it to 8-bit RGB.

    Transparency is composited on white, 16 bits are scaled to 8, and of an animation the first frame is taken. Other metadata, and
    faults in them, play no part.

    Args:
        file: seekable binary stream; it is read from the start and stays open.
        max_pixels: limit on width * height, checked from the header before anything is decoded.

    Raises:
        ImageRefused: empty, truncated, damaged, too large, not an image, or of a format that is none of :data:`ALLOWED_FORMATS`.
    """
    return decode_whole(_read(file, max_pixels), max_pixels).rgb


def decode_whole(data: bytes, max_pixels: int) -> Decoded:
    """As :func:`decode_rgb`, of a file's content; it also says whether the image has transparency."""
    return _decoded(data, max_pixels, check_whole=True)


def decode_checked(data: bytes, max_pixels: int) -> Image.Image:
    """As :func:`decode_rgb`, of a file that it has accepted before: damage that only a second decoder hears is not looked for."""
    return _decoded(data, max_pixels, check_whole=False).rgb


def _read(file: BinaryIO, max_pixels: int) -> bytes:
    size, limit = file.seek(0, os.SEEK_END), max_file_bytes(max_pixels)
    if size > limit:
        raise ImageRefused(f"too large: {size} bytes, at most {limit}")
    file.seek(0)
    return file.read()


Reader = type[ImageFile.ImageFile]


def _decoded(data: bytes, max_pixels: int, *, check_whole: bool) -> Decoded:
    if not data:
        raise ImageRefused("empty file")
    try:
        reader = _reader_of(data[:PREFIX_BYTES])
        picture = _picture_of(reader, data, max_pixels)
        with _open(reader, picture.data, max_pixels) as image:
            if check_whole:
                _check_whole(reader, picture.data)
            _load(image, max_pixels)
            oriented: dict[Any, Any] = {**image.info, **picture.metadata}
            rgb, is_transparent = _to_rgb(image, picture.data)
        turn = _TURNS.get(_orientation(oriented))
        return Decoded(rgb if turn is None else rgb.transpose(turn), is_transparent)
    except (MemoryError, ImageRefused):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged data
        raise ImageRefused(_damage(error)) from error


def _reader_of(prefix: bytes) -> Reader:
    """The Pillow class for the first 64 bytes of a file; the file's name does not matter."""
    if prefix.startswith(png.SIGNATURE):
        return PngImagePlugin.PngImageFile
    if prefix.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if prefix.startswith(b"RIFF") and prefix[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if prefix.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if prefix.startswith(b"GIF8"):
        return GifImagePlugin.GifImageFile
    if prefix.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile
    if prefix[4:8] == b"ftyp":
        brand = prefix[8:12]
        if brand in _AVIF_BRANDS or (brand in _SHARED_BRANDS and b"avif" in prefix):
            return AvifImagePlugin.AvifImageFile
        if brand in _HEIC_BRANDS or brand in _SHARED_BRANDS:
            return _heic_reader()
    Image.init()
    for name, (_, accept) in sorted(Image.OPEN.items()):
        if len(prefix) >= 16 and accept is not None and accept(prefix[:16]):
            raise ImageRefused(f"format not allowed: {name}, only {ALLOWED_FORMATS}")
    raise ImageRefused(NOT_AN_IMAGE)


def looks_like_image(prefix: bytes) -> bool:
    """Whether a file with these first bytes is an image by its format, be it one that is not read here."""
    try:
        _reader_of(prefix)
    except ImageRefused as refusal:
        return str(refusal) != NOT_AN_IMAGE
    return True


def _heic_reader() -> Reader:
    """The reader of the package pillow-heif, which is no part of sfd: it brings an H.265 decoder."""
    try:
        from pillow_heif import HeifImageFile, options
    except ImportError:
        raise ImageRefused(
            "HEIC, which needs the package pillow-heif: install it (pip install pillow-heif), or convert to JPEG or PNG"
        ) from None
    options.DECODE_THREADS = 1
    found: Reader = HeifImageFile
    return found


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
    """Sets Pillow's global pixel limit, which the WebP and the TIFF reader check, while one image is opened or a huge one decoded."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _load(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Decodes the pixels. The TIFF reader checks Pillow's own limit only here, and one thread at a time may lift it."""
    is_huge = isinstance(image, TiffImagePlugin.TiffImageFile) and image.width * image.height > _SURELY_ALLOWED
    with _pillow_limit_at(max_pixels) if is_huge else nullcontext():
        image.load()


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


def _to_rgb(image: ImageFile.ImageFile, data: bytes) -> Decoded:
    if image.mode.startswith("I"):
        return _grey_16_bits_to_rgb(image)
    if image.mode == "F":
        raise ImageRefused("format not allowed: pixels of 32-bit floats, only of 8 or 16 bits")
    if isinstance(image, BmpImagePlugin.BmpImageFile) and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return Decoded(
            image.convert("RGB"), False
        )  # many programs leave the fourth byte 0, and viewers show the colours
    key = image.info.get("transparency")
    if key is not None and isinstance(image, PngImagePlugin.PngImageFile) and png.has_wide_colours(data):
        return _white_where(image, (_wide_colours(data) == np.array(key)).all(axis=-1))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        is_transparent = rgba.getchannel("A").getextrema() != (255, 255)
        return Decoded(Image.alpha_composite(white, rgba).convert("RGB"), is_transparent)
    return Decoded(image.convert("RGB"), False)


def _wide_colours(data: bytes) -> npt.NDArray[np.uint16]:
    """The values of a PNG of 16 bits per colour, shape ``(H, W, 3)``."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def _white_where(image: Image.Image, is_key: npt.NDArray[np.bool_]) -> Decoded:
    """``is_key``: of each pixel of an image in mode RGB, shape ``(H, W)``."""
    pixels = np.array(image)
    pixels[is_key] = 255
    return Decoded(Image.fromarray(pixels), bool(is_key.any()))


def _grey_16_bits_to_rgb(image: Image.Image) -> Decoded:
    """Scales modes I;16 and I, both with values 0..65535; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    transparent = image.info.get("transparency")
    return Decoded(grey, False) if transparent is None else _white_where(grey, values == transparent)
