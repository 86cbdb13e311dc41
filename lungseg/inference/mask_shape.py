"""Measurements of a mask and of the model's confidence that need no reference mask."""

from typing import Any

import cv2
import numpy as np

from lungseg.arrays import F32, U8, Bools
from lungseg.imaging.orientation import UPRIGHT, to_stored
from lungseg.inference.postprocess import Components, label_components

_JOINED = 0.25  # a component with at least this share on each side of the midline is both lungs


def describe(mask: U8, orientation: int = UPRIGHT) -> dict[str, Any]:
    """Measure an upright mask u8[H,W] in {0,1}: area, lungs, centroid and bounding box, in px.

    right_lung_px, left_lung_px: the patient's right lung is on the left of the image. A component belongs to the side
    with most of its pixels. If it is both lungs, the midline divides it. centroid_x_px, centroid_y_px: mean column and
    row, None for an empty mask. bbox: x, y, width, height as in COCO, empty for an empty mask. orientation: of the
    stored pixels; centroid and bounding box are measured there.
    """
    area = int(np.count_nonzero(mask))
    if not area:
        return {**_areas(0, 0), "centroid_x_px": None, "centroid_y_px": None, "bbox": []}
    right, left = _sides(mask)
    stored = to_stored(mask, orientation)
    moments = cv2.moments(stored, binaryImage=True)
    return {
        **_areas(right, left),
        "centroid_x_px": moments["m10"] / moments["m00"],
        "centroid_y_px": moments["m01"] / moments["m00"],
        "bbox": [int(value) for value in cv2.boundingRect(stored)],
    }


def confidence(probability: F32, threshold: float) -> dict[str, float | None]:
    """Measure the confidence of a prediction f32[H,W] in [0,1]; None if no pixel reaches the threshold.

    mean_probability: of the pixels that reach the threshold. border_entropy: mean binary entropy of the pixels next to
    the mask's border, in bits: 0 certain, 1 undecided. Source: Shannon, A mathematical theory of communication, 1948.
    """
    mask = (probability >= threshold).astype(np.uint8)
    if not mask.any():
        return {"mean_probability": None, "border_entropy": None}
    block = np.ones((3, 3), np.uint8)
    border = cv2.dilate(mask, block) != cv2.erode(mask, block)
    mean = float(probability[mask == 1].mean(dtype=np.float64))
    if not border.any():  # the mask covers the whole image
        return {"mean_probability": mean, "border_entropy": None}
    chance = np.clip(probability[border].astype(np.float64), 1e-12, 1 - 1e-12)
    entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance))
    return {"mean_probability": mean, "border_entropy": float(entropy.mean())}


def _areas(right: int, left: int) -> dict[str, int]:
    return {"area_px": right + left, "right_lung_px": right, "left_lung_px": left}


def split_lungs(mask: U8) -> tuple[U8, U8]:
    """Split an upright mask u8[H,W] in {0,1} into the patient's right lung (on the left of the image) and left lung."""
    components = label_components(mask)
    right, both = _assign_sides(components)
    inside = right[components.labels]
    inside[:, : components.midline_in_box] |= both[components.labels[:, : components.midline_in_box]]
    right_lung = np.zeros_like(mask)
    right_lung[components.box] = inside
    return right_lung, ((mask == 1) & (right_lung == 0)).astype(np.uint8)


def _sides(mask: U8) -> tuple[int, int]:
    """Count the pixels of the right and of the left lung."""
    components = label_components(mask)
    right, both = _assign_sides(components)
    area = components.image_left_px + components.image_right_px
    right_area = np.where(both, components.image_left_px, np.where(right, area, 0))
    return int(right_area.sum()), int((area - right_area).sum())


def _assign_sides(components: Components) -> tuple[Bools, Bools]:
    """Return for each component whether it is the right lung, and whether it is both lungs."""
    area = components.image_left_px + components.image_right_px
    both = (np.minimum(components.image_left_px, components.image_right_px) >= _JOINED * area) & (area > 0)
    return ~both & (components.image_left_px >= components.image_right_px) & (area > 0), both
