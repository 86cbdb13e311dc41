"""Detect image files that hold several images, without decoding a pixel.

OpenCV decodes the first image of a file and ignores the rest. GIF is left to Pillow. The other formats are parsed here:
Pillow does not open every TIFF and PNG that OpenCV decodes, and it counts a TIFF's thumbnails as pages.
"""

import io
import struct
from collections.abc import Callable

from lungseg.imaging import tiff_directory
from lungseg.imaging.tiff_directory import HEIGHT, SUBFILE_TYPE, WIDTH

_THUMBNAIL_OR_MASK = 1 | 4  # bits of NewSubfileType
_MAX_DIRECTORIES = 64  # a hostile TIFF may claim any number


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
    layout = tiff_directory.read_layout(content)
    visited = {layout.first}
    _, offset = tiff_directory.read_directory(content, layout.first, layout)
    while offset and offset not in visited and len(visited) < _MAX_DIRECTORIES:
        visited.add(offset)
        tags, offset = tiff_directory.read_directory(content, offset, layout)
        kind = tags[SUBFILE_TYPE].value if SUBFILE_TYPE in tags else 0
        if WIDTH in tags and HEIGHT in tags and not kind & _THUMBNAIL_OR_MASK:
            return True
    return False


_DETECTORS: dict[bytes, Callable[[bytes], bool]] = {
    b"\x89PNG\r\n\x1a\n": _is_animated_png,
    b"RIFF": _is_animated_webp,
    **dict.fromkeys((b"GIF87a", b"GIF89a"), _is_animated_gif),
    **dict.fromkeys(tiff_directory.MAGICS, _is_multipage_tiff),
}
