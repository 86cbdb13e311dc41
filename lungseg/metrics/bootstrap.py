"""Means of per-image metrics, their confidence intervals, and paired and unpaired differences.

Images of one patient are correlated, so intervals and tests are over patients: the bootstrap draws patients with
replacement, each with all of their images. Means, sd and percentiles are over images. The caller leaves out undefined
values, such as a distance to an empty mask: NaN, infinity, an empty list, or unequal numbers of values and patients
raise ValueError. Results do not depend on the order of the images, to the last bit.

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
_DRAWS_PER_STEP = 2**20  # patients drawn at once: 24 MB for any number of images
_MIN_PATIENTS = 6  # with five, the smallest possible p of a signed-rank test is 0.0625
_DECIMALS = 12  # of the mean difference of a patient: rounding errors below would break ties and zeros


@dataclass(frozen=True)
class Summary:
    """A metric over images. sd: over images, N - 1, None for one image. p5: 5th percentile, linearly interpolated.

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
    """A metric of the same images in two runs. difference: mean over images of first - second.

    low, high: its 95 % interval, None for fewer than two patients. p: two-sided signed-rank test over patients; 1 if no
    patient differs, None if one to five differ.
    """

    images: int
    patients: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Gap:
    """Difference of a metric between own and other images. gap: own mean - other mean; positive if other is lower.

    low, high: its 95 % interval, None if a side has fewer than two patients.
    """

    own: float
    other: float
    gap: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Clusters:
    """Values f64[N], sorted by patient and value; sum f64[P] and number of images f64[P] of each patient."""

    values: F64
    sums: F64
    sizes: F64


def summarise(values: Values, patients: Sequence[str]) -> Summary:
    """Summarise a metric of N images; patients are in the same order."""
    clusters = _cluster(values, patients)
    images, mean = clusters.values.size, _mean(clusters)
    low, high = _interval(_resampled_means(clusters))
    return Summary(
        images=images,
        patients=clusters.sums.size,
        mean=mean,
        sd=math.sqrt(math.fsum((clusters.values - mean) ** 2) / (images - 1)) if images > 1 else None,
        median=float(np.median(clusters.values)),
        p5=float(np.percentile(clusters.values, 5)),
        low=low,
        high=high,
    )


def compare(first: Values, second: Values, patients: Sequence[str]) -> PairedDifference:
    """Compare a metric of the same N images, in the same order, from two runs.

    The difference weights images equally, as all means here; the test weights patients equally.
    """
    first_values, second_values = _checked(first), _checked(second)
    if first_values.size != second_values.size:
        raise ValueError(f"{first_values.size} and {second_values.size} values: expected the same images in both")
    clusters = _cluster(first_values - second_values, patients)
    low, high = _interval(_resampled_means(clusters))
    return PairedDifference(
        clusters.values.size,
        clusters.sums.size,
        _mean(clusters),
        low,
        high,
        _signed_rank(clusters.sums / clusters.sizes),
    )


def gap(own: Values, own_patients: Sequence[str], other: Values, other_patients: Sequence[str]) -> Gap:
    """Compute the mean over own images (held out from the training datasets) minus the mean over other images.

    The two sides are drawn independently: equal patient names on both sides count as different patients. Use compare
    for the same images in two runs.
    """
    own_clusters, other_clusters = _cluster(own, own_patients), _cluster(other, other_patients)
    low, high = _interval(_resampled_means(own_clusters) - _resampled_means(other_clusters, stream=1))
    own_mean, other_mean = _mean(own_clusters), _mean(other_clusters)
    return Gap(own_mean, other_mean, own_mean - other_mean, low, high)


def _checked(values: Values) -> F64:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"values f64{list(array.shape)}: expected one dimension, one value or more, no NaN or infinity"
        )
    return array


def _cluster(values: Values, patients: Sequence[str]) -> _Clusters:
    """Sum by patient, in an order independent of the order of the images."""
    array = _checked(values)
    if array.size != len(patients):
        raise ValueError(f"{array.size} values and {len(patients)} patients: expected one patient per image")
    codes_by_patient = {patient: code for code, patient in enumerate(sorted(set(patients)))}
    codes = np.fromiter((codes_by_patient[patient] for patient in patients), np.int64, array.size)
    ordered, sizes = array[np.lexsort((array, codes))], np.bincount(codes)
    return _Clusters(ordered, np.add.reduceat(ordered, np.cumsum(sizes) - sizes), sizes.astype(np.float64))


def _mean(clusters: _Clusters) -> float:
    """Mean over images, clipped to the range of the values, so that equal values have exactly their own mean."""
    return float(
        np.clip(math.fsum(clusters.values) / clusters.values.size, clusters.values.min(), clusters.values.max())
    )


def _resampled_means(clusters: _Clusters, stream: int = 0) -> F64:
    """Means over images f64[RESAMPLES] of resampled patients; NaN for one patient.

    Each resample draws as many patients as there are, with replacement. Its mean is the sum over the patients divided
    by the number of their images. Streams draw independently of each other; each repeats itself at every call.
    """
    patients = clusters.sums.size
    if patients < 2:
        return np.full(RESAMPLES, np.nan)
    random = np.random.default_rng([0, stream])
    step = max(1, _DRAWS_PER_STEP // patients)
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(0, patients, (min(step, RESAMPLES - start), patients))
        means.append(clusters.sums[drawn].sum(axis=1) / clusters.sizes[drawn].sum(axis=1))
    clipped: F64 = np.clip(np.concatenate(means), clusters.values.min(), clusters.values.max())
    return clipped


def _interval(resampled: F64) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval of resampled means f64[RESAMPLES]; None for NaN."""
    if np.isnan(resampled).any():
        return None, None
    low, high = np.percentile(resampled, _TAILS)
    return float(low), float(high)


def _signed_rank(differences: F64) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test over mean differences f64[P], one per patient.

    Patients without a difference are left out, as in Wilcoxon (SciPy's zero_method "wilcox"). p is exact for up to 50
    patients without ties and up to 13 with ties (all permutations), else a normal approximation.
    Source: Wilcoxon, Biometrics Bulletin 1(6), 1945.
    """
    from scipy import stats  # slow import, not needed by most users of this module

    rounded = np.round(differences, _DECIMALS)
    nonzero = rounded[rounded != 0]
    if not nonzero.size:
        return 1.0
    return float(stats.wilcoxon(nonzero).pvalue) if nonzero.size >= _MIN_PATIENTS else None
