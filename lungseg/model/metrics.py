"""Figures of one image from its counts and its borders. Means over images are taken by whoever reports them."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.schema import Counts

U8 = NDArray[np.uint8]


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
    away = cv2.distanceTransform(1 - other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away[border > 0].astype(np.float32)
