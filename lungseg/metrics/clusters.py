"""Values of images grouped by patient, their mean, and means of resampled patients.

Results do not depend on the order of the images, to the last bit.
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


@dataclass(frozen=True)
class Clusters:
    """Values f64[N], sorted by patient and value; sum f64[P] and number of images f64[P] of each patient."""

    values: F64
    sums: F64
    sizes: F64


def checked(values: Values) -> F64:
    """Convert to f64[N]; ValueError unless N is at least 1 and all values are finite."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"values f64{list(array.shape)}: expected one dimension, one value or more, no NaN or infinity"
        )
    return array


def cluster(values: Values, patients: Sequence[str]) -> Clusters:
    """Sum by patient, in an order independent of the order of the images."""
    array = checked(values)
    if array.size != len(patients):
        raise ValueError(f"{array.size} values and {len(patients)} patients: expected one patient per image")
    codes_by_patient = {patient: code for code, patient in enumerate(sorted(set(patients)))}
    codes = np.fromiter((codes_by_patient[patient] for patient in patients), np.int64, array.size)
    ordered, sizes = array[np.lexsort((array, codes))], np.bincount(codes)
    return Clusters(ordered, np.add.reduceat(ordered, np.cumsum(sizes) - sizes), sizes.astype(np.float64))


def mean_over_images(clusters: Clusters) -> float:
    """Mean over images, clipped to the range of the values, so that equal values have exactly their own mean."""
    return float(
        np.clip(math.fsum(clusters.values) / clusters.values.size, clusters.values.min(), clusters.values.max())
    )


def resampled_means(clusters: Clusters, stream: int = 0) -> F64:
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


def percentile_interval(resampled: F64) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval of resampled means f64[RESAMPLES]; None for NaN."""
    if np.isnan(resampled).any():
        return None, None
    low, high = np.percentile(resampled, _TAILS)
    return float(low), float(high)
