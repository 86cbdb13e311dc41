"""Make masks that are no pair of lungs from masks u8[256,256] of lungs in {0,1}."""

from collections.abc import Callable

import cv2
import numpy as np

from tests.pictures.fields import U8


def _cut(mask: U8, rows: slice, columns: slice) -> U8:
    cut = mask.copy()
    cut[rows, columns] = 0
    return cut


def middle_row(mask: U8) -> int:
    """Return the median row of the pixels of a mask."""
    return int(np.median(np.nonzero(mask)[0]))


def _noise(mask: U8) -> U8:
    field = cv2.GaussianBlur(np.random.default_rng(int(mask.sum())).normal(size=mask.shape), (0, 0), 9)
    return (field > 0.02).astype(np.uint8)


def _ellipse(mask: U8) -> U8:
    return cv2.ellipse(np.zeros_like(mask), (90, 128), (50, 80), 0, 0, 360, 1, -1).astype(np.uint8)


WRONG: dict[str, Callable[[U8], U8]] = {
    "nothing": np.zeros_like,
    "everything": np.ones_like,
    "one pixel": lambda mask: mask * (np.arange(mask.size) == np.flatnonzero(mask)[0]).reshape(mask.shape),
    "right lung alone": lambda mask: _cut(mask, slice(None), slice(mask.shape[1] // 2, None)),
    "left lung alone": lambda mask: _cut(mask, slice(None), slice(mask.shape[1] // 2)),
    "upper half": lambda mask: _cut(mask, slice(middle_row(mask), None), slice(None)),
    "half of one lung": lambda mask: _cut(mask, slice(middle_row(mask), None), slice(mask.shape[1] // 2)),
    "background": lambda mask: 1 - mask,
    "noise": _noise,
    "an ellipse": _ellipse,
    "a box": lambda mask: cv2.rectangle(np.zeros_like(mask), (60, 60), (200, 200), 1, -1).astype(np.uint8),
    "on its side": lambda mask: np.ascontiguousarray(np.rot90(mask)),
    "far to one side": lambda mask: np.roll(mask, 70, axis=1),
    "very small": lambda mask: np.pad(cv2.resize(mask, (64, 64), interpolation=cv2.INTER_NEAREST), 96),
    "four pieces": lambda mask: _cut(mask, slice(middle_row(mask) - 6, middle_row(mask) + 6), slice(None)),
}
"""Functions by kind of mask."""
