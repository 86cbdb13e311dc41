"""Find the bits of a cell that hold the picture, where the file's own statement may be wrong.

A picture is smooth. If its highest bits are cut off, neighbours on both sides of a contour differ by the whole range
that is left. If bits of an overlay or junk are added, neighbours differ by these bits. So the smoother of two readings
of the same cells is the picture.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LINES = 128  # rows and columns compared
_NEAR = 0.25  # of the range; neighbours that differ by less are on one surface, others may be on both sides of an edge
_MIN_PAIRS = 24  # neighbours on one surface in one of two readings; fewer are too few to be unclear
_KEEP, _DROP = 0.75, 0.25  # share of them that are so in the reading with one bit more
_MAYBE_OTHER_SIGN = 0.5  # the same share, to doubt the file's statement on signs; X-rays with 16 bits are below 0.35
_DEEP = 1 / 32  # of the range; a white marker reads as -1, which is not as deep
_OF_EACH_SIGN, _SIGN_CHANGES = 0.02, 0.0005  # least shares of values and of pairs of neighbours; a marker has less
_SMALLEST = 6  # bits


class StoredBits(NamedTuple):
    """Position of the picture in a cell: `bits` bits, the lowest at `shift`, with two's complement if signed."""

    bits: int
    shift: int
    signed: bool


def find_stored_bits(
    cells: NDArray[Any], stated: StoredBits, width_known: bool = True, sign_known: bool = True
) -> StoredBits | None:
    """Find the bits that hold the picture, from cells u8 or u16[H,W] and the statement of the file.

    The result is the statement, unless bits above it continue the picture or the values have the other sign. Bits above
    it that are junk, a sign or an overlay do not change it. None: the bits above are neither clearly picture nor junk.
    """
    if stated.shift and _fits_without_shift(cells, stated):
        stated = stated._replace(shift=0)
    if width_known and sign_known and _is_plain(cells, stated):
        return stated
    lines = _sample_lines(cells, stated.shift)
    # Above the highest bit that is set, one more is enough: it is the sign of a positive number.
    size = min(max(stated.bits, (int(cells.max()) >> stated.shift).bit_length() + 1), cells.itemsize * 8 - stated.shift)
    floor = stated.bits if width_known else max(_SMALLEST, int(np.bitwise_and.reduce(cells, axis=None)).bit_length())
    widths = {signed: _find_width(lines, size, floor, signed) for signed in (False, True)}
    signed = _find_sign(lines, widths, stated.signed, sign_known)
    width = None if signed is None else widths[signed]
    return None if signed is None or width is None else StoredBits(width, stated.shift, signed)


def read_field(cells: NDArray[Any], bits: int, signed: bool) -> NDArray[np.int32]:
    """Read the lowest bits of each cell as numbers."""
    field = cells.astype(np.int32) & ((1 << bits) - 1)
    sign = 1 << (bits - 1)
    return (field ^ sign) - sign if signed else field


def _is_plain(cells: NDArray[Any], stated: StoredBits) -> bool:
    """Return whether no reading but the stated one is possible: no bit above it is set, and no sign is in question."""
    highest = int(cells.max()) >> stated.shift
    return highest < 1 << (stated.bits - 1) or (not stated.signed and stated.bits == cells.itemsize * 8 == 8)


def _fits_without_shift(cells: NDArray[Any], stated: StoredBits) -> bool:
    """Return whether cells that should use the upper bits use only the lower ones."""
    below = (1 << stated.shift) - 1
    return int(cells.max()) < 1 << stated.bits and bool((cells & below).any())


def _sample_lines(cells: NDArray[Any], shift: int) -> list[NDArray[Any]]:
    """Take some rows and some columns, without the bits below the shift."""
    steps = [max(1, length // _LINES) for length in cells.shape]
    return [cells[:: steps[0]] >> shift, cells[:, :: steps[1]].T >> shift]


def _find_width(lines: list[NDArray[Any]], size: int, floor: int, signed: bool) -> int | None:
    """Drop bits from the highest one on until one belongs to the picture; never below floor. None: unclear."""
    for width in range(size, floor, -1):
        pairs, share = _nearer(lines, (width, signed), (width - 1, signed))
        if pairs and share >= _KEEP:
            return width
        if pairs >= _MIN_PAIRS and share > _DROP:
            return None
    return floor


def _find_sign(lines: list[NDArray[Any]], widths: dict[bool, int | None], stated: bool, known: bool) -> bool | None:
    """Return whether the values are signed: as stated, unless the other reading is smoother. None: unclear."""
    own, other = widths[stated], widths[not stated]
    if own is None:
        return None if known or other is None else not stated
    if other is None:
        return stated
    values = np.concatenate([read_field(cells, own if stated else other, signed=True).ravel() for cells in lines])
    deep = np.count_nonzero(values < -_DEEP * (values.max() - values.min()))
    if min(deep, np.count_nonzero(values >= 0)) < _OF_EACH_SIGN * values.size:
        return stated and known
    pairs, share = _nearer(lines, (other, not stated), (own, stated))
    if pairs < max(_MIN_PAIRS, _SIGN_CHANGES * values.size) or share < _MAYBE_OTHER_SIGN:
        return stated
    return None if share < _KEEP else not stated


def _nearer(lines: list[NDArray[Any]], first: tuple[int, bool], second: tuple[int, bool]) -> tuple[int, float]:
    """Count the neighbours that are on one surface in one reading only; return also the share of the first reading."""
    limit = _NEAR * 2 ** min(first[0], second[0])
    one = two = 0
    for cells in lines:
        near_one, near_two = (
            np.abs(np.diff(read_field(cells, *reading), axis=1)) < limit for reading in (first, second)
        )
        one += int(np.count_nonzero(near_one & ~near_two))
        two += int(np.count_nonzero(near_two & ~near_one))
    return one + two, one / max(one + two, 1)
