"""Change bytes of a file without knowledge of its format: bits, integers, truncation, repeated and moved blocks."""

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

_EDGES = (0, 1, 2, 7, 8, 9, 16, 127, 128, 255, 256, 4096, 16384, 32767, 32768, 65535, 65536)
_LARGE = (1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 32) - 4)
_HEAD = 256  # bytes: headers of all formats are inside

Mutation = Callable[[bytes, Random], bytes]


def integer(random: Random) -> int:
    """Choose a number that often breaks code: a limit of a type, or its neighbour."""
    return max(0, random.choice((*_EDGES, *_LARGE)) + random.choice((0, 0, 0, -1, 1)))


def packed(random: Random, value: int, size: int = 0) -> bytes:
    """Encode a number with 1, 2, 4 or 8 bytes in either byte order; too large a number is cut off."""
    size = size or random.choice((1, 2, 2, 4, 4, 8))
    return (value % (1 << 8 * size)).to_bytes(size, random.choice(("little", "big")))


def flip_bits(content: bytes, random: Random) -> bytes:
    """Flip one to eight bits, half of the times in the header."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        if changed:
            changed[_position(content, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def set_integer(content: bytes, random: Random) -> bytes:
    """Overwrite an integer anywhere, half of the times in the header."""
    value = packed(random, integer(random))
    start = _position(content, random)
    return content[:start] + value + content[start + len(value) :]


def truncate(content: bytes, random: Random) -> bytes:
    """Cut off the end, as an interrupted download does."""
    return content[: random.choice((_position(content, random), max(0, len(content) - random.randrange(1, 64))))]


def remove_block(content: bytes, random: Random) -> bytes:
    """Remove some bytes; all later offsets become wrong."""
    start = _position(content, random)
    return content[:start] + content[start + random.choice((1, 2, 3, 4, 16, 128)) :]


def insert_block(content: bytes, random: Random) -> bytes:
    """Insert zeros, ones or noise."""
    start, size = _position(content, random), random.choice((1, 2, 3, 4, 16, 512, 4096))
    block = random.choice((b"\0" * size, b"\xff" * size, random.randbytes(size)))
    return content[:start] + block + content[start:]


def repeat_block(content: bytes, random: Random) -> bytes:
    """Copy a block to another place."""
    start, target = _position(content, random), _position(content, random)
    block = content[start : start + random.choice((4, 16, 64, 512))]
    return content[:target] + block * random.choice((1, 1, 50)) + content[target:]


def fill_block(content: bytes, random: Random) -> bytes:
    """Overwrite a block, as a damaged disk does: 512 bytes of zeros."""
    start, size = _position(content, random), random.choice((8, 64, 512))
    return content[:start] + bytes([random.choice((0, 255))]) * size + content[start + size :]


def append(content: bytes, random: Random) -> bytes:
    """Append noise, or the file once more."""
    return content + random.choice((random.randbytes(64), content, b"\0"))


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bits, set_integer, set_integer, truncate, remove_block, insert_block, repeat_block, fill_block, append),
)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Apply one mutation."""
    return random.choice(MUTATIONS)(content, random)


def mutate(content: bytes, random: Random, mutations: Sequence[Mutation]) -> bytes:
    """Apply one to three mutations; a mutation that no longer understands the content is replaced by one of bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        try:
            content = random.choice(mutations)(content, random)
        except (struct.error, zlib.error, IndexError, ValueError, KeyError, StopIteration):
            content = mutate_bytes(content, random)
    return content


def _position(content: bytes, random: Random) -> int:
    end = min(len(content), _HEAD) if random.random() < 0.5 else len(content)
    return random.randrange(end) if end else 0
