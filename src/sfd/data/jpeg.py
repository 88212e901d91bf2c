"""JPEG files: what of them is the picture, and whether all of it is there.

Pillow does not pass on libjpeg's warnings, and libjpeg has nothing but warnings for a scan that ends early: it paints the rest grey.
"""

import re

from sfd.data.files import ImageRefused, Picture

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_METADATA = frozenset(range(0xE0, 0xF0)) | {0xFE}
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
"""The shortest segment APP0. That it is there tells decoders the colour space; what else it says is no part of the picture."""

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_MAX_PADDING = 16
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")


def picture_of(data: bytes) -> Picture:
    """The file without its metadata, whose faults are no damage; EXIF and XMP are returned apart.

    Raises:
        ImageRefused: the file ends before its end marker, its segments are no chain, or scans are missing.
    """
    kept, metadata, scans = [data[:2]], dict[str, bytes](), _Scans()
    place, code = 2, _START
    while code != _END:
        marker = (_SCAN_END.search if code == _SCAN else _MARKER.match)(data, place)
        if marker is None and (code == _SCAN or len(data) - place < 2):
            raise ImageRefused("truncated")
        if marker is None:
            raise ImageRefused(f"damaged: no JPEG marker at byte {place}")
        if code == _SCAN:
            kept.append(data[place : marker.start()])
        code, place = data[marker.end() - 1], marker.end()
        if code == _END or 0xD0 <= code <= _START or code == 1:  # markers without a body
            kept.append(bytes([0xFF, code]))
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if place + max(length, 2) > len(data):
            raise ImageRefused("truncated")
        if length < 2:
            raise ImageRefused(f"damaged: a JPEG segment of length {length}")
        body = data[place + 2 : place + length]
        place += length
        kept.append(_segment(code, scans.add(code, body), metadata))
    scans.check()
    return Picture(b"".join(kept), metadata)


def _segment(code: int, body: bytes, metadata: dict[str, bytes]) -> bytes:
    """A segment as it is kept, perhaps empty."""
    if code == 0xE0:
        return _JFIF if body.startswith(b"JFIF\0") and len(body) >= 14 else b""
    is_colour_space = code == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
    if code not in _METADATA or is_colour_space:
        return bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body
    if code == 0xE1 and body.startswith(b"Exif\0\0"):
        metadata["exif"] = metadata["exif"] + body[6:] if "exif" in metadata else body
    if code == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        metadata["xmp"] = body.partition(b"\0")[2]
    return b""


class _Scans:
    """Which coefficients a file's scans have brought, and how exactly: a file cut between two scans has no other sign of it."""

    def __init__(self) -> None:
        self.is_progressive = False
        self.lowest_bits: dict[int, list[int]] = {}
        """Per component, of each coefficient that must come: the last bit that has come, 0 if it is complete."""

    def add(self, code: int, body: bytes) -> bytes:
        """Notes a frame's or a scan's header; returns it, with the values that a sequential scan must have."""
        if code in _FRAMES:
            self.is_progressive = code in _PROGRESSIVE
            self.lowest_bits = {component: [16] * (64 if self.is_progressive else 1) for component in body[6::3]}
        if code != _SCAN:
            return body
        components, (first, last, bits) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
        if not self.is_progressive:  # some cameras write others, which every decoder passes over
            first, last, bits = 0, 63, 0
        for component in components:
            found = self.lowest_bits.get(component, [])
            found[first : last + 1] = [bits & 15] * len(found[first : last + 1])
        return body[:-3] + bytes([first, last, bits])

    def check(self) -> None:
        """Raises :class:`ImageRefused` if something is missing."""
        if any(map(any, self.lowest_bits.values())):
            raise ImageRefused("truncated: scans are missing")


def check_scans(data: bytes) -> None:
    """Decodes an eighth of the picture, which reads every bit of it, and listens to libjpeg.

    A few sampling factors and arithmetic coding are unknown to this decoder; of these only what Pillow raises is heard.

    Raises:
        ImageRefused: libjpeg warns of damage. A few zeros after the last block are none: some cameras pad with them.
    """
    import simplejpeg  # models that only answer requests need no decoder

    try:
        space = simplejpeg.decode_jpeg_header(data, strict=False)[2]
        ink = "CMYK" if space in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(data, colorspace=ink, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        message = str(error)
        padding = _PADDING.match(message)
        count = int(padding[1]) if padding else 0
        if padding and count <= _MAX_PADDING and data[-2 - count : -2] == bytes(count):
            return
        if message.startswith(_DAMAGE):
            raise ImageRefused(f"damaged: {message.removeprefix('Corrupt JPEG data: ')}") from None
