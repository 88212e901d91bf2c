"""PNG files: what of them is the picture, and whether all of it is there.

Pillow refuses whole pictures for their ancillary chunks, passes over the checksums of the pixels, and leaves missing rows black.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from sfd.data.files import ImageRefused, Picture, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_KEY_BYTES = {0: 2, 2: 6}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MAX_TEXT_BYTES = 2**22
_PIECE_BYTES = 2**16
_ORIENTED = {"Raw profile type exif": "Raw profile type exif", "XML:com.adobe.xmp": "xmp"}


class _Header:
    """The fields of IHDR."""

    def __init__(self, body: bytes) -> None:
        self.width, self.height, self.depth, self.colour, *methods, self.interlace = struct.unpack(">IIBBBBB", body)
        if self.colour not in _CHANNELS or any(methods) or self.interlace > 1 or not self.width or not self.height:
            raise ImageRefused("damaged: its header has impossible values")

    @property
    def num_bytes(self) -> int:
        """Of all rows, not compressed."""
        bits = self.depth * _CHANNELS[self.colour]
        total = 0
        for left, top, step_x, step_y in _ADAM7 if self.interlace else ((0, 0, 1, 1),):
            width, height = -((left - self.width) // step_x), -((top - self.height) // step_y)
            total += height * (1 + (width * bits + 7) // 8) if width > 0 and height > 0 else 0
        return total


def picture_of(data: bytes, max_pixels: int) -> Picture:
    """The file without its metadata, whose faults are no damage; what may tell the orientation is returned apart.

    Of an animation only the still image is kept. A transparent key colour of few bits is scaled as Pillow scales the pixels.

    Raises:
        ImageRefused: the file ends before its end chunk, it has more than ``max_pixels``, or a chunk of the picture is damaged or missing.
    """
    bodies: dict[bytes, list[bytes]] = {kind: [] for kind in _PARTS}
    metadata: dict[str, Any] = {}
    for kind, body, is_valid in _chunks(data):
        if kind in _PARTS and not is_valid:
            raise ImageRefused(f"damaged: wrong checksum in {kind.decode()}")
        if kind in _PARTS:
            if kind == b"tRNS" and bodies[b"IDAT"]:
                continue  # too late: decoders pass over it
            bodies[kind].append(body)
            if kind == b"IHDR":
                header = _Header(body)
                check_size(header.width, header.height, max_pixels)
        elif kind[0] & 0x20 == 0:
            raise ImageRefused(f"damaged: unknown critical chunk {kind.decode('ascii')}")
        elif is_valid:
            metadata |= _metadata(kind, body)
    if not bodies[b"IHDR"] or not bodies[b"IDAT"]:
        raise ImageRefused("damaged: it has no header or no pixels")
    kept = [(b"IHDR", bodies[b"IHDR"][0])]
    if header.colour == 3:
        if not bodies[b"PLTE"] or len(bodies[b"PLTE"][0]) % 3:
            raise ImageRefused("damaged: it has no palette, or one with half a colour")
        kept.append((b"PLTE", bodies[b"PLTE"][0]))
    kept += [(b"tRNS", key) for body in bodies[b"tRNS"][:1] if (key := _transparency(header, body, bodies)) is not None]
    kept += [(b"IDAT", b"".join(bodies[b"IDAT"])), (b"IEND", b"")]
    return Picture(SIGNATURE + b"".join(_chunk(kind, body) for kind, body in kept), metadata)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Kind, body and whether the checksum is right, up to IEND."""
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        head = data[place : place + 8]
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(data) < place + 12 + length:
            raise ImageRefused("truncated")
        if not kind.isalpha():
            raise ImageRefused(f"damaged: no PNG chunk at byte {place}")
        body = data[place + 8 : place + 8 + length]
        checksum = data[place + 8 + length : place + 12 + length]
        yield kind, body, int.from_bytes(checksum, "big") == zlib.crc32(body, zlib.crc32(kind))
        place += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _metadata(kind: bytes, body: bytes) -> dict[str, Any]:
    """What a valid ancillary chunk says of the orientation, if it can be read."""
    if kind == b"eXIf":
        return {"exif": b"Exif\0\0" + body}
    keyword, _, rest = body.partition(b"\0")
    name = _ORIENTED.get(keyword.decode("latin-1"))
    if name is None or kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return {}
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"iTXt":
        rest = b"\0".join(rest[2:].split(b"\0")[2:])
    elif kind == b"zTXt":
        rest = rest[1:]
    try:
        text = zlib.decompressobj().decompress(rest, _MAX_TEXT_BYTES) if is_compressed else rest
    except zlib.error:
        return {}
    return {name: text if name == "xmp" else text.decode("latin-1")}


def _transparency(header: _Header, body: bytes, bodies: dict[bytes, list[bytes]]) -> bytes | None:
    """The body of tRNS as Pillow needs it, or None if decoders pass over it: it has another length, or alpha is there."""
    if header.colour == 3:
        return body if 0 < len(body) <= len(bodies[b"PLTE"][0]) // 3 else None
    if header.colour not in _KEY_BYTES or len(body) != _KEY_BYTES[header.colour]:
        return None
    if header.depth >= 8:
        return body
    highest = 2**header.depth - 1
    return struct.pack(">H", (body[1] & highest) * (255 // highest))


def has_wide_colours(data: bytes) -> bool:
    """Whether a file of :func:`picture_of` has three colours of 16 bits, which Pillow reduces to 8 before it sees the key colour."""
    return data[24:26] == bytes([16, 2])


def check_rows(data: bytes) -> None:
    """Of a file of :func:`picture_of`: whether its pixels are all there.

    Raises:
        ImageRefused: rows are missing, or the compressed stream is damaged or has a wrong checksum.
    """
    for kind, body, _ in _chunks(data):
        if kind == b"IHDR":
            header = _Header(body)
        if kind == b"IDAT":
            pixels = body
    stream, num_bytes = zlib.decompressobj(), 0
    try:
        for start in range(0, len(pixels), _PIECE_BYTES):
            num_bytes += len(stream.decompress(pixels[start : start + _PIECE_BYTES]))
    except zlib.error as error:
        raise ImageRefused(f"damaged: {error}") from None
    if num_bytes < header.num_bytes or not stream.eof:
        raise ImageRefused(f"truncated: {num_bytes} of {header.num_bytes} bytes of pixels")
