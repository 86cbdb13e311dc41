"""Read the size and depth that a compressed frame states, without decoding it."""

import struct
from typing import NamedTuple

_J2K_START, _J2K_SIZE = b"\xff\x4f", b"\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
_JPEG_START = b"\xff\xd8"
# Start of frame: all processes of JPEG, and JPEG-LS. C4, C8 and CC have other meanings.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
_MAX_SEGMENTS = 256  # a hostile stream may have any number


class FrameHeader(NamedTuple):
    """Size and depth that a JPEG, JPEG-LS or JPEG 2000 stream states; signed is None if the format cannot state it."""

    height: int
    width: int
    samples: int
    precision: int
    signed: bool | None


def read_frame_header(frame: bytes) -> FrameHeader | None:
    """Read the header of a frame; None if it is no JPEG, JPEG-LS or JPEG 2000 stream, or damaged.

    Source: ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1.
    """
    try:
        if frame.startswith(_JPEG_START):
            return _read_jpeg(frame)
        if frame.startswith((_J2K_START + _J2K_SIZE, _JP2_START)):
            start = frame.find(_J2K_START + _J2K_SIZE)  # a JP2 file has boxes before its stream
            return _read_j2k(frame, start + len(_J2K_START)) if start >= 0 else None
        return None
    except struct.error:
        return None


def _read_j2k(frame: bytes, start: int) -> FrameHeader:
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 6)
    samples, depth = struct.unpack_from(">HB", frame, start + 38)
    return FrameHeader(bottom - top, right - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


def _read_jpeg(frame: bytes) -> FrameHeader | None:
    position = len(_JPEG_START)
    for _ in range(_MAX_SEGMENTS):
        prefix, marker, length = struct.unpack_from(">BBH", frame, position)
        if prefix != 0xFF or marker == _JPEG_SCAN:
            return None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _JPEG_FRAMES:
            precision, height, width, samples = struct.unpack_from(">BHHB", frame, position + 4)
            return FrameHeader(height, width, samples, precision, None)
        else:
            position += 2 + length
    return None
