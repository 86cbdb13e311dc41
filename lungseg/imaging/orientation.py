"""Read the orientation of a picture from its file, and turn pixels upright and back.

Orientations are numbered 1 to 8 as in TIFF and EXIF: 1 is upright, 2 to 4 are mirrored or rotated by 180 degrees, and 5
to 8 exchange height and width.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cv2
from numpy.typing import NDArray

from lungseg.imaging import tiff_directory

A = TypeVar("A", bound=NDArray[Any])

UPRIGHT = 1
_SIDEWAYS = 5  # this and the larger numbers exchange height and width
_WORDS = {
    2: "mirrored left to right",
    3: "upside down, rotated by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored left to right and rotated by 90 degrees counterclockwise",
    6: "rotated by 90 degrees counterclockwise",
    7: "mirrored left to right and rotated by 90 degrees clockwise",
    8: "rotated by 90 degrees clockwise",
}
_EXIF = b"Exif\0\0"
_RAW_PROFILES = (b"Raw profile type exif\0", b"Raw profile type APP1\0")  # of equal length
_MAX_PROFILE = 1 << 20  # bytes; a hostile text may decompress to any size
_INVERSE = {6: 8, 8: 6}  # the other orientations are their own inverse
# Letters of the first row's and the first column's direction in PatientOrientation. A frontal radiograph is upright if
# its rows run to the patient's left and its columns to the feet.
_BY_DIRECTIONS = {"LF": 1, "RF": 2, "RH": 3, "LH": 4, "FL": 5, "FR": 6, "HR": 7, "HL": 8}


def read_orientation(content: bytes) -> int:
    """Return the orientation tag of a JPEG, PNG, TIFF or WebP file; 1 if it is absent, invalid or damaged.

    Source: TIFF 6.0, tag Orientation; PNG 3, chunk eXIf; RFC 9649, chunk EXIF; CIPA DC-008 for JPEG.
    """
    try:
        block = _exif_block(content)
        if not block.startswith(tiff_directory.MAGICS):
            return UPRIGHT
        layout = tiff_directory.read_layout(block)
        tags, _ = tiff_directory.read_directory(block, layout.first, layout)
    except (struct.error, zlib.error, OverflowError, IndexError, ValueError):  # truncated, damaged, or a wrong offset
        return UPRIGHT
    entry = tags.get(tiff_directory.ORIENTATION)
    return entry.value if entry and 1 <= entry.value <= 8 else UPRIGHT


def from_directions(row: str, column: str) -> int:
    """Return the orientation for the values of PatientOrientation; 1 if they do not describe a frontal view.

    Only the first letter of each counts. Source: DICOM PS3.3 C.7.6.1.1.1.
    """
    return _BY_DIRECTIONS.get(row[:1] + column[:1], UPRIGHT)


def describe_orientation(orientation: int) -> str:
    """Say how the stored picture lies, for orientations 2 to 8."""
    return _WORDS[orientation]


def to_upright(pixels: A, orientation: int) -> A:
    """Turn stored pixels, [H,W] or [H,W,C], upright."""
    return pixels if orientation == UPRIGHT else _CHANGES[orientation](pixels)


def to_stored(pixels: A, orientation: int) -> A:
    """Turn upright pixels, [H,W] or [H,W,C], as they are stored: the inverse of `to_upright`."""
    return to_upright(pixels, _INVERSE.get(orientation, orientation))


def other_shape(shape: tuple[int, ...], orientation: int) -> tuple[int, int]:
    """Convert (height, width) of the stored picture to that of the upright one, or the reverse."""
    return (shape[1], shape[0]) if orientation >= _SIDEWAYS else (shape[0], shape[1])


_CHANGES: dict[int, Callable[[Any], Any]] = {  # in a fifth of NumPy's time
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def _exif_block(content: bytes) -> bytes:
    """Return the bytes of the EXIF block, or a whole TIFF file; empty if there is none."""
    if content.startswith(tiff_directory.MAGICS):
        return content
    for magic, blocks in _CONTAINERS.items():
        if content.startswith(magic):
            found = (block.removeprefix(_EXIF) for block in blocks(content))
            return next((block for block in found if block.startswith(tiff_directory.MAGICS)), b"")
    return b""


def _jpeg_blocks(content: bytes) -> Iterator[bytes]:
    """Yield the EXIF segments, which precede the first scan."""
    position = 2
    while content[position] == 0xFF and content[position + 1] not in (0xD9, 0xDA):
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        if marker == 0xE1 and content.startswith(_EXIF, position + 4):
            yield content[position + 4 : position + 2 + length]
        position += 2 + length


def _png_blocks(content: bytes) -> Iterator[bytes]:
    """Yield the chunks eXIf, which may also follow the pixels, and the text chunks that older programs wrote."""
    position = 8
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"eXIf":
            yield content[position + 8 : position + 8 + length]
        elif kind in (b"tEXt", b"zTXt") and content.startswith(_RAW_PROFILES, position + 8):
            yield _raw_profile(content[position + 8 + len(_RAW_PROFILES[0]) : position + 8 + length], kind == b"zTXt")
        position += 12 + length


def _raw_profile(text: bytes, is_compressed: bool) -> bytes:
    """Decode ImageMagick's text form of an EXIF block: its kind, its length, then hexadecimal digits."""
    if is_compressed:
        text = zlib.decompressobj().decompress(text[1:], _MAX_PROFILE)  # the first byte names the method
    return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))


def _webp_blocks(content: bytes) -> Iterator[bytes]:
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        if kind == b"EXIF":
            yield content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


_CONTAINERS = {b"\xff\xd8\xff": _jpeg_blocks, b"\x89PNG\r\n\x1a\n": _png_blocks, b"RIFF": _webp_blocks}
