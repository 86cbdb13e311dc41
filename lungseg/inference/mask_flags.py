"""Flag a predicted mask that cannot be a pair of lungs, or of which the model is not sure."""

from typing import Any

import cv2
import numpy as np

from lungseg.arrays import U8
from lungseg.imaging.lung_sides import is_one_side, split_sides
from lungseg.imaging.run_lengths import Runs
from lungseg.inference.postprocess import count_components

_SIDE = 128  # px, longer side of the mask that is measured
_MAX_AT_BORDER = 0.25  # of one side of the image; up to 0.20 in 99.7 % of the reference masks
_MIN_PROBABILITY = 0.75
_LIMITS = {
    "area": (0.05, 0.6),
    "components": (1, 3),
    "box_aspect": (0.68, 1.7),
    "fill": (0.36, 0.72),
    "overlap": (0.5, 1),
    "solidity": (0.65, 1),
    "narrow_lung": (0.26, 1),
    "wide_lung": (0.3, 0.9),
    "distance": (0.42, 0.67),
    "centre": (0.4, 0.6),
    "top_width": (0.42, 1.2),
}
"""Lowest and highest plausible value of `measure_pair`: of the reference masks of 730 X-rays, with a margin."""


def find_flags(mask: Runs, mean_probability: float | None, sides: tuple[Runs, Runs] | None = None) -> list[str]:
    """Return the codes of a predicted mask that is upright.

    mean_probability: of the lung pixels before post-processing; None without any. sides: masks of the right and of the
    left lung, where these are classes of their own; they may touch.
    """
    if not mask.area:
        return ["lungs_empty"]
    small = _shrink(mask)
    if not small.any():  # a few pixels
        return ["lungs_implausible"]
    right, left = split_sides(small) if sides is None else _shrink_pair(sides)
    areas = (np.count_nonzero(right), np.count_nonzero(left)) if sides is None else (sides[0].area, sides[1].area)
    is_set_by_code = {
        "lungs_one_side": is_one_side(*areas),
        "lungs_at_border": _share_at_border(small) > _MAX_AT_BORDER,
        "lungs_uncertain": mean_probability is not None and mean_probability < _MIN_PROBABILITY,
    }
    if not is_set_by_code["lungs_one_side"]:
        is_set_by_code["lungs_joined"] = sides is None and count_components(Runs.from_mask(small)) == 1
        is_set_by_code["lungs_implausible"] = not _is_plausible(small, right, left)
    return [code for code, is_set in is_set_by_code.items() if is_set]


def _is_plausible(mask: U8, right: U8, left: U8) -> bool:
    if not (right.any() and left.any()):  # a few pixels
        return False
    values = measure_pair(mask, right, left)
    return all(low <= values[name] <= high for name, (low, high) in _LIMITS.items())


def measure_pair(mask: U8, right: U8, left: U8) -> dict[str, float]:
    """Measure position and shape of two lungs, u8[H,W] in {0,1} each, neither empty.

    area: share of the image. box_aspect: width over height of the bounding box. fill: area over that of the box.
    overlap: common rows over the rows of the taller lung. solidity: area over that of the convex hull, of the lower
    lung. narrow_lung, wide_lung: smallest and largest width over height of a lung. distance: between the centroids
    over the width of the box. centre: of both centroids over the width of the image. top_width: mean width of the upper
    fifth over that of the next three.
    """
    _, top, width, height = cv2.boundingRect(mask)
    boxes = [cv2.boundingRect(lung) for lung in (right, left)]
    heights = [box[3] for box in boxes]
    common = min(box[1] + box[3] for box in boxes) - max(box[1] for box in boxes)
    centres = [float(np.nonzero(lung)[1].mean()) for lung in (right, left)]
    rows = np.count_nonzero(mask, axis=1)[top : top + height]
    fifth = max(1, height // 5)
    area = np.count_nonzero(mask)
    return {
        "area": area / mask.size,
        "components": count_components(Runs.from_mask(mask)),
        "box_aspect": width / height,
        "fill": area / (width * height),
        "overlap": common / max(heights),
        "solidity": min(_solidity(lung) for lung in (right, left)),
        "narrow_lung": min(box[2] / box[3] for box in boxes),
        "wide_lung": max(box[2] / box[3] for box in boxes),
        "distance": (centres[1] - centres[0]) / width,
        "centre": (centres[0] + centres[1]) / 2 / mask.shape[1],
        "top_width": float(rows[:fifth].mean() / max(rows[fifth : 4 * fifth].mean(), 1)) if height > fifth else 0.0,
    }


def _shrink(mask: Runs) -> U8:
    """Shrink a mask to u8[h,w] in {0,1} with a longer side of _SIDE px; a smaller one is enlarged."""
    step = max(1, max(mask.shape) // (4 * _SIDE))
    sparse: Any = mask.sample(step).to_mask() * np.uint8(255)
    scale = _SIDE / max(sparse.shape)
    size = (max(1, round(sparse.shape[1] * scale)), max(1, round(sparse.shape[0] * scale)))
    return np.asarray(cv2.resize(sparse, size, interpolation=cv2.INTER_AREA) > 127, np.uint8)


def _shrink_pair(sides: tuple[Runs, Runs]) -> list[U8]:
    """Shrink the masks of both lungs; the one on the left of the image comes first, whatever its class."""
    small = [_shrink(lung) for lung in sides]
    return sorted(small, key=lambda lung: float(np.nonzero(lung)[1].mean()) if lung.any() else 0.0)


def _share_at_border(mask: U8) -> float:
    """Return the largest share of an image side that the mask touches."""
    return max(float(edge.mean()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def _solidity(lung: U8) -> float:
    points: Any = cv2.findNonZero(lung)
    hull = cv2.contourArea(cv2.convexHull(points))
    return float(np.count_nonzero(lung) / hull) if hull else 0.0
