"""Shrink images to thumbnails, and measure them."""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import F32, Bools, Grey


class VisibleArea(NamedTuple):
    """The exposed area of a thumbnail: bounding box, and bool[side,side] of the pixels that are not border."""

    rows: slice
    columns: slice
    visible: Bools


class RankedContent(NamedTuple):
    """The visible area of an image: ranks f32[side,side] from -1 to 1, 0 in the border; bool[side,side], no border."""

    ranks: F32
    inside: Bools


def thumbnail(image: Grey, side: int) -> F32:
    """Resize an image to f32[side,side] by area averaging, ignoring its aspect ratio; subsamples large images first."""
    rows, columns = (max(1, length // (2 * side)) for length in image.shape)
    sparse: NDArray[Any] = np.ascontiguousarray(image[::rows, ::columns])
    return np.asarray(cv2.resize(sparse, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def find_visible_area(thumb: F32) -> VisibleArea:
    """Find the image inside collimation and padding: exclude the darkest or lightest grey if the border has it.

    Two passes, because padding may surround a collimated image. A box shorter than a quarter of the side is ignored.
    """
    visible = np.ones(thumb.shape, np.bool_)
    low, high = float(thumb.min()), float(thumb.max())
    margin = 0.04 * (high - low)
    ends = (thumb <= low + margin, thumb >= high - margin)
    box = (slice(0, thumb.shape[0]), slice(0, thumb.shape[1]))
    for _ in range(2):
        for end in ends:
            border = border_pixels(end[box])
            if np.count_nonzero(border) > 0.2 * border.size:
                visible &= ~end
        rows, columns = (_span(mean_along_axis(visible[box], axis), box[1 - axis].start) for axis in (1, 0))
        if min(rows.stop - rows.start, columns.stop - columns.start) < len(thumb) // 4:
            break
        box = (rows, columns)
    return VisibleArea(*box, visible)


def rank_content(image: Grey, side: int) -> RankedContent:
    """Shrink the visible area of an image to side x side px and replace grey values by ranks.

    So borders and tone curves have no effect. The border is searched for in a thumbnail of twice the side.
    """
    thumb = thumbnail(image, 2 * side)
    rows, columns, visible = find_visible_area(thumb)
    content = cv2.resize(thumb[rows, columns], (side, side), interpolation=cv2.INTER_AREA)
    shares = cv2.resize(visible[rows, columns].astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    inside = np.asarray(shares > 0.5)
    ranks = np.zeros((side, side), np.float32)
    ranks[inside] = 2 * percentile_ranks(np.asarray(content, np.float32)[inside]) - 1
    return RankedContent(ranks, inside)


def mean_along_axis(flags: Bools, axis: int) -> NDArray[np.float64]:
    """Compute flags.mean(axis) of bool[H,W] in a tenth of NumPy's time."""
    counts = cv2.reduce(flags.view(np.uint8), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(counts.ravel() / flags.shape[axis])


def percentile_ranks(values: F32) -> NDArray[np.float64]:
    """Compute the rank of each value, 0 to 1; ties share their mean rank. Values are binned to 4096 levels."""
    if values.size == 0:
        return np.zeros(values.shape)
    low, high = float(values.min()), float(values.max())
    levels = np.asarray((values - low) * (4095 / max(high - low, 1e-9)), np.int64)
    counts = np.bincount(levels.ravel(), minlength=4096)
    places = (np.cumsum(counts) - 0.5 * counts) / values.size
    return np.asarray(places[levels])


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Compute Pearson's correlation of two arrays of equal size; 0 if one is constant."""
    if a.size == 0:
        return 0.0
    first, second = (values - np.mean(values, dtype=np.float64) for values in (a, b))
    norm = float(np.sqrt(np.sum(first * first) * np.sum(second * second)))
    coefficient = float(np.sum(first * second)) / norm if norm > 0 else 0.0
    return max(-1.0, min(1.0, coefficient))  # rounding may exceed 1


def border_pixels(array: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost rows and columns, concatenated."""
    return np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])


def _span(visible: NDArray[np.float64], start: int) -> slice:
    """Return the range from the first to the last line with at least 15 % visible pixels."""
    lines = np.flatnonzero(visible > 0.15)
    return slice(start + int(lines[0]), start + int(lines[-1]) + 1) if lines.size else slice(start, start)
