"""Restore a predicted mask at native size as runs, without its probabilities at that size."""

from collections.abc import Iterator

import cv2
import numpy as np

from lungseg.arrays import F32, I64
from lungseg.imaging.geometry import restore, smoothed_content
from lungseg.imaging.run_lengths import Runs, find_changes
from lungseg.schema import Geometry

_COLUMNS = 128  # enlarged at once: they stay in the processor's cache
_MARGIN = 1e-4  # probability; interpolation exceeds its largest value by less


def restore_runs(square: F32, geometry: Geometry, threshold: float) -> Runs:
    """Return the runs of `restore(square, geometry) >= threshold`, bit by bit the same mask.

    square: probabilities f32[S,S] in [0,1].
    """
    limit = np.float32(threshold)
    content = smoothed_content(square, geometry)
    shape = geometry.native_height, geometry.native_width
    if shape[0] < content.shape[0] or shape[1] < content.shape[1]:  # OpenCV halves both sides at once in another way
        return Runs.from_mask((restore(square, geometry) >= limit).view(np.uint8))
    # Bilinear interpolation of the columns, then of the rows, gives the same bits as both at once.
    wide: F32 = cv2.resize(content, (shape[1], content.shape[0]), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    changes = list(_find_changes(wide, shape[0], limit))
    return Runs.from_changes(shape, *(np.concatenate(places) for places in zip(*changes, strict=True)))


def _find_changes(wide: F32, height: int, limit: np.float32) -> Iterator[tuple[I64, I64]]:
    """Yield the places where the mask of f32[h,W], enlarged to f32[height,W], starts and ends in its columns."""
    likely = wide >= limit - np.float32(_MARGIN)
    rows, columns = np.flatnonzero(likely.any(axis=1)), np.flatnonzero(likely.any(axis=0))
    yield np.zeros(0, np.int64), np.zeros(0, np.int64)
    if not rows.size:
        return
    scale = height / len(wide)
    top = max(0, int((rows[0] - 1) * scale))
    bottom = min(height, int((rows[-1] + 2) * scale) + 1)
    enlarged = np.empty((height, _COLUMNS), np.float32)
    for left in range(int(columns[0]), int(columns[-1]) + 1, _COLUMNS):
        band = wide[:, left : min(left + _COLUMNS, int(columns[-1]) + 1)]
        size = band.shape[1], height
        target = enlarged if size[0] == _COLUMNS else None
        marked = np.asarray(cv2.resize(band, size, dst=target, interpolation=cv2.INTER_LINEAR)[top:bottom] >= limit)
        changes = np.empty((len(marked) + 1, size[0]), np.bool_)
        changes[0], changes[-1] = marked[0], marked[-1]
        np.not_equal(marked[1:], marked[:-1], out=changes[1:-1])
        yield find_changes(changes, top, left)
