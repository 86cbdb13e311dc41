"""Figures of one image from its counts and its borders. Means over images are taken by whoever reports them.

Where both masks are empty, every overlap figure is 1: nothing was to be found, and nothing was.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.schema import Counts

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""Thresholds to choose from: 0.05 to 0.95 in steps of 0.05, 0.5 exactly among them."""


def count_pixels(prediction: U8, truth: U8) -> Counts:
    """Count pixels of two masks u8[H,W] in {0,1}."""
    predicted, true = prediction.astype(bool), truth.astype(bool)
    tp = int(np.count_nonzero(predicted & true))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(true)) - tp
    return Counts(tp, fp, fn, true.size - tp - fp - fn)


def dice(counts: Counts) -> float:
    """2 TP / (2 TP + FP + FN), in [0,1]; 1 where both masks are empty. Source: Dice, Ecology 26(3), 1945."""
    size = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / size if size else 1.0


def iou(counts: Counts) -> float:
    """TP / (TP + FP + FN), in [0,1]; 1 where both masks are empty. Source: Jaccard, 1912."""
    size = counts.tp + counts.fp + counts.fn
    return counts.tp / size if size else 1.0


def pixel_accuracy(counts: Counts) -> float:
    """(TP + TN) / all pixels, in [0,1]."""
    return (counts.tp + counts.tn) / (counts.tp + counts.fp + counts.fn + counts.tn)


def sensitivity(counts: Counts) -> float | None:
    """TP / (TP + FN), in [0,1]; 1 where both masks are empty, None where only the truth is: nothing could be missed.

    Source of None: the reference code of Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024.
    """
    size = counts.tp + counts.fn
    if size:
        return counts.tp / size
    return None if counts.fp else 1.0


def precision(counts: Counts) -> float:
    """TP / (TP + FP), in [0,1]; 1 where both masks are empty, 0 where only the prediction is.

    That 0 is a convention, for a lung missed altogether must not raise a mean by being left out of it. Source: as of
    sensitivity; there two empty masks have no value.
    """
    size = counts.tp + counts.fp
    if size:
        return counts.tp / size
    return 0.0 if counts.fn else 1.0


def threshold_counts(probability: F32, truth: U8, grid: Sequence[float] = THRESHOLDS) -> I64:
    """Count at each threshold t the pixels of (probability >= t), as count_pixels would.

    Args:
        probability: f32[H,W] in [0,1]; NaN is never lung.
        truth: u8[H,W] in {0,1}.
        grid: G thresholds in any order; compared as f32, as PyTorch and NumPy compare an f32 array with a number.

    Returns: i64[G,3], true positives, false positives, false negatives.

    """
    true = truth.astype(bool)
    inside, outside = probability[true], probability[~true]
    # G comparisons of whole arrays take half the time of one search for each pixel's place in the grid.
    counts = [(np.count_nonzero(inside >= t), np.count_nonzero(outside >= t)) for t in np.asarray(grid, np.float32)]
    return np.array([(tp, fp, inside.size - tp) for tp, fp in counts], np.int64).reshape(-1, 3)


def best_threshold(counts: I64, grid: Sequence[float] = THRESHOLDS) -> tuple[float, float]:
    """Choose the threshold of the highest mean Dice over images; of equal ones the nearest to 0.5, then the lower.

    Args:
        counts: i64[N,G,3], threshold_counts of N images. Where both masks are empty, Dice is 1.
        grid: the G thresholds.

    Returns: the threshold and its mean Dice. The order of the images does not matter.

    Raises:
        ValueError: there is no image or no threshold, or grid and counts do not fit.

    """
    if counts.ndim != 3 or not counts.size or counts.shape[1:] != (len(grid), 3):
        raise ValueError(f"counts i64{list(counts.shape)}: expected one image or more, at {len(grid)} thresholds each")
    tp, fp, fn = np.moveaxis(counts, 2, 0)
    size = 2 * tp + fp + fn
    found = np.divide(2 * tp, size, out=np.ones(size.shape), where=size > 0)
    means = [math.fsum(column) / len(column) for column in found.T]
    # Rounded, for 0.45 and 0.55 are equally far from 0.5, though not in f64.
    best = min(range(len(grid)), key=lambda i: (-means[i], round(abs(grid[i] - 0.5), 9), grid[i]))
    return float(grid[best]), means[best]


def surface_distances(prediction: U8, truth: U8) -> tuple[float | None, float | None]:
    """HD95 and ASSD of two masks u8[H,W] in {0,1}, in px; None where either mask is empty.

    HD95: the larger of the two directions' 95th percentiles of border-to-border distances. ASSD: the mean of all those
    distances, both directions together. Source: Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024.
    """
    if not prediction.any() or not truth.any():
        return None, None
    x, y, width, height = cv2.boundingRect(prediction | truth)
    # One pixel of room, so that a mask at the frame's edge has its border there.
    window = np.s_[y : y + height, x : x + width]
    first, second = (_border(np.pad(mask[window], 1)) for mask in (prediction, truth))
    there, back = _distances(first, second), _distances(second, first)
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return hd95, float(np.concatenate([there, back]).mean())


def mean(values: list[float]) -> float:
    """Mean of per-image values; nan of none."""
    return math.fsum(values) / len(values) if values else math.nan


def _border(mask: U8) -> U8:
    """Pixels of a mask that touch the outside by a side."""
    return mask - cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))  # type: ignore[return-value]


def _distances(border: U8, other: U8) -> NDArray[np.float32]:
    """Distance of each pixel of a border to the other border, px."""
    # With one thread OpenCV would hand this to IPP, whose last bit differs from one process to the next.
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    away = cv2.distanceTransform(1 - other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    cv2.ipp.setUseIPP(used)
    return away[border > 0].astype(np.float32)
