"""The size that a picture's header promises, read without decoding a pixel; no library is asked."""

import re
import struct

MAX_PIXELS = 1 << 28
"""No radiograph is larger, px: the largest detectors have 1 << 25."""

_PNG, _JPEG, _GIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", (b"GIF87a", b"GIF89a")
_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_JPEG_MARKER = re.compile(rb"\xff+([^\xff])")  # after any number of fill bytes
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Height and width in px of a PNG, JPEG, TIFF or GIF file; None for any other and where the header is cut off.

    Source: PNG 1.2 section 11.2.2, ITU-T T.81 B.2.2, TIFF 6.0 section 2 and BigTIFF, GIF89a section 18.
    """
    try:
        if content.startswith(_PNG):
            width, height = struct.unpack_from(">II", content, 16)
        elif content.startswith(_JPEG):
            return _jpeg_size(content)
        elif content.startswith(_GIF):
            width, height = struct.unpack_from("<HH", content, 6)
        elif content[:4] in _TIFF:
            return _tiff_size(content)
        else:
            return None
    except (struct.error, OverflowError):  # an offset past the end, or past any
        return None
    return height, width


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Walk the segments to the start of the frame."""
    at = 2
    while found := _JPEG_MARKER.match(content, at):
        marker, at = found[1][0], found.end()
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", content, at + 3)
            return height, width
        at += int(struct.unpack_from(">H", content, at)[0])
    return None


def _tiff_size(content: bytes) -> tuple[int, int] | None:
    """Find ImageWidth (256) and ImageLength (257) in the first directory."""
    order, big = _TIFF[content[:4]], content[2:4].strip(b"\0") == b"+"
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), content, at)
    found: dict[int, int] = {}
    for number in range(min(entries, 4096)):
        entry = at + (8 + 20 * number if big else 2 + 12 * number)
        tag, kind = struct.unpack_from(order + "HH", content, entry)
        if tag in (256, 257) and kind in _TIFF_NUMBERS:
            (found[tag],) = struct.unpack_from(order + _TIFF_NUMBERS[kind], content, entry + (12 if big else 8))
    return (found[257], found[256]) if len(found) == 2 else None
