"""Measures that need the masks of several classes: heart size, opaque shares of the lungs, and a mirrored picture.

Masks are upright, of one image, at native size; classes that a model lacks are absent.
"""

from collections.abc import Mapping

import numpy as np

from lungseg.arrays import I64
from lungseg.config.class_names import HEART, LEFT_LUNG, LUNG_SIDES, OPACITY, RIGHT_LUNG
from lungseg.imaging.lung_sides import is_one_side
from lungseg.imaging.run_lengths import Runs

MEASURES = ("cardiothoracic_ratio", "right_lung_opaque_share", "left_lung_opaque_share", "right_left_ratio")
"""Names of what `measure` returns, which are columns of prediction rows."""

_MIRRORED = 0.02  # of the width of both lungs; docs/flags.md has the error rates


def measure(masks: Mapping[str, Runs]) -> dict[str, float | None]:
    """Return MEASURES of upright masks by class; None where a class is missing or a mask that divides is empty.

    right_lung_opaque_share, left_lung_opaque_share: pixels of the lung that are also opacity, over pixels of the lung;
    0 where the mask of opacities is empty. right_left_ratio: pixels of the right lung over those of the left lung; None
    if either is empty.
    """
    right, left, opacity = (masks.get(name) for name in (RIGHT_LUNG, LEFT_LUNG, OPACITY))
    values = (
        cardiothoracic_ratio(masks.get(HEART), right, left),
        _share_inside(opacity, right),
        _share_inside(opacity, left),
        right.area / left.area if right and left and right.area and left.area else None,
    )
    return dict(zip(MEASURES, values, strict=True))


def cardiothoracic_ratio(heart: Runs | None, right: Runs | None, left: Runs | None) -> float | None:
    """Return the width of the heart over the largest width of the thorax; None if a mask is missing or empty.

    Width of the heart: its greatest extents to the right and to the left of the midline, added. For a heart that
    crosses the midline, this is the width of its bounding box wherever the midline lies. Width of the thorax: in one
    row of pixels that crosses both lungs, from the outer border of one to that of the other; the largest of all rows.

    Source: Danzer, The American Journal of the Medical Sciences 157, 1919, with the outer borders of the lungs in place
    of the inner borders of the ribs, as Chamveha et al., arXiv 2002.07468, 2020.
    """
    if not (heart and right and left and heart.area and right.area and left.area):
        return None
    width = thorax_width(right, left)
    return heart.extent[1] / width if width else None


def thorax_width(right: Runs, left: Runs) -> int:
    """Return the largest distance of the outer borders of two lungs in one row, px; 0 if no row crosses both."""
    (right_first, right_end), (left_first, left_end) = _row_ends(right), _row_ends(left)
    crosses_both = (right_end > 0) & (left_end > 0)
    widths = np.maximum(right_end, left_end) - np.minimum(right_first, left_first)
    return int(widths[crosses_both].max(initial=0))


def find_mirrored(masks: Mapping[str, Runs]) -> list[str]:
    """Return the flag `heart_on_right` if the heart of upright masks lies on the patient's right of the midline.

    Right is the left side of an upright image, whatever the classes of the lungs say. The centroid of the heart must
    lie beyond the midline by more than 2 % of the width of both lungs. Where one lung is smaller than a fifth of the
    other, the midline is not known, and nothing is flagged.
    """
    lungs = [masks[name].area for name in LUNG_SIDES if name in masks]
    if len(lungs) < len(LUNG_SIDES) or is_one_side(*lungs):
        return []
    offset = heart_offset(masks)
    return ["heart_on_right"] if offset is not None and offset < -_MIRRORED else []


def heart_offset(masks: Mapping[str, Runs]) -> float | None:
    """Return how far right of the midline of the image the heart's centroid lies, in widths of both lungs.

    The midline is in the middle between the centroids of the lungs. None if heart or a lung is missing or empty.
    """
    heart, right, left = (masks.get(name) for name in (HEART, RIGHT_LUNG, LEFT_LUNG))
    if not (heart and right and left and heart.area and right.area and left.area):
        return None
    first = min(int(lung.columns[0]) for lung in (right, left))
    last = max(int(lung.columns[-1]) for lung in (right, left))
    midline = (_mean_column(right) + _mean_column(left)) / 2
    return (_mean_column(heart) - midline) / (last + 1 - first)


def _share_inside(part: Runs | None, lung: Runs | None) -> float | None:
    """Return the share of a lung that a mask covers, 0 for an empty mask; None without the masks or the lung."""
    if part is None or lung is None or not lung.area:
        return None
    return part.count_common(lung) / lung.area


def _mean_column(runs: Runs) -> float:
    return int((runs.lengths * runs.columns).sum()) / runs.area


def _row_ends(runs: Runs) -> tuple[I64, I64]:
    """Return the first column of each row, and the one behind the last, i64[H] each; 0 behind an empty row."""
    first, end = np.zeros((2, runs.shape[0]), np.int64)
    places = list(zip(runs.columns.tolist(), runs.starts.tolist(), runs.stops.tolist(), strict=True))
    for column, start, stop in places:  # a later column overwrites an earlier one
        end[start:stop] = column + 1
    for column, start, stop in reversed(places):
        first[start:stop] = column
    return first, end
