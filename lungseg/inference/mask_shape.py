"""What a mask looks like, and how sure the model was of it: figures that need no reference."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.inference.postprocess import Components, label_components

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

_JOINED = 0.25  # of a component on either side of the midline, from which it is both lungs in one


def describe(mask: U8) -> dict[str, Any]:
    """Describe a mask u8[H,W] in {0,1}, in px of it.

    area_px. right_lung_px and left_lung_px: the patient's right is on the picture's left; a component counts for the
    side where most of it lies, but for one that is both lungs, which the midline parts. centroid_x_px, centroid_y_px:
    means of the pixels' columns and rows, None for an empty mask. bbox: x, y, width, height as in COCO, empty for an
    empty mask.
    """
    area = int(np.count_nonzero(mask))
    if not area:
        return {**_areas(0, 0), "centroid_x_px": None, "centroid_y_px": None, "bbox": []}
    moments = cv2.moments(mask, binaryImage=True)
    right, left = _sides(mask)
    return {
        **_areas(right, left),
        "centroid_x_px": moments["m10"] / moments["m00"],
        "centroid_y_px": moments["m01"] / moments["m00"],
        "bbox": [int(value) for value in cv2.boundingRect(mask)],
    }


def confidence(probability: F32, threshold: float) -> dict[str, float | None]:
    """Say how sure a prediction f32[H,W] in [0,1] is; None where nothing reaches the threshold.

    mean_probability: over the pixels that do. border_entropy: mean binary entropy, in bits, 0 sure to 1 undecided, over
    the pixels within one of the mask's border. Source: Shannon, A mathematical theory of communication, 1948.
    """
    mask = (probability >= threshold).astype(np.uint8)
    if not mask.any():
        return {"mean_probability": None, "border_entropy": None}
    block = np.ones((3, 3), np.uint8)
    border = cv2.dilate(mask, block) != cv2.erode(mask, block)
    mean = float(probability[mask == 1].mean(dtype=np.float64))
    if not border.any():  # the whole picture is lung
        return {"mean_probability": mean, "border_entropy": None}
    chance = np.clip(probability[border].astype(np.float64), 1e-12, 1 - 1e-12)
    entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance))
    return {"mean_probability": mean, "border_entropy": float(entropy.mean())}


def _areas(right: int, left: int) -> dict[str, int]:
    return {"area_px": right + left, "right_lung_px": right, "left_lung_px": left}


def split_lungs(mask: U8) -> tuple[U8, U8]:
    """Part a mask u8[H,W] in {0,1} into the patient's right lung, on the picture's left, and the left one."""
    parts = label_components(mask)
    right, both = _whose(parts)
    inside = right[parts.labels]
    inside[:, : parts.cut] |= both[parts.labels[:, : parts.cut]]
    found = np.zeros_like(mask)
    found[parts.box] = inside
    return found, ((mask == 1) & (found == 0)).astype(np.uint8)


def _sides(mask: U8) -> tuple[int, int]:
    """Count the pixels of the right and of the left lung."""
    parts = label_components(mask)
    right, both = _whose(parts)
    counts = np.where(both, parts.before, np.where(right, parts.before + parts.after, 0))
    return int(counts.sum()), int((parts.before + parts.after - counts).sum())


def _whose(parts: Components) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of each component whether it is the right lung, or both in one."""
    whole = parts.before + parts.after
    both = (np.minimum(parts.before, parts.after) >= _JOINED * whole) & (whole > 0)
    return ~both & (parts.before >= parts.after) & (whole > 0), both
