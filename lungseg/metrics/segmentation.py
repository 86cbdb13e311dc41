"""Segmentation metrics of one image, from pixel counts and mask borders. Callers take means over images.

If both masks are empty, every overlap metric is 1: the prediction is correct.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import F32, U8
from lungseg.schema import Counts

I64 = NDArray[np.int64]

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""Candidate thresholds: 0.05 to 0.95 in steps of 0.05, including exactly 0.5."""

PREPARED_REFERENCE, ORIGINAL_REFERENCE = "prepared mask enlarged to native size", "original mask"
"""What metrics at native size compare with. A study and predictions of prepared data use the prepared mask, predictions
of an archive the original one, so that their figures for the same images differ a little."""


def count_pixels(prediction: U8, truth: U8) -> Counts:
    """Count TP, FP, FN and TN pixels of two masks u8[H,W] in {0,1}."""
    predicted, true = prediction.astype(bool), truth.astype(bool)
    tp = int(np.count_nonzero(predicted & true))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(true)) - tp
    return Counts(tp, fp, fn, true.size - tp - fp - fn)


def dice(counts: Counts) -> float:
    """2 TP / (2 TP + FP + FN), in [0,1]; 1 if both masks are empty. Source: Dice, Ecology 26(3), 1945."""
    size = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / size if size else 1.0


def iou(counts: Counts) -> float:
    """TP / (TP + FP + FN), in [0,1]; 1 if both masks are empty. Source: Jaccard, 1912."""
    size = counts.tp + counts.fp + counts.fn
    return counts.tp / size if size else 1.0


def pixel_accuracy(counts: Counts) -> float:
    """(TP + TN) / all pixels, in [0,1]."""
    return (counts.tp + counts.tn) / (counts.tp + counts.fp + counts.fn + counts.tn)


def sensitivity(counts: Counts) -> float | None:
    """TP / (TP + FN), in [0,1]; 1 if both masks are empty, None if only the truth is: there is nothing to miss.

    Source of None: the reference code of Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024.
    """
    size = counts.tp + counts.fn
    if size:
        return counts.tp / size
    return None if counts.fp else 1.0


def precision(counts: Counts) -> float:
    """TP / (TP + FP), in [0,1]; 1 if both masks are empty, 0 if only the prediction is.

    The 0 is a convention: if the image were left out, a completely missed lung would raise the mean. Source: see
    sensitivity; there, two empty masks have no value.
    """
    size = counts.tp + counts.fp
    if size:
        return counts.tp / size
    return 0.0 if counts.fn else 1.0


def threshold_counts(probability: F32, truth: U8, grid: Sequence[float] = THRESHOLDS) -> I64:
    """Count the pixels of (probability >= t) at each threshold t, as count_pixels does.

    Args:
        probability: f32[H,W] in [0,1]; NaN is never lung.
        truth: u8[H,W] in {0,1}.
        grid: G thresholds in any order, compared as f32: so PyTorch and NumPy compare an f32 array with a number.

    Returns: i64[G,3], true positives, false positives, false negatives.

    """
    true = truth.astype(bool)
    inside, outside = probability[true], probability[~true]
    # G comparisons of whole arrays take half the time of one binary search per pixel.
    counts = [(np.count_nonzero(inside >= t), np.count_nonzero(outside >= t)) for t in np.asarray(grid, np.float32)]
    return np.array([(tp, fp, inside.size - tp) for tp, fp in counts], np.int64).reshape(-1, 3)


def best_threshold(counts: I64, grid: Sequence[float] = THRESHOLDS) -> tuple[float, float]:
    """Choose the threshold with the highest mean Dice over images; among ties the nearest to 0.5, then the lower.

    Args:
        counts: i64[N,G,3], threshold_counts of N images. Dice is 1 if both masks are empty.
        grid: the G thresholds.

    Returns: the threshold and its mean Dice. Independent of the order of the images.

    Raises:
        ValueError: no images or no thresholds, or the shapes of grid and counts differ.

    """
    if counts.ndim != 3 or not counts.size or counts.shape[1:] != (len(grid), 3):
        raise ValueError(
            f"counts i64{list(counts.shape)}: expected one image or more, with {len(grid)} thresholds each"
        )
    tp, fp, fn = np.moveaxis(counts, 2, 0)
    size = 2 * tp + fp + fn
    dice_values = np.divide(2 * tp, size, out=np.ones(size.shape), where=size > 0)
    means = [math.fsum(column) / len(column) for column in dice_values.T]
    # Rounded: in f64, 0.45 and 0.55 are not equally far from 0.5.
    best = min(range(len(grid)), key=lambda i: (-means[i], round(abs(grid[i] - 0.5), 9), grid[i]))
    return float(grid[best]), means[best]


def surface_distances(prediction: U8, truth: U8) -> tuple[float | None, float | None]:
    """HD95 and ASSD of two masks u8[H,W] in {0,1}, in px; None if either mask is empty.

    HD95: 95th percentile of the border-to-border distances, the larger of both directions. ASSD: mean of these
    distances over both directions together. Source: Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024.
    """
    if not prediction.any() or not truth.any():
        return None, None
    x, y, width, height = cv2.boundingRect(prediction | truth)
    # Pad by one pixel, so that a mask at the image edge has its border there.
    window = np.s_[y : y + height, x : x + width]
    first, second = (_border(np.pad(mask[window], 1)) for mask in (prediction, truth))
    forward, backward = _distances(first, second), _distances(second, first)
    hd95 = max(float(np.percentile(forward, 95)), float(np.percentile(backward, 95)))
    return hd95, float(np.concatenate([forward, backward]).mean())


def mean(values: list[float]) -> float:
    """Mean of per-image values; NaN for an empty list."""
    return math.fsum(values) / len(values) if values else math.nan


def _border(mask: U8) -> U8:
    """Mark the mask pixels that share a side with a background pixel."""
    return mask - cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))  # type: ignore[return-value]


def _distances(border: U8, other: U8) -> NDArray[np.float32]:
    """Return the distance of each border pixel to the other border, px."""
    # With one thread OpenCV uses IPP, whose results differ in the last bit between processes.
    use_ipp = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    distances = cv2.distanceTransform(1 - other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    cv2.ipp.setUseIPP(use_ipp)
    return distances[border > 0].astype(np.float32)
