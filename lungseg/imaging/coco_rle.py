"""COCO run lengths: the counts of background and mask pixels in turn, column by column, as ASCII text.

Source: rleToString and rleFrString of https://github.com/cocodataset/cocoapi. Each count is a number of base 32, lowest
digit first, with the sign in its highest digit; from the fourth on, it is the difference to the count before the last.
"""

import re

import numpy as np

from lungseg import MAX_IMAGE_PIXELS
from lungseg.arrays import I64
from lungseg.errors import InputError
from lungseg.imaging.run_lengths import Runs

_DIGITS = 7  # enough for 2 ** 34 pixels
_BITS, _CONTINUES, _FIRST_LETTER = 5, 32, ord("0")
_COUNTS = re.compile(r"(?:[P-o]{0,6}[0-O])+")  # the last digit of a number is one of 0 to O


def encode_runs(runs: Runs) -> str:
    """Encode a mask as the counts of a compressed COCO RLE."""
    differences = _counts(runs)
    differences[3:] -= differences[1:-2].copy()
    places = _BITS * np.arange(_DIGITS)
    digits = (differences[:, None] >> places) & (_CONTINUES - 1)
    limits = 1 << (places + _BITS - 1)  # numbers of so many digits are from -limit to limit - 1
    continues = (differences[:, None] < -limits) | (differences[:, None] >= limits)
    is_used = np.concatenate([np.ones((len(digits), 1), np.bool_), continues[:, :-1]], axis=1)
    letters = _FIRST_LETTER + digits + _CONTINUES * continues
    return bytes(letters[is_used].astype(np.uint8)).decode("ascii")


def decode_runs(counts: str | None, height: int | None, width: int | None) -> Runs:
    """Decode the counts of a compressed COCO RLE.

    Raises:
        InputError: the counts are not those of a mask of this size.

    """
    shape = height or 0, width or 0
    problem = InputError(
        f"a mask cannot be decoded: no run lengths of {shape[0]}x{shape[1]} px: predict the image again"
    )
    pixels = shape[0] * shape[1]
    if counts is None or min(shape) < 1 or pixels > MAX_IMAGE_PIXELS or not _COUNTS.fullmatch(counts):
        raise problem
    lengths = _parse(counts)
    if lengths[0] < 0 or (lengths[1:] <= 0).any() or lengths.max() > pixels or lengths.sum() != pixels:
        raise problem
    runs = _from_edges(np.cumsum(lengths), shape)
    if encode_runs(runs) != counts:  # a number with needless digits
        raise problem
    return runs


def _counts(runs: Runs) -> I64:
    """Return the pixels of background and mask in turn; a run at the bottom and one at the top of a column join."""
    above = runs.columns * runs.shape[0]  # pixels of the columns before
    edges = np.column_stack([above + runs.starts, above + runs.stops]).ravel()
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(edges, prepend=0, append=runs.shape[0] * runs.shape[1])
    return counts if counts[-1] or counts.size == 1 else counts[:-1]


def _parse(text: str) -> I64:
    """Return the counts that a text of whole numbers states."""
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_LETTER
    last = np.flatnonzero(letters < _CONTINUES)
    first = np.append(0, last[:-1] + 1)
    places = np.arange(letters.size) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((letters & (_CONTINUES - 1)) << (_BITS * places), first)
    is_negative = (letters[last] & (1 << (_BITS - 1))) > 0
    numbers -= np.where(is_negative, np.int64(1) << (_BITS * (last - first + 1)), 0)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def _from_edges(edges: I64, shape: tuple[int, int]) -> Runs:
    """Return the runs of a mask whose background and mask pixels end in turn at these places."""
    height = shape[0]
    stops = edges[1::2]
    starts = edges[::2][: stops.size]
    first, last = starts // height, (stops - 1) // height
    parts = last - first + 1  # a run of counts goes on in the next column
    run = np.repeat(np.arange(parts.size), parts)
    columns = first[run] + np.arange(run.size) - np.repeat(np.cumsum(parts) - parts, parts)
    above = columns * height
    return Runs(shape, columns, np.maximum(starts[run] - above, 0), np.minimum(stops[run] - above, height))
