"""Whole pictures are used, whatever their metadata; damaged ones are refused. `cases/` holds files that once went wrong."""

import io
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from sfd.data import decoding
from sfd.data.decoding import decode_checked, decode_rgb, decode_whole
from sfd.data.files import ImageRefused

CASES = Path(__file__).parent / "cases"
MAX_PIXELS = 1_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes) -> np.ndarray:
    """Pixels of a file; those of a file that was accepted before are the same."""
    found = np.asarray(decode_rgb(io.BytesIO(data), MAX_PIXELS))
    np.testing.assert_array_equal(np.asarray(decode_checked(data, MAX_PIXELS)), found)
    return found


def refusal(data: bytes) -> str:
    with pytest.raises(ImageRefused) as caught:
        decode_rgb(io.BytesIO(data), MAX_PIXELS)
    return str(caught.value)


def is_refused(data: bytes) -> bool:
    try:
        decode_rgb(io.BytesIO(data), MAX_PIXELS)
    except ImageRefused:
        return True
    return False


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scene(mode: str = "RGB", height: int = 61, width: int = 83) -> Image.Image:
    """Smooth colours and some noise, as photographs have."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 / width, y * 255 / height, (x + y) % 64 * 3], axis=-1) + rng.normal(
        0, 6, (height, width, 3)
    )
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert(mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, rows: bytes, width: int, height: int, *extra: bytes, interlace: int = 0) -> bytes:
    """A PNG of unfiltered rows; ``extra``: chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return SIGNATURE + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunks(data: bytes, *extra: bytes) -> bytes:
    """Puts chunks behind the header of a PNG."""
    return data[:33] + b"".join(extra) + data[33:]


def with_segment(data: bytes, code: int, body: bytes) -> bytes:
    """Puts a segment behind the first two bytes of a JPEG."""
    return data[:2] + bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def test_the_cases_that_once_went_wrong_are_decided_right() -> None:
    for name in ("cut_eoi.jpg", "zero_mid.jpg"):
        assert refusal((CASES / name).read_bytes()) == "damaged: premature end of data segment"
    assert decode((CASES / "ref.jpg").read_bytes()).shape == (256, 256, 3)
    for name in ("bigtext.png", "exif_bad.png", "ztxt_method.png", "chrm_short.png"):
        assert decode((CASES / name).read_bytes()).shape == (40, 40, 3)
    assert decode((CASES / "rawexif.png").read_bytes()).shape == (40, 60, 3)


# Whole pictures -----------------------------------------------------------------------------------------------------


def whole_jpegs() -> Iterator[tuple[str, bytes]]:
    for mode in ("L", "RGB", "CMYK"):
        for name, options in (
            ("plain", {}),
            ("progressive", {"progressive": True}),
            ("optimised", {"optimize": True, "quality": 100}),
            ("coarse", {"quality": 1}),
            ("restarts", {"restart_marker_blocks": 3}),
            ("progressive restarts", {"progressive": True, "restart_marker_rows": 1}),
        ):
            yield f"{mode} {name}", encode(scene(mode), "JPEG", **options)
    for sampling in (0, 1, 2):
        yield f"sampling {sampling}", encode(scene(), "JPEG", subsampling=sampling)
    for sampling in ("411", "440"):
        pixels = np.ascontiguousarray(np.asarray(scene()))
        yield f"sampling {sampling}", simplejpeg.encode_jpeg(pixels, colorsubsampling=sampling)
    yield "kept RGB", encode(scene(), "JPEG", keep_rgb=True)
    yield "one pixel", encode(scene(height=1, width=1), "JPEG")
    plain = encode(scene(), "JPEG")
    yield "bytes behind its end", plain + b"a video"
    yield "padded with zeros", plain[:-2] + bytes(3) + plain[-2:]
    yield "fill bytes before its end", plain[:-2] + b"\xff\xff" + plain[-2:]
    yield "odd scan header", plain.replace(b"\x11\x03\x11\x00\x3f\x00", b"\x11\x03\x11\x00\x00\x00")
    yield "YCCK", adobe_transform(encode(scene("CMYK"), "JPEG"), 2)
    yield "odd sampling", odd_sampling()


def adobe_transform(data: bytes, transform: int) -> bytes:
    place = data.index(b"Adobe")
    return data[: place + 11] + bytes([transform]) + data[place + 12 :]


def odd_sampling() -> bytes:
    """Flat grey with sampling factors 2x1, 1x2 and 1x1, which some decoders do not know."""
    flat = encode(Image.new("RGB", (8, 8)), "JPEG")
    tables = flat[2 : flat.index(b"\xff\xc0")], flat[flat.index(b"\xff\xc4") : flat.index(b"\xff\xda")]
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 16, 16, 3) + bytes([1, 0x21, 0, 2, 0x12, 1, 3, 0x11, 1])
    scan = b"\xff\xda" + bytes([0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0])
    block = {"grey": "001010", "colour": "0000"}  # no change, end of block: luminance, chrominance
    bits = block["grey"] * 2 + block["colour"] * 3
    pixels = int((bits + "1" * 8)[: (len(bits) + 7) // 8 * 8], 2).to_bytes((len(bits) + 7) // 8, "big")
    return flat[:2] + tables[0] + frame + tables[1] + scan + pixels + b"\xff\xd9"


JPEGS = dict(whole_jpegs())


@pytest.mark.parametrize("name", JPEGS)
def test_a_whole_jpeg_has_the_pixels_that_pillow_decodes(name: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(JPEGS[name])).convert("RGB"))
    np.testing.assert_array_equal(decode(JPEGS[name]), expected)


def whole_pngs() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100)) if mode == "I;16" else scene(mode)
        yield mode, encode(image, "PNG")
    rng = np.random.default_rng(0)
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        for depth in (8, 16):
            row = rng.integers(0, 256, channels * depth // 8 * 5, dtype=np.uint8).tobytes()
            yield f"colour {colour}, {depth} bits", png(depth, colour, (b"\0" + row) * 3, 5, 3)
    for depth in (1, 2, 4):
        yield f"grey, {depth} bits", png(depth, 0, b"\0" + bytes(range(5)) * 2, 80 // depth, 1)
    yield "several pixel chunks", pieces(encode(scene(), "PNG"))
    yield "animation", encode(scene(), "PNG", save_all=True, append_images=[Image.new("RGB", (83, 61))])


def pieces(data: bytes) -> bytes:
    """Cuts the one chunk of pixels into many, one of them empty."""
    place = data.index(b"IDAT")
    length = int.from_bytes(data[place - 4 : place], "big")
    body = data[place + 4 : place + 4 + length]
    chunks = [chunk(b"IDAT", body[start : start + 999]) for start in range(0, length, 999)]
    return data[: place - 4] + chunk(b"IDAT", b"") + b"".join(chunks) + data[place + 8 + length :]


PNGS = dict(whole_pngs())


@pytest.mark.parametrize("name", PNGS)
def test_a_whole_png_is_used(name: str) -> None:
    image = Image.open(io.BytesIO(PNGS[name]))
    found = decode(PNGS[name])
    assert found.shape == (image.height, image.width, 3)
    if image.mode in ("L", "P", "RGB"):
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("width, height", [(1, 1), (3, 2), (5, 5), (9, 17)])
def test_an_interlaced_png_is_used_and_one_without_its_last_row_is_not(width: int, height: int) -> None:
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    passes = [pixels[top::down, left::right] for left, top, right, down in steps]
    rows = [b"\0" + row.tobytes() for part in passes if part.size for row in part]
    assert decode(png(8, 0, b"".join(rows), width, height, interlace=1))[..., 0].tolist() == pixels.tolist()
    assert refusal(png(8, 0, b"".join(rows[:-1]), width, height, interlace=1)).startswith("truncated: ")


PLAIN_PNG, PLAIN_JPEG = encode(scene(), "PNG"), encode(scene(), "JPEG")
METADATA = {
    "a text of 5 MB": with_chunks(PLAIN_PNG, chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(5_000_000)))),
    "a text that is not compressed as it says": with_chunks(PLAIN_PNG, chunk(b"zTXt", b"c\0\0junk")),
    "an international text without its fields": with_chunks(PLAIN_PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1")),
    "a broken orientation as text": with_chunks(PLAIN_PNG, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz")),
    "an empty colour profile": with_chunks(PLAIN_PNG, chunk(b"iCCP", b"")),
    "a gamma of one byte": with_chunks(PLAIN_PNG, chunk(b"gAMA", b"1")),
    "a physical size of one byte": with_chunks(PLAIN_PNG, chunk(b"pHYs", b"1")),
    "a standard colour space twice": with_chunks(PLAIN_PNG, *[chunk(b"sRGB", b"\0")] * 2),
    "an unknown chunk with a wrong checksum": with_chunks(PLAIN_PNG, struct.pack(">I", 2) + b"prVt" + b"xxyyyy"),
    "broken EXIF in PNG": with_chunks(PLAIN_PNG, chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "an animation control of no length": with_chunks(PLAIN_PNG, chunk(b"acTL", b"")),
    "a key of a wrong length": with_chunks(PLAIN_PNG, chunk(b"tRNS", b"\0")),
    "a key behind the pixels": PLAIN_PNG[:-12] + chunk(b"tRNS", bytes(6)) + PLAIN_PNG[-12:],
    "broken EXIF in JPEG": with_segment(PLAIN_JPEG, 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "EXIF of no length": with_segment(PLAIN_JPEG, 0xE1, b"Exif\0\0"),
    "a broken colour profile": with_segment(PLAIN_JPEG, 0xE2, b"ICC_PROFILE\0"),
    "a broken Photoshop segment": with_segment(PLAIN_JPEG, 0xED, b"Photoshop 3.0\0008BIM"),
    "a broken Adobe segment": with_segment(PLAIN_JPEG, 0xEE, b"Adobe"),
    "a broken JFIF segment": with_segment(PLAIN_JPEG, 0xE0, b"JFIF"),
    "a broken multi-picture segment": with_segment(PLAIN_JPEG, 0xE2, b"MPF\0II"),
    "a comment that is no text": with_segment(PLAIN_JPEG, 0xFE, b"\xff\xd9\xff\xda" * 9),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_are_no_part_of_the_picture(name: str) -> None:
    plain = PLAIN_PNG if METADATA[name].startswith(SIGNATURE) else PLAIN_JPEG
    np.testing.assert_array_equal(decode(METADATA[name]), decode(plain))


def test_broken_exif_of_webp_is_passed_over() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk"):
        np.testing.assert_array_equal(decode(encode(scene(), "WEBP", lossless=True, exif=exif)), np.asarray(scene()))


def oriented(orientation: int) -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})):
        yield encode(scene(), kind, exif=exif, **options)
    profile = f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n".encode()
    xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
    keyword = b"Raw profile type exif\0"
    yield with_chunks(PLAIN_PNG, chunk(b"tEXt", keyword + profile))
    yield with_chunks(PLAIN_PNG, chunk(b"zTXt", keyword + b"\0" + zlib.compress(profile)))
    yield with_chunks(PLAIN_PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    yield with_chunks(PLAIN_PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)))
    broken = chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")
    yield with_chunks(PLAIN_PNG, broken, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    yield with_segment(PLAIN_JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)


@pytest.mark.parametrize("orientation, turned", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_orientation_that_can_be_read_is_honoured_wherever_it_stands(orientation: int, turned: int) -> None:
    for data in oriented(orientation):
        difference = decode(data).astype(int) - np.rot90(np.asarray(scene()), turned)
        assert np.abs(difference).mean() < 8


# Transparency -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_is_white_and_other_greys_are_not(depth: int) -> None:
    highest = 2**depth - 1
    pixels = (highest * 2 ** (max(8, depth) - depth)).to_bytes(max(8, depth) // 8, "big") + bytes(max(8, depth) // 8)
    width = 2 * max(8, depth) // depth
    for key, expected in ((0, [255] * width), (highest, [255] + [0] * (width - 1))):
        data = png(depth, 0, b"\0" + pixels, width, 1, chunk(b"tRNS", struct.pack(">H", key)))
        assert decode(data)[0, :, 0].tolist() == expected


def test_a_transparent_colour_is_white_only_where_all_of_its_bits_agree() -> None:
    key = chunk(b"tRNS", struct.pack(">3H", 10, 20, 30))
    assert decode(png(8, 2, b"\0" + bytes([10, 20, 30, 10, 20, 31]), 2, 1, key)).tolist() == [[[255] * 3, [10, 20, 31]]]
    key = chunk(b"tRNS", struct.pack(">3H", 2561, 20, 30))
    wide = b"\0" + struct.pack(">6H", 2561, 20, 30, 2562, 20, 30)
    assert decode(png(16, 2, wide, 2, 1, key)).tolist() == [[[255] * 3, [10, 0, 0]]]


def test_palette_entries_may_be_half_transparent_and_unlisted_ones_are_opaque() -> None:
    palette = chunk(b"PLTE", bytes([0, 0, 0, 0, 0, 0, 0, 0, 255]))
    data = png(8, 3, b"\0\0\1\2", 3, 1, palette, chunk(b"tRNS", bytes([0, 127])))
    assert decode(data).tolist() == [[[255] * 3, [128] * 3, [0, 0, 255]]]
    too_many = png(8, 3, b"\0\0\1\2", 3, 1, palette, chunk(b"tRNS", bytes(4)))
    assert decode(too_many).tolist() == [[[0] * 3, [0] * 3, [0, 0, 255]]]


def bitmap(*alphas: int) -> bytes:
    """A BMP of 32 bits with masks, one row of red pixels."""
    pixels = b"".join(bytes([0, 0, 255, alpha]) for alpha in alphas)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, len(alphas), 1, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    info = info.ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def test_an_alpha_that_a_bitmap_leaves_zero_is_unused_and_one_that_it_uses_is_not() -> None:
    assert decode(bitmap(0, 0)).tolist() == [[[255, 0, 0]] * 2]
    assert decode(bitmap(255, 255)).tolist() == [[[255, 0, 0]] * 2]
    assert decode(bitmap(0, 255)).tolist() == [[[255, 255, 255], [255, 0, 0]]]


# Damage -------------------------------------------------------------------------------------------------------------


def scan_of(data: bytes) -> tuple[int, int]:
    """Begin and end of the first scan's pixels of a JPEG."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"), len(data) - 2


@pytest.mark.parametrize(
    "name", [name for name in JPEGS if name not in ("one pixel", "odd sampling", "bytes behind its end")]
)
def test_a_jpeg_that_is_cut_anywhere_is_refused_with_its_end_marker_and_without(name: str) -> None:
    data = JPEGS[name]
    begin, end = scan_of(data)
    for cut in random.Random(0).choices(range(begin, end - 16), k=12):
        assert is_refused(data[:cut])
        assert is_refused(data[:cut].rstrip(b"\xff") + b"\xff\xd9")


def test_a_progressive_jpeg_that_is_cut_between_two_scans_is_refused() -> None:
    data = JPEGS["RGB progressive"]
    starts = [place for place in range(len(data)) if data[place : place + 2] in (b"\xff\xda", b"\xff\xc4")]
    for start in starts[3:]:
        assert refusal(data[:start] + b"\xff\xd9") == "truncated: scans are missing"


def test_a_jpeg_segment_that_is_shorter_than_its_own_length_is_damage() -> None:
    for length in (b"\0\0", b"\0\1"):
        assert refusal(PLAIN_JPEG[:2] + b"\xff\xe2" + length + PLAIN_JPEG[2:]).startswith("damaged: a JPEG segment")
    assert refusal(PLAIN_JPEG[:20] + b"junk" + PLAIN_JPEG[20:]) == "damaged: no JPEG marker at byte 20"


def strict_jpeg(data: bytes) -> bool:
    """Whether libjpeg decodes a file without a warning."""
    space = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    try:
        simplejpeg.decode_jpeg(data, colorspace="CMYK" if space in ("CMYK", "YCCK") else "RGB", strict=True)
    except ValueError:
        return False
    return True


def zeroed(data: bytes, begin: int, end: int, rng: random.Random) -> bytes:
    start = rng.randrange(begin, end - 40)
    length = rng.randrange(1, end - start)
    return data[:start] + bytes(length) + data[start + length :]


def flipped(data: bytes, begin: int, end: int, rng: random.Random) -> bytes:
    place = rng.randrange(begin, end)
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [zeroed, flipped])
def test_a_damaged_jpeg_is_accepted_only_if_a_strict_decoder_hears_nothing(
    damage: Callable[[bytes, int, int, random.Random], bytes],
) -> None:
    rng, num_refused = random.Random(0), 0
    for name in ("L plain", "RGB plain", "RGB progressive", "RGB restarts", "CMYK plain", "sampling 0"):
        for _ in range(40):
            data = damage(JPEGS[name], *scan_of(JPEGS[name]), rng)
            refused = is_refused(data)
            assert refused or strict_jpeg(data)
            num_refused += refused
    assert num_refused > 40


@pytest.mark.parametrize("name", PNGS)
def test_a_png_that_is_cut_zeroed_or_flipped_anywhere_in_its_pixels_is_refused(name: str) -> None:
    data, rng = PNGS[name], random.Random(0)
    begin = data.index(b"IDAT") + 4
    end = begin + int.from_bytes(data[begin - 8 : begin - 4], "big")
    for _ in range(12):
        assert is_refused(data[: rng.randrange(begin, len(data))])
        if end > begin:
            assert is_refused(flipped(data, begin, end, rng))


def test_a_png_with_too_few_rows_a_wrong_checksum_or_no_pixels_is_refused() -> None:
    rows = [b"\0" + bytes([50, 60, 70] * 8)] * 8
    assert decode(png(8, 2, b"".join(rows), 8, 8)).shape == (8, 8, 3)
    assert decode(png(8, 2, b"".join([*rows, b"more"]), 8, 8)).shape == (8, 8, 3)
    assert refusal(png(8, 2, b"".join(rows[:7]), 8, 8)) == "truncated: 175 of 200 bytes of pixels"
    whole = png(8, 2, b"".join(rows), 8, 8)
    assert refusal(whole[:-13] + b"?" + whole[-12:]) == "damaged: wrong checksum in IDAT"
    body = zlib.compress(b"".join(rows))
    for pixels, reason in ((body[:-4] + b"????", "damaged: "), (body[:-4], "truncated: ")):
        assert refusal(whole[:33] + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")).startswith(reason)
    assert refusal(whole[:33] + chunk(b"IEND", b"")) == "damaged: it has no header or no pixels"
    assert refusal(with_chunks(whole, chunk(b"CgBI", b"1234"))) == "damaged: unknown critical chunk CgBI"
    assert refusal(png(8, 3, b"\0\0", 1, 1)).startswith("damaged: it has no palette")
    assert refusal(png(8, 3, b"\0\0", 1, 1, chunk(b"PLTE", bytes(4)))).startswith("damaged: it has no palette")
    header = whole[16:26] + b"\1" + whole[27:29]  # another compression
    assert refusal(SIGNATURE + chunk(b"IHDR", header) + whole[33:]) == "damaged: its header has impossible values"


def compressed_bitmap(num_rows: int) -> bytes:
    """A BMP of 8 x 8 pixels, run-length encoded, that holds so many rows."""
    palette, runs = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256)), bytes([8, 200, 0, 0]) * num_rows
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(runs), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + info + palette + runs


def test_a_compressed_bitmap_is_used_and_one_without_its_last_row_is_not() -> None:
    assert decode(compressed_bitmap(8)).tolist() == [[[200] * 3] * 8] * 8
    assert refusal(compressed_bitmap(7)).startswith("damaged: ")


@pytest.mark.parametrize("kind", ["BMP", "WEBP"])
def test_another_format_that_is_cut_is_refused(kind: str) -> None:
    data, rng = encode(scene(), kind), random.Random(0)
    assert decode(data).shape == (61, 83, 3)
    assert all(is_refused(data[: rng.randrange(60, len(data))]) for _ in range(40))


def test_a_file_that_is_far_too_long_for_its_pixels_is_not_read() -> None:
    with pytest.raises(ImageRefused, match="too large: 1048700 bytes, at most 1048656"):
        decode_rgb(io.BytesIO(PLAIN_PNG.ljust(1_048_700, b"\0")), 10)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "AVIF"])
def test_tiff_gif_and_avif_are_read_and_cut_ones_refused(kind: str) -> None:
    image, rng = scene(), random.Random(1)
    data = encode(image, kind)
    error = np.abs(decode(data).astype(int) - np.asarray(image)).mean()
    assert error == 0.0 if kind == "TIFF" else error < 12.0
    assert all(is_refused(data[: rng.randrange(16, len(data) - 200)]) for _ in range(20))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_tiff_of_every_usual_kind_is_read(mode: str, compression: str) -> None:
    image = scene(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decode(encode(image, "TIFF", compression=compression)).astype(int) - expected).mean() < 8.0


def test_tiff_of_16_bits_is_scaled_to_8_and_one_of_floats_refused() -> None:
    ramp = np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10)
    found = decode(encode(Image.fromarray(ramp), "TIFF"))
    np.testing.assert_array_equal(found[..., 0], np.rint(ramp / 257).astype(np.uint8))
    assert refusal(encode(Image.fromarray(ramp.astype(np.float32)), "TIFF")).startswith(
        "format not allowed: pixels of 32-bit"
    )


def test_a_tiff_beyond_the_limit_of_pillow_is_read_up_to_that_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding._SURELY_ALLOWED < Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(decoding, "_SURELY_ALLOWED", 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encode(scene(), "TIFF")).shape == (61, 83, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(ImageRefused, match="too many pixels: 83 x 61, at most 5000"):
        decode_rgb(io.BytesIO(encode(scene(), "TIFF")), 5000)


def test_a_turned_tiff_and_a_turned_avif_are_turned_upright_once() -> None:
    image = scene()
    for kind, options in (("TIFF", {"tiffinfo": {274: 6}}), ("AVIF", {"exif": b"Exif\0\0" + exif_of(6)})):
        assert decode(encode(image, kind, **options)).shape == (83, 61, 3), kind


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def test_a_gif_with_transparency_is_put_on_white_and_its_first_frame_taken() -> None:
    frames = [Image.new("RGBA", (8, 8), colour) for colour in ((255, 0, 0, 255), (0, 255, 0, 255))]
    frames[0].paste((0, 0, 0, 0), (0, 0, 4, 8))
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=0)
    found = decode_whole(data, MAX_PIXELS)
    pixels = np.asarray(found.rgb)
    assert found.is_transparent and (pixels[:, :4] == 255).all() and pixels[0, 7].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "image, is_transparent",
    [
        (Image.new("RGBA", (4, 4), (9, 9, 9, 254)), True),
        (Image.new("RGBA", (4, 4), (9, 9, 9, 255)), False),
        (Image.new("LA", (4, 4), (9, 0)), True),
        (Image.new("RGB", (4, 4)), False),
    ],
)
def test_an_image_is_transparent_if_a_pixel_is_not_opaque(image: Image.Image, is_transparent: bool) -> None:
    assert decode_whole(encode(image, "PNG"), MAX_PIXELS).is_transparent == is_transparent


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60)


def test_heic_names_the_package_that_reads_it_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for data in (HEIC, HEIC.replace(b"ftypheic", b"ftypmif1")):
        assert refusal(data).startswith(
            "HEIC, which needs the package pillow-heif: install it (pip install pillow-heif)"
        )


def test_heic_is_read_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class HeifImageFile(ImageFile.ImageFile):
        """Stands for the package's class: a picture of one colour."""

        def _open(self) -> None:
            self._mode, self._size, self.tile = "RGB", (4, 3), []
            self.im = Image.core.fill("RGB", self._size, (1, 2, 3))

    package = ModuleType("pillow_heif")
    package.HeifImageFile = HeifImageFile  # type: ignore[attr-defined]
    package.options = SimpleNamespace(DECODE_THREADS=4)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert decode(HEIC).tolist() == [[[1, 2, 3]] * 4] * 3
    assert package.options.DECODE_THREADS == 1, "processes share the cores, and each of them decodes with one"


def test_an_avif_that_is_marked_as_any_image_file_is_read() -> None:
    data = encode(scene(), "AVIF")
    assert decode(data.replace(b"ftypavif", b"ftypmif1", 1)).shape == (61, 83, 3)
