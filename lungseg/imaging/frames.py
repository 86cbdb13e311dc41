"""Detect image files that hold several images, without decoding a pixel.

OpenCV decodes the first image of a file and ignores the rest. GIF is left to Pillow. The other formats are parsed here:
Pillow does not open every TIFF and PNG that OpenCV decodes, and it counts a TIFF's thumbnails as pages.
"""

import io
import struct
from collections.abc import Callable

_SUBFILE_TYPE, _WIDTH, _HEIGHT = 254, 256, 257  # TIFF tags
_THUMBNAIL_OR_MASK = 1 | 4  # bits of NewSubfileType
_INTEGER_FORMATS = {3: "H", 4: "I", 16: "Q"}  # TIFF field types
_MAX_DIRECTORIES, _MAX_ENTRIES = 64, 4096  # a hostile TIFF may claim any number


def has_multiple_frames(content: bytes) -> bool:
    """Return whether a file is a TIFF with several pages or an animated GIF, PNG or WebP.

    Thumbnails and transparency masks in a TIFF are not pages. A file that is truncated after its first image has one.

    Source: TIFF 6.0 and BigTIFF, tag NewSubfileType; PNG 3 section 11.3.6; RFC 9649 section 2.7.

    """
    detect = next((detect for magic, detect in _DETECTORS.items() if content.startswith(magic)), None)
    try:
        return detect is not None and detect(content)
    except (struct.error, OverflowError, IndexError):  # an offset outside the file
        return False


def _is_animated_gif(content: bytes) -> bool:
    from PIL import Image, UnidentifiedImageError
    from PIL.GifImagePlugin import GifImageFile

    try:
        with GifImageFile(io.BytesIO(content)) as image:
            return image.is_animated
    except (OSError, SyntaxError, ValueError, TypeError, UnidentifiedImageError, Image.DecompressionBombError):
        return False  # truncated or too large: decoding it reports the reason


def _is_animated_png(content: bytes) -> bool:
    """Read the frame count of the acTL chunk, which precedes the first pixels."""
    start = content.find(b"acTL", 8, content.find(b"IDAT"))
    return start >= 0 and struct.unpack_from(">I", content, start + 4)[0] > 1


def _is_animated_webp(content: bytes) -> bool:
    return content[8:16] == b"WEBPVP8X" and bool(content[20] & 2)


def _is_multipage_tiff(content: bytes) -> bool:
    """Return whether a directory after the first one describes a page. Stops at the first repeated offset."""
    order = "<" if content[:1] == b"I" else ">"
    is_big = b"+" in content[2:4]
    (offset,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    visited = {offset}
    _, offset = _tiff_directory(content, offset, order, is_big)
    while offset and offset not in visited and len(visited) < _MAX_DIRECTORIES:
        visited.add(offset)
        tags, offset = _tiff_directory(content, offset, order, is_big)
        if _WIDTH in tags and _HEIGHT in tags and not tags.get(_SUBFILE_TYPE, 0) & _THUMBNAIL_OR_MASK:
            return True
    return False


def _tiff_directory(content: bytes, offset: int, order: str, is_big: bool) -> tuple[dict[int, int], int]:
    """Read subfile type and size by tag, and the offset of the next directory, 0 after the last."""
    header_size, entry_size, value_start = (8, 20, 12) if is_big else (2, 12, 8)
    (entries,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, offset)
    first = offset + header_size
    tags: dict[int, int] = {}
    for start in range(first, first + entry_size * min(entries, _MAX_ENTRIES), entry_size):
        tag, field_type = struct.unpack_from(order + "HH", content, start)
        if tag in (_SUBFILE_TYPE, _WIDTH, _HEIGHT) and field_type in _INTEGER_FORMATS:
            (tags[tag],) = struct.unpack_from(order + _INTEGER_FORMATS[field_type], content, start + value_start)
    end = first + entry_size * entries
    next_offset = content[end : end + (8 if is_big else 4)]
    return tags, int.from_bytes(next_offset, "little" if order == "<" else "big")


_DETECTORS: dict[bytes, Callable[[bytes], bool]] = {
    b"\x89PNG\r\n\x1a\n": _is_animated_png,
    b"RIFF": _is_animated_webp,
    **dict.fromkeys((b"GIF87a", b"GIF89a"), _is_animated_gif),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _is_multipage_tiff),
}
