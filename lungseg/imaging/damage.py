"""Find pictures whose compressed data is damaged, although the decoder returns all pixels.

libjpeg and libtiff fill what they cannot decode with grey or black, and OpenCV does not report it. The checks need
another decoding, so they run only where a file or its pixels look suspicious.
"""

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lungseg.imaging.pillow import open_image
from lungseg.imaging.tiff_directory import COMPRESSION, MAGICS, read_directory, read_layout

_ZEROS = b"\0" * 32  # compressed data seldom has as many
_ZEROS_JPEG_2000 = b"\0" * 400  # a packet without data is one zero byte
# JPEG 2000 markers. The data of the high-throughput kind can have long runs.
_START_OF_DATA, _HIGH_THROUGHPUT = b"\xff\x93", b"\xff\x50"
_FILLS = [1 << bits for bits in range(7, 16)]  # grey of missing blocks in JPEG of 8 to 16 bits
_BLOCK = 8
# They decode to visible blocks, at least one of them on a black or white picture; 255 would start a marker.
_FILLERS = bytes(97 * i % 254 + 1 for i in range(500)), bytes(255 - (97 * i % 254 + 1) for i in range(500))
_MOST_RUNS = 8  # that are tried one by one
_SURPLUS = 16  # bytes; an encoder may pad a scan by a few
_SLACK = 1 << 16  # bytes of padding in a strip or tile
_START_OF_SCAN, _END_OF_IMAGE, _PROGRESSIVE = 0xDA, 0xD9, 0xC2
_NO_LENGTH = (0x01, *range(0xD0, 0xD9))
_LZW, _JPEG, _PACK_BITS = 5, 7, 32773
_CHECKED_COMPRESSIONS = (_LZW, _JPEG, _PACK_BITS, 8, 32946)  # and deflate: their damage can be noticed


def is_damaged(content: bytes, pixels: NDArray[Any]) -> bool:
    """Return whether compressed data is damaged in a file that was decoded to pixels, u8 or u16[H,W] or [H,W,C]."""
    if content.startswith(b"\xff\xd8\xff"):
        return _is_damaged_jpeg(content, pixels)
    if content.startswith(MAGICS):
        return _is_damaged_tiff(content, pixels)
    if content.startswith(b"RIFF"):
        start = content.find(b"VP8 ")  # lossy; lossless data can have long runs
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        return start > 0 and _ZEROS in content[start + 8 : start + 8 + size]
    if content.startswith((b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")):
        start = max(content.find(_START_OF_DATA), 0)
        return _HIGH_THROUGHPUT not in content[:start] and content.find(_ZEROS_JPEG_2000, start) >= 0
    return False


def _is_damaged_jpeg(content: bytes, pixels: NDArray[Any]) -> bool:
    """Return whether a scan has too few or too many blocks.

    Bytes that are inserted at the end of a scan change the picture only if blocks are missing before. Bytes that are
    removed there change it unless the scan has more data than blocks.
    """
    try:
        ends, is_progressive = _scan_ends(content)
    except (struct.error, IndexError):
        return False
    corner = pixels[-_BLOCK:, -_BLOCK:][-1].astype(np.int64)  # a part of the last row
    # A truncated progressive file is blurred, not grey.
    is_suspicious = is_progressive or bool((corner == corner[0]).all() and np.isin(abs(corner[0]), _FILLS).all())
    if not ends or not (is_suspicious or _ZEROS in content[ends[0][0] : ends[-1][1]]):
        return False
    picture = _decode_grey(content)
    if picture is None:
        return False
    if any(_changes(content, picture, ends, 0, filler) for filler in _FILLERS):
        return True
    if is_progressive:  # a scan that refines the picture may not change it
        return False
    runs = [run for run in ends if _ZEROS in content[slice(*run)]][:_MOST_RUNS] or ends[-1:]
    return _misses_restarts(content, ends) or any(
        not any(_changes(content, picture, [run], _SURPLUS, filler) for filler in _FILLERS) for run in runs
    )


def _changes(content: bytes, picture: Any, runs: list[tuple[int, int]], removed: int, filler: bytes) -> bool:
    """Return whether other bytes at the end of runs of compressed data change the picture."""
    return not np.array_equal(picture, _decode_grey(_replace_ends(content, runs, removed, filler)))


def _misses_restarts(content: bytes, ends: list[tuple[int, int]]) -> bool:
    """Return whether the restart markers between runs of compressed data do not count from 0 to 7 again and again."""
    markers = [content[end + 1] & 7 for _, end in ends[:-1]]
    return markers != [number % 8 for number in range(len(markers))]


def _scan_ends(content: bytes) -> tuple[list[tuple[int, int]], bool]:
    """List the start and the end of each run of compressed data, and whether the file is progressive.

    Raises:
        struct.error, IndexError: the file ends within a segment.

    """
    position, ends, is_progressive = 2, [], False
    while position + 4 <= len(content):
        marker = content[position + 1]
        if marker == _END_OF_IMAGE:
            break
        if marker == 0xFF:
            position += 1
            continue
        length = 0 if marker in _NO_LENGTH else struct.unpack_from(">H", content, position + 2)[0]
        position, is_progressive = position + 2 + length, is_progressive or marker == _PROGRESSIVE
        if marker == _START_OF_SCAN or 0xD0 <= marker < 0xD8:
            end = _next_marker(content, position)
            ends.append((position, end))
            position = end
    return ends, is_progressive


def _next_marker(content: bytes, position: int) -> int:
    while (position := content.find(b"\xff", position)) >= 0:
        if content[position + 1] not in (0, 0xFF):
            return position
        position += 1
    return len(content)


def _replace_ends(content: bytes, ends: list[tuple[int, int]], removed: int, filler: bytes) -> bytes:
    """Replace the last bytes of each run of compressed data by those of the filler."""
    parts, position = [], 0
    for start, end in ends:
        kept = max(start, end - removed)
        if content[kept - 1] == 0xFF:
            kept -= 1
        parts += [content[position:kept], filler]
        position = end
    return b"".join([*parts, content[position:]])


def _decode_grey(content: bytes) -> Any:
    """Decode a JPEG to grey values, or to colours if it is lossless; None if that fails."""
    from PIL import Image

    try:
        with open_image(content) as image:
            image.draft("L", image.size)
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _decode_deep(content)


def _decode_deep(content: bytes) -> Any:
    """Decode a JPEG that Pillow cannot read: lossless, or with more than 8 bits; None if that fails."""
    from imagecodecs import Jpeg8Error, jpeg8_decode

    try:
        return jpeg8_decode(content)
    except (Jpeg8Error, ValueError):
        return None


def _is_damaged_tiff(content: bytes, pixels: NDArray[Any]) -> bool:
    """Return whether libtiff reports damage, which leaves rows of one value."""
    try:
        layout = read_layout(content)
        compression = read_directory(content, layout.first, layout)[0].get(COMPRESSION)
    except (struct.error, OverflowError):
        return False
    if compression is None or compression.value not in _CHECKED_COMPRESSIONS:
        return False
    columns = pixels[:, :: max(1, pixels.shape[1] // 64)].reshape(len(pixels), -1)
    has_flat_row = bool((columns == columns[:, :1]).all(axis=1).any())
    if not has_flat_row and _ZEROS not in content:
        return False
    return not _pillow_decodes(content, compression.value, 4 * pixels.nbytes + _SLACK)


def _pillow_decodes(content: bytes, compression: int, limit: int) -> bool:
    """Return whether Pillow decodes a TIFF file; also True for a kind of TIFF that it does not know."""
    from PIL import Image

    try:
        image = open_image(content)
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return True
    with image:
        try:
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            strips = _strips(content, tags)
            if compression == _JPEG:
                return not any(_is_damaged_jpeg_strip(strip, tags.get(347, b"")) for strip in strips)
            if not all(_is_whole_strip(strip, compression, limit) for strip in strips):
                return False
            image.load()
        except OSError:
            return False
        except (SyntaxError, ValueError, TypeError, KeyError):
            return True
    return True


def _strips(content: bytes, tags: Any) -> list[bytes]:
    """List the compressed strips or tiles of a TIFF file."""
    offsets, counts = (tags[273], tags[279]) if 273 in tags else (tags[324], tags[325])
    return [content[offset : offset + count] for offset, count in zip(offsets, counts, strict=False)]


def _is_damaged_jpeg_strip(strip: bytes, tables: bytes) -> bool:
    """Return whether a strip of a TIFF file is a damaged JPEG stream; tables: its tables, as a stream of their own."""
    stream = tables[:-2] + strip[2:] if tables else strip
    return _is_damaged_jpeg(stream, np.full((_BLOCK, _BLOCK), _FILLS[0]))  # that it looks suspicious is known


def _is_whole_strip(strip: bytes, compression: int, limit: int) -> bool:
    """Return whether a strip has no damage that libtiff does not notice: it compares no checksum.

    limit: bytes that a whole strip may have at most, decoded.
    """
    if compression == _PACK_BITS:
        return _ZEROS not in strip  # an encoder writes equal bytes as a number and one byte
    if compression == _LZW:
        return True
    decoder = zlib.decompressobj()
    try:
        decoder.decompress(strip, limit)
    except zlib.error:
        return False
    return decoder.eof
