"""What is done to a predicted mask before it is stored: specks, lungs, holes, border; each by setting."""

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.config import PostprocessSettings

U8 = NDArray[np.uint8]

_LEAST_LUNG = 0.05  # of the other lung's area; what is smaller is no second lung


def clean(mask: U8, settings: PostprocessSettings) -> U8:
    """Do to a mask u8[H,W] in {0,1} what the settings ask for, in the order specks, lungs, holes, smooth."""
    if settings.specks:
        mask = drop_specks(mask, settings.specks)
    if settings.lungs:
        mask = keep_lungs(mask)
    if settings.holes:
        mask = fill_holes(mask)
    return smooth(mask, settings.smooth) if settings.smooth else mask


def components(mask: U8) -> int:
    """Count a mask's components, u8[H,W] in {0,1}, diagonal neighbours joined."""
    return int(cv2.connectedComponents(mask, connectivity=8)[0]) - 1


def drop_specks(mask: U8, share: float) -> U8:
    """Drop the components of a mask u8[H,W] in {0,1} that are smaller than this share of the whole mask."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    large = areas >= share * areas[1:].sum()
    large[0] = False
    return mask if large.sum() == count - 1 else large[labels].astype(np.uint8)


def keep_lungs(mask: U8) -> U8:
    """Keep, of a mask u8[H,W] in {0,1}, on each side of the midline the component that has most there.

    Not simply the two largest: a large false part beside one lung is dropped, and the smaller lung on the other side
    stays. Lungs that are joined stay one component. A second one under 5 % of the first is no lung.
    """
    while True:
        kept = _keep_one_a_side(mask)
        if kept is mask:
            return mask
        mask = kept  # what was dropped may have moved the midline


def fill_holes(mask: U8) -> U8:
    """Fill background that does not reach the picture's edge (4-connected, as lungs are 8-connected)."""
    count, labels = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)
    outside = labels == labels[0, 0]
    return (~outside[1:-1, 1:-1]).astype(np.uint8) if count > 2 else mask


def smooth(mask: U8, share: float) -> U8:
    """Smooth the border of a mask u8[H,W] in {0,1} by an opening, then a closing, with a disk.

    share: the disk's radius as a share of the picture's longer side; under half a pixel nothing is done.
    """
    radius = round(share * max(mask.shape))
    if radius < 1:
        return mask
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disk)
    return cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disk)  # type: ignore[return-value]


def midline(mask: U8) -> int:
    """Find the column between the lungs: in the picture's middle third the one with the least of the mask u8[H,W].

    Of several the nearest to the picture's middle. The first column right of the border, so `mask[:, :midline]` is
    what lies left.
    """
    width = mask.shape[1]
    low, high = width // 3, max(width // 3 + 1, width - width // 3)
    filled = np.count_nonzero(mask[:, low:high], axis=0)
    columns = np.arange(low, high)[filled == filled.min()]
    return int(columns[np.argmin(np.abs(columns - width / 2))])


def _keep_one_a_side(mask: U8) -> U8:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count <= 2:
        return mask
    middle = midline(mask)
    sides = (np.bincount(part.ravel(), minlength=count) for part in (labels[:, :middle], labels[:, middle:]))
    chosen = {1 + int(np.argmax(areas[1:])) for areas in sides if areas[1:].any()}
    areas = {label: int(stats[label, cv2.CC_STAT_AREA]) for label in chosen}
    lungs = [label for label in chosen if areas[label] >= _LEAST_LUNG * max(areas.values())]
    return mask if len(lungs) == count - 1 else np.isin(labels, lungs).astype(np.uint8)
