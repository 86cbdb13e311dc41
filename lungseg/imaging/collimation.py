"""Where in a picture the X-rays were let through: its content inside shutters, film holders and padding."""

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey

_BORDERS = 3  # borders that may lie within one another: padding, film holder, shutter
_LINE_SAMPLES = 64  # pixels looked at in a row or column
_ONE_VALUE = 0.95  # share of a border's row or column that is of one value; the rest may be a burnt-in letter
_TOLERANCE = 2 / 255  # of the grey range; a border saved as JPEG is this even, film grain and scatter are not


def content_box(image: Grey) -> tuple[slice, slice]:
    """Find the rows and columns inside the collimation of a picture, u8 or u16[H,W]; never empty.

    A border is a run of outer rows or columns of practically one value, black, white or grey, that ends in an edge. Air
    beside the body is none: it has texture, or fades into the picture. A picture without border gives the whole of it.
    """
    # Single pixels, no means over areas: means would even out the texture that tells air from a shutter.
    sampled = image[:: _step(image.shape[0]), :: _step(image.shape[1])]
    # At least one grey value, or the steps of a slope of few values would be edges.
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
    """Cut the border off both ends of the lines."""
    sampled = lines[within, :: _step(lines.shape[1])]
    start = _border(sampled, tolerance)
    stop = _border(sampled[start:][::-1], tolerance)
    return slice(within.start + start, within.stop - stop)


def _border(lines: Grey, tolerance: float) -> int:
    """Count the leading lines of practically one value; 0 where all are, or where they fade into what follows."""
    value = np.float32(np.sort(lines[0])[lines.shape[1] // 2])
    if not _even(lines[:1], value, tolerance)[0]:
        return 0  # as for most pictures
    step = _step(len(lines))
    coarse = _first_uneven(lines[::step], value, tolerance)
    if coarse == 0:
        return 0
    last = (coarse - 1) * step
    end = last + _first_uneven(lines[last : last + step + 1], value, tolerance)
    # A slope that leaves the tolerance after n lines has not left it threefold after half as many more; an edge has.
    beyond = lines[min(end + end // 2, len(lines) - 1)]
    return end if np.abs(beyond - value).mean() > 3 * tolerance else 0


def _first_uneven(lines: Grey, value: np.float32, tolerance: float) -> int:
    """Index of the first line that is not of this value; 0 too where all are."""
    return int(np.argmin(_even(lines, value, tolerance)))


def _even(lines: Grey, value: np.float32, tolerance: float) -> NDArray[np.bool_]:
    near = np.abs(lines - value) <= tolerance
    return np.asarray(np.count_nonzero(near, axis=1) >= _ONE_VALUE * lines.shape[1])


def _step(length: int) -> int:
    return -(-length // _LINE_SAMPLES)
