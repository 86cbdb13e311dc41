"""How well the area of a predicted mask tells images that show a class from images that do not.

Intervals are 95 % percentile intervals of a bootstrap over patients, each drawn with all images. Resamples without an
image of one kind are left out. Sources: Hanley & McNeil, Radiology 143(1), 1982 (the area under the ROC curve as the
share of pairs in the right order, ties count half); for the bootstrap see `bootstrap`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lungseg.metrics.clusters import F64, RESAMPLES, checked, percentile_interval

_VALUES_PER_STEP = 2**22  # weights of images in memory at once, 32 MB
_MIN_PATIENTS = 2  # of each kind


@dataclass(frozen=True)
class Estimate:
    """A share in [0,1] and its 95 % interval; the interval is None if it cannot be estimated."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Detection:
    """Detection of a class. present, absent: images that show it and that do not.

    sensitivity: share of the images that show it which are detected. specificity: share of the others that are not.
    auroc: share of the pairs of an image with and one without the class in which the first has the higher score.
    """

    present: int
    absent: int
    sensitivity: Estimate
    specificity: Estimate
    auroc: Estimate


def detect(scores: Sequence[float], is_present: Sequence[bool], patients: Sequence[str], least: float) -> Detection:
    """Compute the detection of a class by a score of at least `least`; the order of the images does not matter.

    Raises:
        ValueError: no image shows the class, or all do; a score is not finite; or the lengths differ.

    """
    values, present = checked(scores), np.asarray(is_present, bool)
    if not values.size == present.size == len(patients):
        raise ValueError(
            f"{values.size} scores, {present.size} labels and {len(patients)} patients: expected equally many"
        )
    if present.all() or not present.any():
        raise ValueError(f"{int(present.sum())} of {present.size} images show the class: expected some, but not all")
    names = np.asarray(patients)
    order = np.lexsort((present, names, values))
    values, present = values[order], present[order]
    codes = np.unique(names[order], return_inverse=True)[1]
    measured = _measure(values, present, np.ones((1, values.size)), least)[:, 0]
    if min(np.unique(codes[present]).size, np.unique(codes[~present]).size) < _MIN_PATIENTS:
        intervals: list[tuple[float | None, float | None]] = [(None, None)] * 3
    else:
        resampled = _resample(values, present, codes, least)
        intervals = [percentile_interval(row[np.isfinite(row)]) for row in resampled]
    estimates = [Estimate(float(value), *interval) for value, interval in zip(measured, intervals, strict=True)]
    return Detection(int(present.sum()), int((~present).sum()), *estimates)


def _resample(values: F64, present: NDArray[np.bool_], codes: NDArray[np.int64], least: float) -> F64:
    """Return the three measures of resampled patients, f64[3,RESAMPLES]; NaN where a kind of image is missing."""
    random = np.random.default_rng([0, 0])
    count = int(codes.max()) + 1
    step = max(1, _VALUES_PER_STEP // values.size)
    measured = []
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(0, count, (min(step, RESAMPLES - start), count))
        times = np.stack([np.bincount(row, minlength=count) for row in drawn])
        measured.append(_measure(values, present, times[:, codes].astype(np.float64), least))
    return np.concatenate(measured, axis=1)


def _measure(values: F64, present: NDArray[np.bool_], weights: F64, least: float) -> F64:
    """Return sensitivity, specificity and AUROC f64[3,R] of images with weights f64[R,N]; values f64[N] ascend."""
    of_present, of_absent = weights * present, weights * ~present
    sums = of_present.sum(axis=1), of_absent.sum(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))  # of equal values
    level_present, level_absent = (np.add.reduceat(part, starts, axis=1) for part in (of_present, of_absent))
    below = np.cumsum(level_absent, axis=1) - level_absent
    pairs = (level_present * (below + level_absent / 2)).sum(axis=1)
    reached = values >= least
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [
                of_present[:, reached].sum(axis=1) / sums[0],
                of_absent[:, ~reached].sum(axis=1) / sums[1],
                pairs / (sums[0] * sums[1]),
            ]
        )
