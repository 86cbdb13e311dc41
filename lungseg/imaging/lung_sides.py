"""Divide a mask of the lungs into the patient's right and left lung."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import U8, Bools

_FEW = 8  # up to this many components, counting them one by one is faster
_JOINED = 0.25  # a component with at least this share on each side of the midline is both lungs
_OTHER_LUNG = 0.2  # of the larger lung's area; a smaller component is not the other lung
_COMMON_ROWS, _COMMON_COLUMNS = 0.5, 0.25  # least and largest share of the smaller of two lungs


@dataclass(frozen=True)
class Components:
    """Connected components of a mask, with their areas on both sides of the midline.

    labels: i32[h,w] inside `box`, the mask's bounding box; 0 is background. midline: column of the midline in the mask.
    image_left_px, image_right_px: i64[count], pixels of each label left and right of the midline.
    """

    labels: NDArray[np.int32]
    box: tuple[slice, slice]
    midline: int
    image_left_px: NDArray[np.int64]
    image_right_px: NDArray[np.int64]

    @property
    def midline_in_box(self) -> int:
        """Column of the midline in the box."""
        columns = self.box[1]
        return int(min(max(self.midline, columns.start), columns.stop) - columns.start)


def split_sides(mask: U8) -> tuple[U8, U8]:
    """Divide a mask u8[H,W] in {0,1} into the patient's right and left lung, u8[H,W] each; together they are the mask.

    The mask is of an upright frontal image as displayed: the patient's right lung is on the image's left. A component
    belongs to the side of the midline with most of its pixels. A component with a quarter of its pixels or more on each
    side is both lungs, and the midline divides it. A lung without a pixel is empty. The result is wrong for a mirrored
    image, for one that is not upright, and for joined lungs that are far from the centre.
    """
    components = label_components(mask)
    right, both = _assign_sides(components)
    inside = right[components.labels]
    inside[:, : components.midline_in_box] |= both[components.labels[:, : components.midline_in_box]]
    right_lung = np.zeros_like(mask)
    right_lung[components.box] = inside
    return right_lung, ((mask == 1) & (right_lung == 0)).astype(np.uint8)


def count_side_pixels(mask: U8) -> tuple[int, int]:
    """Count the pixels of the right and of the left lung, as divided by `split_sides`."""
    components = label_components(mask)
    right, both = _assign_sides(components)
    area = components.image_left_px + components.image_right_px
    right_area = np.where(both, components.image_left_px, np.where(right, area, 0))
    return int(right_area.sum()), int((area - right_area).sum())


def label_components(mask: U8) -> Components:
    """Label the 8-connected components of a mask u8[H,W] in {0,1}."""
    left, top, width, height = cv2.boundingRect(mask)
    box = slice(top, top + height), slice(left, left + width)
    count, labels = cv2.connectedComponents(mask[box], connectivity=8) if width else (1, np.zeros((0, 0), np.int32))
    zeros = np.zeros(count, np.int64)
    components = Components(np.asarray(labels, np.int32), box, midline(mask), zeros, zeros)
    image_left_px = _count(components.labels[:, : components.midline_in_box], count)
    image_right_px = _count(components.labels[:, components.midline_in_box :], count)
    return replace(components, image_left_px=image_left_px, image_right_px=image_right_px)


def midline(mask: U8) -> int:
    """Find the column between the lungs: in the middle third, the one with fewest pixels of the mask u8[H,W].

    Of equal columns, the one nearest to the centre. On an image whose lungs are both beside that column, the one with
    fewest pixels between them. `mask[:, :midline]` is the left side.
    """
    width = mask.shape[1]
    centre = emptiest_column(mask, width // 3, max(width // 3 + 1, width - width // 3), width / 2)
    image_left_px, image_right_px = (int(np.count_nonzero(side)) for side in (mask[:, :centre], mask[:, centre:]))
    if min(image_left_px, image_right_px) >= _OTHER_LUNG * max(image_left_px, image_right_px, 1):
        return centre
    between = _columns_between(mask, centre)
    return centre if between is None else emptiest_column(mask, *between, sum(between) / 2)


def emptiest_column(mask: U8, low: int, high: int, nearest_to: float) -> int:
    """Find the column from low to high - 1 with fewest pixels of the mask u8[H,W]; of equal ones the nearest."""
    filled = np.count_nonzero(mask[:, low:high], axis=0)
    columns = np.arange(low, high)[filled == filled.min()]
    return int(columns[np.argmin(np.abs(columns - nearest_to))])


def _columns_between(mask: U8, centre: int) -> tuple[int, int] | None:
    """Return the columns between two lungs that are both beside the column `centre`; None if they are not."""
    _, _, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
    largest = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[-2:]
    if largest.size < 2:
        return None
    first, second = sorted(largest.tolist(), key=lambda label: float(centroids[label][0]))
    low, high = (round(float(centroids[label][0])) for label in (first, second))
    areas = stats[largest, cv2.CC_STAT_AREA]
    is_pair = areas.min() >= _OTHER_LUNG * areas.max() and _are_side_by_side(stats[first], stats[second])
    return (low, high) if is_pair and low < high and (high <= centre or low >= centre) else None


def _are_side_by_side(first: NDArray[np.int32], second: NDArray[np.int32]) -> bool:
    """Return whether two components, given by their statistics, share most rows and few columns."""
    shares = []
    for start, length in ((cv2.CC_STAT_TOP, cv2.CC_STAT_HEIGHT), (cv2.CC_STAT_LEFT, cv2.CC_STAT_WIDTH)):
        ends = min(first[start] + first[length], second[start] + second[length])
        shares.append((ends - max(first[start], second[start])) / min(first[length], second[length]))
    return bool(shares[0] >= _COMMON_ROWS and shares[1] <= _COMMON_COLUMNS)


def _assign_sides(components: Components) -> tuple[Bools, Bools]:
    """Return for each component whether it is the right lung, and whether it is both lungs."""
    area = components.image_left_px + components.image_right_px
    both = (np.minimum(components.image_left_px, components.image_right_px) >= _JOINED * area) & (area > 0)
    return ~both & (components.image_left_px >= components.image_right_px) & (area > 0), both


def _count(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Count the pixels of each component; 0 for the background."""
    if count <= _FEW:
        counts = np.array([0, *(np.count_nonzero(labels == label) for label in range(1, count))], np.int64)
    else:
        counts = np.bincount(labels.ravel(), minlength=count)
        counts[0] = 0
    return counts
