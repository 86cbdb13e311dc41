"""Measurements of a mask and of the model's confidence that need no reference mask."""

from typing import Any

import cv2
import numpy as np

from lungseg.arrays import F32, U8
from lungseg.imaging.lung_sides import count_side_pixels
from lungseg.imaging.orientation import UPRIGHT, to_stored
from lungseg.imaging.run_lengths import Runs


def describe(
    mask: Runs, stored: Runs, spacing_mm: float | None = None, sides: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Measure an upright mask: areas in px and cm2, centroid and bounding box in px.

    right_lung_px, left_lung_px: `sides`, or as divided by `split_sides`. centroid_x_px, centroid_y_px: mean column and
    row, None for an empty mask. bbox: x, y, width, height as in COCO, empty for an empty mask. stored: the mask of the
    stored pixels; centroid and bounding box are measured there. spacing_mm: side of a pixel; None: no areas in cm2.
    """
    area = mask.area
    if not area:
        return {**_areas(0, (0, 0), spacing_mm), "centroid_x_px": None, "centroid_y_px": None, "bbox": []}
    doubled_rows = stored.lengths * (stored.starts + stored.stops - 1)
    (top, first), (height, width) = stored.corner, stored.extent
    return {
        **_areas(area, sides or count_side_pixels(mask), spacing_mm),
        "centroid_x_px": int((stored.lengths * stored.columns).sum()) / area,
        "centroid_y_px": int(doubled_rows.sum()) // 2 / area,
        "bbox": [first, top, width, height],
    }


def as_stored(mask: Runs, orientation: int) -> Runs:
    """Turn an upright mask as its image's pixels are stored; orientation: of these pixels, 1 to 8."""
    return mask if orientation == UPRIGHT else Runs.from_mask(to_stored(mask.to_mask(), orientation))


def mean_probability(probability: F32, mask: U8) -> float | None:
    """Return the mean probability of the pixels of a mask u8[H,W] in {0,1}; None for an empty one."""
    return float(probability[mask == 1].mean(dtype=np.float64)) if mask.any() else None


def confidence(probability: F32, mask: U8) -> dict[str, float | None]:
    """Measure the confidence of a prediction f32[H,W] in [0,1]; None if its mask u8[H,W] in {0,1} is empty.

    mean_probability: of the pixels of the mask, which reach the threshold. border_entropy: mean binary entropy of the
    pixels next to its border, in bits: 0 certain, 1 undecided. Source: Shannon, A mathematical theory of communication,
    1948.
    """
    mean = mean_probability(probability, mask)
    if mean is None:
        return {"mean_probability": None, "border_entropy": None}
    block = np.ones((3, 3), np.uint8)
    border = cv2.dilate(mask, block) != cv2.erode(mask, block)
    if not border.any():  # the mask covers the whole image
        return {"mean_probability": mean, "border_entropy": None}
    chance = np.clip(probability[border].astype(np.float64), 1e-12, 1 - 1e-12)
    entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance))
    return {"mean_probability": mean, "border_entropy": float(entropy.mean())}


def _areas(area: int, sides: tuple[int, int], spacing_mm: float | None) -> dict[str, Any]:
    pixels = {"area": area, "right_lung": sides[0], "left_lung": sides[1]}
    factor = None if spacing_mm is None else spacing_mm**2 / 100  # cm2 of a pixel
    return {
        **{f"{name}_px": count for name, count in pixels.items()},
        "spacing_mm": spacing_mm,
        **{f"{name}_cm2": None if factor is None else count * factor for name, count in pixels.items()},
    }
