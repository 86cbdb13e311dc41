"""Change the structure of image files: PNG chunks with a correct CRC, JPEG segments, TIFF directories."""

import struct
import zlib
from random import Random

from tests.fuzz.byte_mutations import Mutation, flip_bits, integer, mutate_bytes

_SIZES = (0, 1, 31, 32, 33, 1000, 16384, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
Chunk = tuple[bytes, bytes]


def chunks(content: bytes) -> list[Chunk]:
    """Split a PNG into its chunks."""
    found, start = [], 8
    while start + 8 <= len(content):
        (size,) = struct.unpack_from(">I", content, start)
        found.append((content[start + 4 : start + 8], content[start + 8 : start + 8 + size]))
        start += 12 + size
    return found


def join_chunks(parts: list[Chunk]) -> bytes:
    """Write a PNG with correct lengths and CRCs."""
    written = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def set_png_header(content: bytes, random: Random) -> bytes:
    """Change size, depth, colour type, compression, filter or interlacing."""
    (name, body), *others = chunks(content)
    fields = list(struct.unpack(">IIBBBBB", body))
    place = random.randrange(7)
    fields[place] = random.choice(_SIZES) if place < 2 else random.choice((0, 1, 2, 3, 4, 6, 8, 16, 32, 255))
    return join_chunks([(name, struct.pack(">IIBBBBB", *fields)), *others])


def change_png_chunk(content: bytes, random: Random) -> bytes:
    """Change, empty, remove, repeat or move one chunk; its CRC is correct."""
    parts = chunks(content)
    place = random.randrange(len(parts))
    name, body = parts[place]
    others = [*parts[:place], *parts[place + 1 :]]
    changed = [(name, mutate_bytes(body, random))]
    options = (changed, changed, [(name, b"")], [], [(name, body)] * 2, [(b"QQQQ", body)])
    choice = random.randrange(len(options) + 1)
    if choice == len(options):
        target = random.randrange(len(others) + 1)
        return join_chunks([*others[:target], (name, body), *others[target:]])
    return join_chunks([*parts[:place], *options[choice], *parts[place + 1 :]])


def add_png_chunk(content: bytes, random: Random) -> bytes:
    """Insert an ancillary chunk with unusual content."""
    noise = random.randbytes(random.choice((0, 1, 4, 8, 13, 32, 300)))
    bomb = zlib.compress(bytes(1 << 22), 9)
    chunk = random.choice(
        (
            *((name, noise) for name in (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sBIT", b"bKGD", b"pHYs", b"acTL")),
            *((name, noise) for name in (b"eXIf", b"IEND", b"fcTL", b"hIST", b"sPLT", b"cICP", b"IHDR", b"fdAT")),
            (b"acTL", struct.pack(">II", integer(random) % (1 << 32), 0)),
            (b"zTXt", b"Comment\0\0" + bomb),
            (b"iCCP", b"name\0\0" + bomb),
            (b"iTXt", b"a\0\1\0\0\0" + bomb),
            (b"eXIf", b"II*\0\x08\0\0\0" + noise),
        )
    )
    parts = chunks(content)
    place = random.randrange(1, len(parts) + 1)
    return join_chunks([*parts[:place], chunk, *parts[place:]])


def change_png_rows(content: bytes, random: Random) -> bytes:
    """Change the decompressed rows: their filters, their number, their values."""
    parts = chunks(content)
    rows = zlib.decompress(b"".join(body for name, body in parts if name == b"IDAT"))
    changed = mutate_bytes(rows, random)
    size = random.choice((1 << 20, 100, 7))
    stream = zlib.compress(changed)
    data = [(b"IDAT", stream[start : start + size]) for start in range(0, len(stream), size)]
    return join_chunks([*(part for part in parts if part[0] not in (b"IDAT", b"IEND")), *data, (b"IEND", b"")])


def _segments(content: bytes) -> list[bytes]:
    """Split a JPEG into its marker segments; the scan belongs to the last one."""
    found, start = [], 2
    while content[start : start + 1] == b"\xff" and content[start + 1] != 0xDA:
        size = 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        found.append(content[start : start + size])
        start += size
    return [*found, content[start:]]


def change_jpeg_segment(content: bytes, random: Random) -> bytes:
    """Change one field of a segment, its length, its marker, or its place."""
    parts = _segments(content)
    place = random.randrange(len(parts))
    changed = bytearray(parts[place])
    kind = random.randrange(6)
    if kind == 0:
        changed[2:4] = struct.pack(">H", integer(random) % 65536)
    elif kind == 1:
        changed[1] = random.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xDB, 0xDD, 0xE1, 0xFE, 0xD9, 0xD8))
    elif kind == 2:
        del parts[place]
    elif kind == 3:
        parts.insert(random.randrange(len(parts)), bytes(changed))
    elif len(changed) > 4:
        changed[random.randrange(4, min(len(changed), 40))] = random.choice((0, 1, 4, 15, 127, 128, 255))
    if kind not in (2, 3):
        parts[place] = bytes(changed)
    return b"\xff\xd8" + b"".join(parts)


def set_jpeg_size(content: bytes, random: Random) -> bytes:
    """Change precision, height, width, number of components, or sampling factors of the frame header."""
    parts = _segments(content)
    place = next(i for i, part in enumerate(parts) if part[1] in (0xC0, 0xC1, 0xC2))
    frame = bytearray(parts[place])
    if random.random() < 0.5:
        frame[random.choice((5, 7))] = random.choice((0, 1, 64, 128, 255))
    else:
        frame[random.choice((4, 9, 10, 11, 12))] = random.choice((0, 1, 2, 3, 4, 8, 12, 16, 0x11, 0x44, 0xFF))
    return b"\xff\xd8" + b"".join([*parts[:place], bytes(frame), *parts[place + 1 :]])


def add_exif(content: bytes, random: Random) -> bytes:
    """Insert an EXIF segment whose directory is damaged."""
    directory = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([random.randrange(10)]) + bytes(7)
    body = b"Exif\0\0" + flip_bits(directory, random)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]


def _directory(content: bytes) -> tuple[str, int, int]:
    """Return byte order, offset of the first directory, and its number of entries."""
    order = "<" if content[:1] == b"I" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    return order, start, count


def change_tiff_entry(content: bytes, random: Random) -> bytes:
    """Change tag, type, count or value of one entry of the first directory."""
    order, start, count = _directory(content)
    place = start + 2 + 12 * random.randrange(count)
    changed = bytearray(content)
    field = random.choice(("tag", "type", "count", "value", "value", "value"))
    if field == "tag":
        tags = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339)
        struct.pack_into(order + "H", changed, place, random.choice((*tags, 347, 512, 513, 530, 34675, 65535)))
    elif field == "type":
        struct.pack_into(order + "H", changed, place + 2, random.choice((0, 1, 2, 3, 4, 5, 11, 12, 13, 16, 99)))
    elif field == "count":
        struct.pack_into(order + "I", changed, place + 4, integer(random) % (1 << 32))
    else:
        values = (*_SIZES, 5, 6, 7, 8, 12, 16, 64, 32773, 32946, 34712, 50000)
        struct.pack_into(order + "I", changed, place + 8, random.choice(values))
    return bytes(changed)


def link_tiff_directory(content: bytes, random: Random) -> bytes:
    """Let the directory be followed by itself, by one outside of the file, or by a copy; or move its start."""
    order, start, count = _directory(content)
    changed = bytearray(content)
    following = start + 2 + 12 * count
    target = random.choice((start, start + 2, 0, 4, 8, len(content) - 1, len(content), integer(random) % (1 << 32)))
    place = random.choice((following, following, 4, start - 0))
    struct.pack_into(order + "I", changed, place, target)
    return bytes(changed) + content[start:following] * random.choice((0, 1, 100))


def change_riff_chunk(content: bytes, random: Random) -> bytes:
    """Change the length or the name of a chunk of a WebP, or the size of its canvas."""
    changed = bytearray(content)
    if random.random() < 0.5:
        struct.pack_into("<I", changed, random.choice((4, 16)), integer(random) % (1 << 32))
    elif random.random() < 0.5:
        changed[12:16] = random.choice((b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ALPH", b"ICCP", b"EXIF"))
    else:
        struct.pack_into("<H", changed, random.choice((20, 21, 23, 24, 26, 28)), random.randrange(65536))
    return bytes(changed)


_PNG = (set_png_header, change_png_chunk, change_png_chunk, add_png_chunk, change_png_rows)
_JPEG = (change_jpeg_segment, change_jpeg_segment, set_jpeg_size, add_exif)

STRUCTURED: dict[str, tuple[Mutation, ...]] = {
    "png": (*_PNG, mutate_bytes),
    "jpg": (*_JPEG, mutate_bytes),
    "tif": (*[change_tiff_entry] * 3, link_tiff_directory, mutate_bytes),
    "webp": (change_riff_chunk, mutate_bytes),
    **dict.fromkeys(("bmp", "gif", "jp2"), (mutate_bytes,)),
}
"""Mutations by file ending."""
