"""Statistics of per-image figures for a generalisation study: means, their intervals, and how two of them differ.

Images of one patient are alike, so whatever is said of uncertainty is said over patients: a bootstrap draws patients
with replacement, and all images of a patient come along as often as he is drawn. Means, sd and percentiles are over
images. Which values are undefined, as a distance to an empty mask, is for the caller to know: they must be left out,
and NaN, infinity, no values at all, or not as many patients as values raise ValueError. The order of the images does
not matter, in no bit.

Sources: Efron, Annals of Statistics 7(1), 1979 (the bootstrap); Davison & Hinkley, Bootstrap Methods and their
Application, 1997, ch. 3.8 (clusters) and 5.3 (percentile intervals, which are somewhat narrow for a few patients).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Values = Sequence[float] | F64

RESAMPLES = 2000
_TAILS = (2.5, 97.5)
_AT_A_TIME = 2**20  # patients drawn in one step: 24 MB, whatever the number of images
_LEAST_PATIENTS = 6  # of five, no signed-rank test comes below p = 0.0625, whatever they say
_DECIMALS = 12  # of a patient's mean difference: what is smaller is rounding, which unties ties and makes zeros differ


@dataclass(frozen=True)
class Summary:
    """A figure over images. sd: of the images, N - 1, None for one image. p5: 5th percentile, linearly interpolated.

    low, high: 95 % interval of the mean, None for fewer than two patients.
    """

    images: int
    patients: int
    mean: float
    sd: float | None
    median: float
    p5: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedDifference:
    """A figure of the same images in two runs. difference: mean over images of first - second.

    low, high: its 95 % interval, None for fewer than two patients. p: of the two-sided signed-rank test over patients;
    1 where no patient differs, None where one to five do.
    """

    images: int
    patients: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Gap:
    """What a figure loses from own to other images. gap: own mean - other mean; positive where other is lower.

    low, high: its 95 % interval, None where a side has fewer than two patients.
    """

    own: float
    other: float
    gap: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Clusters:
    """Values f64[N], sorted by patient and size, and each patient's sum f64[P] and number of images f64[P]."""

    values: F64
    sums: F64
    sizes: F64


def summarise(values: Values, patients: Sequence[str]) -> Summary:
    """Summarise a figure of N images, whose patients are named in the same order."""
    found = _cluster(values, patients)
    images, mean = found.values.size, _mean(found)
    low, high = _interval(_means_of_resamples(found))
    return Summary(
        images=images,
        patients=found.sums.size,
        mean=mean,
        sd=math.sqrt(math.fsum((found.values - mean) ** 2) / (images - 1)) if images > 1 else None,
        median=float(np.median(found.values)),
        p5=float(np.percentile(found.values, 5)),
        low=low,
        high=high,
    )


def compare(first: Values, second: Values, patients: Sequence[str]) -> PairedDifference:
    """Compare a figure of the same N images, in the same order, from two runs.

    The difference weighs images equally, as every mean here; the test weighs patients equally.
    """
    former, latter = _checked(first), _checked(second)
    if former.size != latter.size:
        raise ValueError(f"{former.size} values and {latter.size}: expected the same images in both")
    found = _cluster(former - latter, patients)
    low, high = _interval(_means_of_resamples(found))
    return PairedDifference(
        found.values.size, found.sums.size, _mean(found), low, high, _signed_rank(found.sums / found.sizes)
    )


def gap(own: Values, own_patients: Sequence[str], other: Values, other_patients: Sequence[str]) -> Gap:
    """Take the mean over a model's own images, as those held out from its data sets, minus that over other ones.

    The two sides are drawn independently: no patient is taken to be on both, whatever the names. For the same images in
    two runs use compare.
    """
    here, there = _cluster(own, own_patients), _cluster(other, other_patients)
    low, high = _interval(_means_of_resamples(here) - _means_of_resamples(there, stream=1))
    return Gap(_mean(here), _mean(there), _mean(here) - _mean(there), low, high)


def _checked(values: Values) -> F64:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"values f64{list(array.shape)}: expected one or more in a row, none of them NaN or infinite")
    return array


def _cluster(values: Values, patients: Sequence[str]) -> _Clusters:
    """Sum up by patient, in an order that is the same for any order of the images."""
    array = _checked(values)
    if array.size != len(patients):
        raise ValueError(f"{array.size} values and {len(patients)} patients: expected the patient of each image")
    places = {patient: place for place, patient in enumerate(sorted(set(patients)))}
    codes = np.fromiter((places[patient] for patient in patients), np.int64, array.size)
    ordered, sizes = array[np.lexsort((array, codes))], np.bincount(codes)
    return _Clusters(ordered, np.add.reduceat(ordered, np.cumsum(sizes) - sizes), sizes.astype(np.float64))


def _mean(found: _Clusters) -> float:
    """Mean over images; no rounding takes it past the values, so that equal ones have exactly their own mean."""
    return float(np.clip(math.fsum(found.values) / found.values.size, found.values.min(), found.values.max()))


def _means_of_resamples(found: _Clusters, stream: int = 0) -> F64:
    """Means over images f64[RESAMPLES] of as many patients as there are, drawn with replacement; NaN for one patient.

    A resample's mean is a ratio: the sum over its patients through the number of their images. Streams draw
    independently of each other, each the same at every call.
    """
    patients = found.sums.size
    if patients < 2:
        return np.full(RESAMPLES, np.nan)
    random = np.random.default_rng([0, stream])
    step = max(1, _AT_A_TIME // patients)
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(0, patients, (min(step, RESAMPLES - start), patients))
        means.append(found.sums[drawn].sum(axis=1) / found.sizes[drawn].sum(axis=1))
    clipped: F64 = np.clip(np.concatenate(means), found.values.min(), found.values.max())
    return clipped


def _interval(resampled: F64) -> tuple[float | None, float | None]:
    """Take the 95 % percentile interval of resampled f64[RESAMPLES]; None of NaN."""
    if np.isnan(resampled).any():
        return None, None
    low, high = np.percentile(resampled, _TAILS)
    return float(low), float(high)


def _signed_rank(differences: F64) -> float | None:
    """Take the two-sided p of Wilcoxon's signed-rank test over mean differences f64[P], one a patient.

    Patients without a difference are left out, as Wilcoxon did (SciPy's zero_method "wilcox"). The p of the others is
    exact for up to 50 without ties and for up to 13 with ties (all permutations); else it is the normal approximation.
    Source: Wilcoxon, Biometrics Bulletin 1(6), 1945.
    """
    from scipy import stats  # slow to load, and most that import this module do not need it

    rounded = np.round(differences, _DECIMALS)
    nonzero = rounded[rounded != 0]
    if not nonzero.size:
        return 1.0
    return float(stats.wilcoxon(nonzero).pvalue) if nonzero.size >= _LEAST_PATIENTS else None
