"""Read integer tags of a TIFF directory. An EXIF block has the same structure."""

import struct
from typing import NamedTuple

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

SUBFILE_TYPE, WIDTH, HEIGHT, COMPRESSION, ORIENTATION = 254, 256, 257, 259, 274
_SAMPLES, _EXTRA_SAMPLES = 277, 338
_TAGS = (SUBFILE_TYPE, WIDTH, HEIGHT, COMPRESSION, ORIENTATION, _SAMPLES, _EXTRA_SAMPLES)
_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # TIFF field types
_MAX_ENTRIES = 4096  # a hostile TIFF may claim any number
_UNASSOCIATED, _ASSOCIATED = 2, 1  # values of ExtraSamples: colour is independent of alpha, or multiplied by it


class Entry(NamedTuple):
    """The first number of a tag, the offset of its bytes, and their struct format."""

    value: int
    position: int
    format: str


class Layout(NamedTuple):
    """Byte order as in struct, BigTIFF or not, and the offset of the first directory."""

    order: str
    is_big: bool
    first: int


def read_layout(content: bytes) -> Layout:
    """Read the header of a TIFF file or an EXIF block.

    Raises:
        struct.error: the header is truncated.

    """
    order = "<" if content[:1] == b"I" else ">"
    is_big = b"+" in content[2:4]
    (first,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    return Layout(order, is_big, first)


def read_directory(content: bytes, offset: int, layout: Layout) -> tuple[dict[int, Entry], int]:
    """Read the tags named above, and the offset of the next directory, 0 after the last.

    Of a repeated tag the first one counts, as in libtiff.

    Raises:
        struct.error, OverflowError: an offset is outside the file.

    """
    order, is_big, _ = layout
    header_size, entry_size, value_start = (8, 20, 12) if is_big else (2, 12, 8)
    (entries,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, offset)
    first = offset + header_size
    tags: dict[int, Entry] = {}
    for start in range(first, first + entry_size * min(entries, _MAX_ENTRIES), entry_size):
        tag, field_type = struct.unpack_from(order + "HH", content, start)
        if tag in _TAGS and tag not in tags and field_type in _INTEGER_FORMATS:
            value_format = order + _INTEGER_FORMATS[field_type]
            (value,) = struct.unpack_from(value_format, content, start + value_start)
            tags[tag] = Entry(value, start + value_start, value_format)
    end = first + entry_size * entries
    next_offset = content[end : end + (8 if is_big else 4)]
    return tags, int.from_bytes(next_offset, "little" if order == "<" else "big")


def as_stored(content: bytes) -> bytes:
    """Change two tags of a TIFF file so that OpenCV returns its pixels as they are stored.

    OpenCV obeys Orientation even with IMREAD_IGNORE_ORIENTATION, and multiplies colour of 8 bits by alpha if
    ExtraSamples says that the two are independent. Other files are returned unchanged.
    """
    if not content.startswith(MAGICS):
        return content
    try:
        layout = read_layout(content)
        tags, _ = read_directory(content, layout.first, layout)
    except (struct.error, OverflowError):
        return content
    orientation, samples, extra = (tags.get(tag) for tag in (ORIENTATION, _SAMPLES, _EXTRA_SAMPLES))
    if orientation and orientation.value != 1:
        content = _set(content, orientation, 1)
    if extra and extra.value == _UNASSOCIATED and samples and samples.value > 3:
        content = _set(content, extra, _ASSOCIATED)
    return content


def _set(content: bytes, entry: Entry, value: int) -> bytes:
    packed = struct.pack(entry.format, value)
    return content[: entry.position] + packed + content[entry.position + len(packed) :]
