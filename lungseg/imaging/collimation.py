"""Find the exposed area of an X-ray inside shutters, film holders and padding."""

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey

_BORDERS = 3  # nested borders: padding, film holder, shutter
_LINE_SAMPLES = 64  # pixels sampled in a row or column
_ONE_VALUE = 0.95  # share of one value in a row or column of the border; the rest may be a burnt-in letter
_TOLERANCE = 2 / 255  # share of the grey range; JPEG borders stay within it, film grain and scatter do not


def content_box(image: Grey) -> tuple[slice, slice]:
    """Find the rows and columns inside the collimation of an image, u8 or u16[H,W]; never empty.

    A border is a run of outer rows or columns of nearly one value (black, white or grey) that ends in an edge. Air
    beside the body is not a border: it has texture or a gradient. Without borders, the result is the whole image.
    """
    # Sample single pixels: area means would remove the texture that distinguishes air from a shutter.
    sampled = image[:: _step(image.shape[0]), :: _step(image.shape[1])]
    # At least one grey value, or the steps of a gradient with few values would count as edges.
    tolerance = max(1.0, _TOLERANCE * (float(sampled.max()) - float(sampled.min())))
    rows, columns = slice(0, image.shape[0]), slice(0, image.shape[1])
    for _ in range(_BORDERS):
        before = rows, columns
        rows = _without_borders(image[:, columns], rows, tolerance)
        columns = _without_borders(image[rows].T, columns, tolerance)
        if (rows, columns) == before:
            break
    return rows, columns


def _without_borders(lines: Grey, within: slice, tolerance: float) -> slice:
    """Remove the border from both ends of the lines."""
    sampled = lines[within, :: _step(lines.shape[1])]
    start = _border(sampled, tolerance)
    stop = _border(sampled[start:][::-1], tolerance)
    return slice(within.start + start, within.stop - stop)


def _border(lines: Grey, tolerance: float) -> int:
    """Count the leading lines of nearly one value; 0 if all lines are, or if a gradient follows."""
    value = np.float32(np.sort(lines[0])[lines.shape[1] // 2])
    if not _is_uniform(lines[:1], value, tolerance)[0]:
        return 0  # the usual case
    step = _step(len(lines))
    coarse = _first_uneven(lines[::step], value, tolerance)
    if coarse == 0:
        return 0
    last = (coarse - 1) * step
    end = last + _first_uneven(lines[last : last + step + 1], value, tolerance)
    # A gradient that exceeds the tolerance after n lines does not exceed it threefold after 1.5 n lines; an edge does.
    beyond = lines[min(end + end // 2, len(lines) - 1)]
    return end if np.abs(beyond - value).mean() > 3 * tolerance else 0


def _first_uneven(lines: Grey, value: np.float32, tolerance: float) -> int:
    """Return the index of the first line that differs from this value; also 0 if none does."""
    return int(np.argmin(_is_uniform(lines, value, tolerance)))


def _is_uniform(lines: Grey, value: np.float32, tolerance: float) -> NDArray[np.bool_]:
    near = np.abs(lines - value) <= tolerance
    return np.asarray(np.count_nonzero(near, axis=1) >= _ONE_VALUE * lines.shape[1])


def _step(length: int) -> int:
    return -(-length // _LINE_SAMPLES)
