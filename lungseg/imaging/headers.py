"""What a picture's header promises: its size, and whether it is one picture; no pixel is decoded, no library asked."""

import re
import struct
from collections.abc import Callable

MAX_PIXELS = 1 << 28
"""No radiograph is larger, px: the largest detectors have 1 << 25."""

Size = tuple[int, int]

_JPEG_MARKER = re.compile(rb"\xff+([^\xff])")  # after any number of fill bytes
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}
_KIND, _WIDTH, _HEIGHT = 254, 256, 257  # tags of TIFF
_NO_PAGE = 1 | 4  # of NewSubfileType: a thumbnail, a transparency mask
_MOST_DIRECTORIES = 64  # looked at for a second page
_BMP_HEADERS = (40, 52, 56, 64, 108, 124)  # bytes; the oldest has 12


def image_size(content: bytes) -> Size | None:
    """Height and width in px of a file of a known format; None for any other, and where the header is cut off.

    Source: PNG 1.2 section 11.2.2, ITU-T T.81 B.2.2, TIFF 6.0 section 2 and BigTIFF, GIF89a section 18, Windows'
    BITMAPINFOHEADER, RFC 9649 section 2 (WebP), ITU-T T.800 A.5.1 and I.4 (JPEG 2000).
    """
    read = next((size for magic, size in _SIZES.items() if content.startswith(magic)), None)
    try:
        return read(content) if read else None
    except (struct.error, OverflowError):  # an offset past the end, or past any
        return None


def has_multiple_frames(content: bytes) -> bool:
    """Whether a file holds more than one picture: a TIFF of several pages, or an animated GIF, PNG or WebP.

    A TIFF's thumbnails and transparency masks are no pages. Source: TIFF 6.0, tag NewSubfileType; PNG 3 section 11.3.6.
    """
    read = next((several for magic, several in _SEVERAL.items() if content.startswith(magic)), None)
    try:
        return read(content) if read else False
    except (struct.error, OverflowError, IndexError):  # what follows the first picture is cut off
        return False


def _png_size(content: bytes) -> Size:
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def _gif_size(content: bytes) -> Size:
    width, height = struct.unpack_from("<HH", content, 6)
    return height, width


def _jpeg_size(content: bytes) -> Size | None:
    """Walk the segments to the start of the frame."""
    at = 2
    while found := _JPEG_MARKER.match(content, at):
        marker, at = found[1][0], found.end()
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", content, at + 3)
            return height, width
        at += int(struct.unpack_from(">H", content, at)[0])
    return None


def _tiff_size(content: bytes) -> Size | None:
    """Find ImageWidth and ImageLength in the first directory."""
    tags, _ = _tiff_directory(content, _tiff_start(content))
    return (tags[_HEIGHT], tags[_WIDTH]) if _HEIGHT in tags and _WIDTH in tags else None


def _bmp_size(content: bytes) -> Size | None:
    (header,) = struct.unpack_from("<I", content, 14)
    if header != 12 and header not in _BMP_HEADERS:
        return None
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", content, 18)
    return abs(height), abs(width)  # a height below zero: rows from the top down


def _webp_size(content: bytes) -> Size | None:
    """Read the first chunk: lossy, lossless, or the canvas of an extended file."""
    kind = content[8:16]
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"WEBPVP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"WEBPVP8X":
        low, high, low_height, high_height = struct.unpack_from("<HBHB", content, 24)
        return (high_height << 16 | low_height) + 1, (high << 16 | low) + 1
    return None


def _jp2_size(content: bytes) -> Size | None:
    """Walk the boxes to the codestream: its own size is what a decoder takes memory for."""
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", content, at)
        body = at + 8
        if length == 1:  # a length of 64 bits follows
            (length,) = struct.unpack_from(">Q", content, body)
            body += 8
        if kind == b"jp2c":
            return _codestream_size(content, body)
        if length < 8:  # 0: the last box, up to the end of the file
            return None
        at += length


def _codestream_size(content: bytes, at: int = 0) -> Size | None:
    """Read SIZ, which follows the start of a JPEG 2000 codestream."""
    if content[at : at + 4] != b"\xff\x4f\xff\x51":
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", content, at + 8)
    return max(bottom - top, 0), max(right - left, 0)


def _tiff_form(content: bytes) -> tuple[str, bool]:
    """Byte order, and whether offsets have 64 bits."""
    return "<" if content[:1] == b"I" else ">", b"+" in content[2:4]


def _tiff_start(content: bytes) -> int:
    order, big = _tiff_form(content)
    return int(struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)[0])


def _tiff_directory(content: bytes, at: int) -> tuple[dict[int, int], int]:
    """Read kind and size, by tag, from the directory at an offset; and the next one's offset, 0 after the last."""
    order, big = _tiff_form(content)
    head, entry, value = (8, 20, 12) if big else (2, 12, 8)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), content, at)
    found: dict[int, int] = {}
    for start in range(at + head, at + head + entry * min(entries, 4096), entry):
        tag, form = struct.unpack_from(order + "HH", content, start)
        if tag in (_KIND, _WIDTH, _HEIGHT) and form in _TIFF_NUMBERS:
            (found[tag],) = struct.unpack_from(order + _TIFF_NUMBERS[form], content, start + value)
    end = at + head + entry * entries
    return found, int.from_bytes(content[end : end + (8 if big else 4)], "little" if order == "<" else "big")


def _tiff_pages(content: bytes) -> bool:
    """Whether a directory after the first one is a page. A file that ends before it has none; nor has a ring."""
    at = _tiff_start(content)
    seen = {at}
    _, at = _tiff_directory(content, at)
    while at not in seen and at and len(seen) < _MOST_DIRECTORIES:
        seen.add(at)
        tags, at = _tiff_directory(content, at)
        if _WIDTH in tags and _HEIGHT in tags and not tags.get(_KIND, 0) & _NO_PAGE:
            return True
    return False


def _png_frames(content: bytes) -> bool:
    """Whether an animation's chunk before the first pixels counts more than one frame."""
    at = content.find(b"acTL", 8, content.find(b"IDAT"))
    return at >= 0 and struct.unpack_from(">I", content, at + 4)[0] > 1


def _gif_frames(content: bytes) -> bool:
    """Walk the blocks to a second image descriptor."""
    at, images = 13 + _colour_table(content[10]), 0
    while (kind := content[at]) in (0x21, 0x2C):  # extension, image
        if kind == 0x2C:
            images += 1
            if images == 2:
                return True
            at += 11 + _colour_table(content[at + 9])
        else:
            at += 2
        while length := content[at]:
            at += length + 1
        at += 1
    return False


def _colour_table(flags: int) -> int:
    """Bytes of the table that a GIF's flags announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _webp_frames(content: bytes) -> bool:
    return content[8:16] == b"WEBPVP8X" and bool(content[20] & 2)


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _GIF, _WEBP = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"RIFF"
_SIZES: dict[bytes, Callable[[bytes], Size | None]] = {
    _PNG: _png_size,
    b"\xff\xd8\xff": _jpeg_size,
    **dict.fromkeys(_TIFF, _tiff_size),
    **dict.fromkeys(_GIF, _gif_size),
    b"BM": _bmp_size,
    _WEBP: _webp_size,
    b"\0\0\0\x0cjP  \r\n\x87\n": _jp2_size,
    b"\xff\x4f\xff\x51": _codestream_size,
}
_SEVERAL: dict[bytes, Callable[[bytes], bool]] = {
    _PNG: _png_frames,
    **dict.fromkeys(_TIFF, _tiff_pages),
    **dict.fromkeys(_GIF, _gif_frames),
    _WEBP: _webp_frames,
}
