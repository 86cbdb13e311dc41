"""Remove small components of a mask, and fill its small holes."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import U8
from lungseg.ingest.reason_codes import Note

_SMALL = 0.01  # of the mask's area, for components and for holes


def clean_mask(mask: U8, area: int, display_name: str) -> tuple[U8, list[int], tuple[Note, ...]]:
    """Fill outlines; remove components and fill holes of less than 1 % of the mask's area.

    mask: u8[H,W] in {0,1}; area: its pixels. Returns the mask, the areas of its components in px, largest first, and
    the repairs.
    """
    min_area = _SMALL * area
    areas = _areas_of_clean_mask(mask, min_area)
    if areas:
        return mask, areas, ()
    filled, outline_count = _fill_outlines(mask, min_area)
    if outline_count:
        mask, areas, repairs_after = clean_mask(filled, cv2.countNonZero(filled), display_name)
        message = f"{display_name} draws {outline_count} outlines: their inside was filled"
        return mask, areas, (Note("mask_outline_filled", message), *repairs_after)
    left, top, width, height = cv2.boundingRect(mask)
    box = mask[top : top + height, left : left + width]
    specks, speck_count, areas = _split_components(box, min_area)
    box = box - specks
    # A border of background connects everything outside the mask; background that it does not reach is a hole.
    padded = cv2.copyMakeBorder(box, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(padded, None, (0, 0), 1)
    holes, hole_count, _ = _split_components(1 - padded[1:-1, 1:-1], min_area)
    repairs = []
    if speck_count:
        message = f"{cv2.countNonZero(specks)} px in {speck_count} specks removed from {display_name}"
        repairs.append(Note("mask_specks", message))
    if hole_count:
        message = f"{cv2.countNonZero(holes)} px in {hole_count} holes filled in {display_name}"
        repairs.append(Note("mask_holes", message))
    if repairs:
        mask = np.zeros_like(mask)
        mask[top : top + height, left : left + width] = box + holes
    return mask, areas, tuple(repairs)


def _areas_of_clean_mask(mask: U8, min_area: float) -> list[int]:
    """Return the areas of the components, largest first, if the outlines alone show that nothing needs a repair.

    Empty if there is a hole, or a component that may be too small; then pixels must be counted, which is several times
    slower.
    """
    outlines, nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    if (nesting[0, :, 3] >= 0).any() or min(areas) < 2 * min_area:
        return []
    return sorted((round(area) for area in areas), reverse=True)


def _fill_outlines(mask: U8, min_area: float) -> tuple[U8, int]:
    """Fill components whose holes are larger than themselves; return the mask and their number."""
    outlines, nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = nesting[0, :, 3]
    areas = np.array([cv2.contourArea(outline) for outline in outlines])
    holes = np.bincount(parents[parents >= 0], areas[parents >= 0], minlength=len(outlines))
    own = areas - holes
    pixels = own + np.array([len(outline) for outline in outlines])  # contourArea omits half of the outline's pixels
    hollow = np.flatnonzero((parents < 0) & (holes > pixels) & (pixels >= min_area))
    filled = mask.copy()
    for number in hollow.tolist():
        cv2.drawContours(filled, outlines, number, (1,), cv2.FILLED)
    return filled, len(hollow)


def _split_components(mask: NDArray[Any], min_area: float) -> tuple[U8, int, list[int]]:
    """Return the components of fewer than `min_area` px as a mask, their number, and the areas of the larger ones.

    The areas are sorted, largest first.
    """
    if not cv2.countNonZero(mask):
        return np.zeros(mask.shape, np.uint8), 0, []
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    # Counting labels is several times faster than OpenCV's connectedComponentsWithStats.
    areas = np.bincount(labels.ravel(), minlength=count)
    is_small = areas < min_area
    is_small[0] = False
    small = np.zeros(mask.shape, np.uint8)
    if is_small.any():
        small = np.take(is_small.astype(np.uint8), np.asarray(labels, np.int32))
    return small, int(is_small.sum()), sorted((int(area) for area in areas[1:][~is_small[1:]]), reverse=True)
