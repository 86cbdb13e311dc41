"""Post-process a predicted mask: drop specks, keep the lungs, fill holes, smooth the border."""

import cv2
import numpy as np

from lungseg.arrays import U8, Bools
from lungseg.config import PostprocessSettings
from lungseg.imaging.lung_sides import label_components

_MIN_LUNG = 0.05  # of the other lung's area; a smaller component is not a second lung


def clean(mask: U8, settings: PostprocessSettings) -> U8:
    """Post-process a mask u8[H,W] in {0,1} in the order specks, lungs, holes, smooth."""
    if settings.specks:
        mask = drop_specks(mask, settings.specks)
    if settings.lungs:
        mask = keep_lungs(mask)
    if settings.holes:
        mask = fill_holes(mask)
    return smooth(mask, settings.smooth) if settings.smooth else mask


def count_components(mask: U8) -> int:
    """Count the 8-connected components of a mask u8[H,W] in {0,1}."""
    return int(np.count_nonzero(~_holes(mask)))


def drop_specks(mask: U8, share: float) -> U8:
    """Drop components of a mask u8[H,W] in {0,1} that are smaller than this share of the mask's area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    large = areas >= share * areas[1:].sum()
    large[0] = False
    return mask if large.sum() == count - 1 else large[labels].astype(np.uint8)


def keep_lungs(mask: U8) -> U8:
    """Keep on each side of the midline the component with most pixels on that side; mask u8[H,W] in {0,1}.

    This is not the same as the two largest components: a large false region beside one lung is dropped, and the
    smaller lung on the other side is kept. Joined lungs are one component. A second component under 5 % of the first
    is not a lung.
    """
    while True:
        kept = _keep_one_per_side(mask)
        if kept is mask:
            return mask
        mask = kept  # without the dropped components, the midline may move


def fill_holes(mask: U8) -> U8:
    """Fill background that is not connected to the image border (4-connected, as lungs are 8-connected)."""
    if not _holes(mask).any():
        return mask
    count, labels = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)
    outside = labels == labels[0, 0]
    return (~outside[1:-1, 1:-1]).astype(np.uint8) if count > 2 else mask


def smooth(mask: U8, share: float) -> U8:
    """Smooth the border of a mask u8[H,W] in {0,1}: morphological opening, then closing, with a disk.

    share: radius of the disk as a share of the image's longer side. A radius under half a pixel changes nothing.
    """
    radius = round(share * max(mask.shape))
    if radius < 1:
        return mask
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disk)
    return cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disk)  # type: ignore[return-value]


def _holes(mask: U8) -> Bools:
    """Return for each contour of a mask whether it surrounds a hole, else a component. 5 times as fast as labels."""
    nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[1]
    return np.zeros(0, np.bool_) if nesting is None else np.asarray(nesting[0, :, 3] >= 0)


def _keep_one_per_side(mask: U8) -> U8:
    if count_components(mask) <= 1:
        return mask
    components = label_components(mask)
    largest = {int(np.argmax(side)) for side in (components.image_left_px, components.image_right_px) if side.any()}
    areas = {label: int(components.image_left_px[label] + components.image_right_px[label]) for label in largest}
    lungs = [label for label in largest if areas[label] >= _MIN_LUNG * max(areas.values())]
    if len(lungs) == components.image_left_px.size - 1:
        return mask
    kept = np.zeros_like(mask)
    kept[components.box] = np.isin(components.labels, lungs)
    return kept
