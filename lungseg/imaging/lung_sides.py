"""Divide a mask of the lungs into the patient's right and left lung."""

from dataclasses import dataclass

import numpy as np

from lungseg.arrays import I64, U8, Bools
from lungseg.imaging.run_lengths import Runs, label_runs

_JOINED = 0.25  # a component with at least this share on each side of the midline is both lungs
_OTHER_LUNG = 0.2  # of the larger lung's area; a smaller component is not the other lung
_MIN_OTHER_LUNG = 0.2  # of the larger lung's area; 0.11 or more in the reference masks, 0.37 or more in 99.7 % of them
_COMMON_ROWS, _COMMON_COLUMNS = 0.5, 0.25  # least and largest share of the smaller of two lungs


@dataclass(frozen=True)
class Components:
    """Connected components of a mask, with their areas on both sides of the midline.

    labels: i64[N] from 0, the component of each run of the mask. midline: its column. image_left_px, image_right_px:
    i64[count], pixels of each component left and right of the midline.
    """

    labels: I64
    midline: int
    image_left_px: I64
    image_right_px: I64


def is_one_side(first_px: int, second_px: int) -> bool:
    """Return whether one lung is missing beside the other, or is implausibly small."""
    return min(first_px, second_px) < _MIN_OTHER_LUNG * max(first_px, second_px)


def split_sides(mask: U8) -> tuple[U8, U8]:
    """Divide a mask u8[H,W] in {0,1} into the patient's right and left lung, u8[H,W] each; together they are the mask.

    The mask is of an upright frontal image as displayed: the patient's right lung is on the image's left. A component
    belongs to the side of the midline with most of its pixels. A component with a quarter of its pixels or more on each
    side is both lungs, and the midline divides it. A lung without a pixel is empty. The result is wrong for a mirrored
    image, for one that is not upright, and for joined lungs that are far from the centre.
    """
    runs = Runs.from_mask(mask)
    components = label_components(runs)
    right, both = _assign_sides(components)
    is_left_half = runs.columns < components.midline
    is_right = right[components.labels] | (both[components.labels] & is_left_half)
    return runs.select(is_right).to_mask(), runs.select(~is_right).to_mask()


def count_side_pixels(runs: Runs) -> tuple[int, int]:
    """Count the pixels of the right and of the left lung, as divided by `split_sides`."""
    components = label_components(runs)
    right, both = _assign_sides(components)
    area = components.image_left_px + components.image_right_px
    right_area = np.where(both, components.image_left_px, np.where(right, area, 0))
    return int(right_area.sum()), int((area - right_area).sum())


def label_components(runs: Runs) -> Components:
    """Label the 8-connected components of a mask."""
    labels, count = label_runs(runs)
    column = midline(runs)
    is_left_half = runs.columns < column
    image_left_px = _count(labels[is_left_half], runs.lengths[is_left_half], count)
    return Components(labels, column, image_left_px, _count(labels, runs.lengths, count) - image_left_px)


def midline(runs: Runs) -> int:
    """Find the column between the lungs: in the middle third, the one with fewest pixels of the mask.

    Of equal columns, the one nearest to the centre. On an image whose lungs are both beside that column, the one with
    fewest pixels between them. `mask[:, :midline]` is the left side.
    """
    width = runs.shape[1]
    filled = _count(runs.columns, runs.lengths, width)
    centre = emptiest_column(filled, width // 3, max(width // 3 + 1, width - width // 3), width / 2)
    image_left_px, image_right_px = int(filled[:centre].sum()), int(filled[centre:].sum())
    if min(image_left_px, image_right_px) >= _OTHER_LUNG * max(image_left_px, image_right_px, 1):
        return centre
    between = _columns_between(runs, centre)
    return centre if between is None else emptiest_column(filled, *between, sum(between) / 2)


def emptiest_column(filled: I64, low: int, high: int, nearest_to: float) -> int:
    """Find the column from low to high - 1 with fewest pixels; of equal ones the nearest. filled: pixels i64[W]."""
    columns = np.arange(low, high)[filled[low:high] == filled[low:high].min()]
    return int(columns[np.argmin(np.abs(columns - nearest_to))])


def _columns_between(runs: Runs, centre: int) -> tuple[int, int] | None:
    """Return the columns between two lungs that are both beside the column `centre`; None if they are not."""
    labels, count = label_runs(runs)
    areas = _count(labels, runs.lengths, count)
    largest = np.argsort(areas)[-2:].tolist()
    if len(largest) < 2:
        return None
    moments = _count(labels, runs.lengths * runs.columns, count)
    (low, first), (high, second) = sorted((moments[label] / areas[label], label) for label in largest)
    low, high = round(float(low)), round(float(high))
    is_pair = areas[largest].min() >= _OTHER_LUNG * areas[largest].max() and _are_side_by_side(
        runs.select(labels == first), runs.select(labels == second)
    )
    return (low, high) if is_pair and low < high and (high <= centre or low >= centre) else None


def _are_side_by_side(first: Runs, second: Runs) -> bool:
    """Return whether two components share most rows and few columns."""
    shares = []
    for axis in (0, 1):
        starts, lengths = (first.corner[axis], second.corner[axis]), (first.extent[axis], second.extent[axis])
        ends = (starts[0] + lengths[0], starts[1] + lengths[1])
        shares.append((min(ends) - max(starts)) / min(lengths))
    return bool(shares[0] >= _COMMON_ROWS and shares[1] <= _COMMON_COLUMNS)


def _assign_sides(components: Components) -> tuple[Bools, Bools]:
    """Return for each component whether it is the right lung, and whether it is both lungs."""
    area = components.image_left_px + components.image_right_px
    both = (np.minimum(components.image_left_px, components.image_right_px) >= _JOINED * area) & (area > 0)
    return ~both & (components.image_left_px >= components.image_right_px) & (area > 0), both


def _count(numbers: I64, pixels: I64, count: int) -> I64:
    """Sum the pixels of each number from 0 to count - 1."""
    return np.bincount(numbers, pixels, minlength=count).astype(np.int64)
