"""What is done to a predicted mask before it is stored: specks, lungs, holes, border; each by setting."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.config import PostprocessSettings

U8 = NDArray[np.uint8]

_LEAST_LUNG = 0.05  # of the other lung's area; what is smaller is no second lung
_FEW = 8  # components that are counted faster one by one


@dataclass(frozen=True)
class Components:
    """A mask's components inside its box, 0 the background, and how many px of each lie on either side of the midline.

    labels i32[h,w] of the rows and columns of `box`. middle: the midline's column in the mask. before, after:
    i64[count], px left and right of it.
    """

    labels: NDArray[np.int32]
    box: tuple[slice, slice]
    middle: int
    before: NDArray[np.int64]
    after: NDArray[np.int64]

    @property
    def cut(self) -> int:
        """The midline's column in the box."""
        columns = self.box[1]
        return int(min(max(self.middle, columns.start), columns.stop) - columns.start)


def clean(mask: U8, settings: PostprocessSettings) -> U8:
    """Do to a mask u8[H,W] in {0,1} what the settings ask for, in the order specks, lungs, holes, smooth."""
    if settings.specks:
        mask = drop_specks(mask, settings.specks)
    if settings.lungs:
        mask = keep_lungs(mask)
    if settings.holes:
        mask = fill_holes(mask)
    return smooth(mask, settings.smooth) if settings.smooth else mask


def count_components(mask: U8) -> int:
    """Count a mask's components, u8[H,W] in {0,1}, diagonal neighbours joined."""
    return int(np.count_nonzero(~_holes(mask)))


def label_components(mask: U8) -> Components:
    """Label the components of a mask u8[H,W] in {0,1} and count them on both sides of the midline."""
    left, top, width, height = cv2.boundingRect(mask)
    box = slice(top, top + height), slice(left, left + width)
    count, labels = cv2.connectedComponents(mask[box], connectivity=8) if width else (1, np.zeros((0, 0), np.int32))
    nothing = np.zeros(count, np.int64)
    found = Components(np.asarray(labels, np.int32), box, midline(mask), nothing, nothing)
    halves = found.labels[:, : found.cut], found.labels[:, found.cut :]
    before, after = (_count(half, count) for half in halves)
    return Components(found.labels, box, found.middle, before, after)


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
    if not _holes(mask).any():
        return mask
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


def _holes(mask: U8) -> NDArray[np.bool_]:
    """Say of each outline in a mask whether it is that of a hole, else of a component: a fifth of labelling's time."""
    nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[1]
    return np.zeros(0, np.bool_) if nesting is None else np.asarray(nesting[0, :, 3] >= 0)


def _keep_one_a_side(mask: U8) -> U8:
    if count_components(mask) <= 1:
        return mask
    parts = label_components(mask)
    chosen = {int(np.argmax(areas)) for areas in (parts.before, parts.after) if areas.any()}
    areas = {label: int(parts.before[label] + parts.after[label]) for label in chosen}
    lungs = [label for label in chosen if areas[label] >= _LEAST_LUNG * max(areas.values())]
    if len(lungs) == parts.before.size - 1:
        return mask
    kept = np.zeros_like(mask)
    kept[parts.box] = np.isin(parts.labels, lungs)
    return kept


def _count(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Count the pixels of each component, none of the background."""
    if count <= _FEW:
        counts = np.array([0, *(np.count_nonzero(labels == label) for label in range(1, count))], np.int64)
    else:
        counts = np.bincount(labels.ravel(), minlength=count)
        counts[0] = 0
    return counts
