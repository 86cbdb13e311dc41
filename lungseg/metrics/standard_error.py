"""Standard error of a mean or a difference over patients and trainings, with its interval and test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungseg.metrics import training_noise
from lungseg.metrics.clusters import RESAMPLES, Clusters, mean_over_images, resampled_means
from lungseg.metrics.paired_tests import DECIMALS
from lungseg.metrics.training_noise import FoldEffects

LEVEL = 0.05
"""1 - LEVEL is the confidence of intervals; p below LEVEL is called significant."""


@dataclass(frozen=True)
class StandardError:
    """Standard deviation of a resampled mean or difference, NaN for one patient, and its degrees of freedom."""

    value: float
    dof: float

    def interval(
        self, mean: float, limits: tuple[float, float] = (-math.inf, math.inf)
    ) -> tuple[float | None, float | None]:
        """Return the 95 % t interval, inside the limits; None for NaN."""
        from scipy import stats  # slow import, not needed by most users of this module

        if math.isnan(self.value):
            return None, None
        half = float(stats.t.ppf(1 - LEVEL / 2, self.dof)) * self.value if self.value else 0.0
        return max(mean - half, limits[0]), min(mean + half, limits[1])

    def p(self, difference: float) -> float:
        """Return the two-sided p of a difference."""
        from scipy import stats

        if not round(difference, DECIMALS):
            return 1.0
        return float(2 * stats.t.sf(abs(difference) / self.value, self.dof)) if round(self.value, DECIMALS) else 0.0


def standard_error(groups: Sequence[Clusters], trainings: Sequence[FoldEffects]) -> StandardError:
    """Resample the patients of each group and the trainings, independently.

    n of n patients vary by (n - 1) / n too little, which is corrected. Degrees of freedom: Satterthwaite.
    """
    resampled, terms = np.zeros(RESAMPLES), 0.0
    for stream, clusters in enumerate(groups):
        patients = clusters.sums.size
        if patients < 2:
            return StandardError(math.nan, math.nan)
        moved = math.sqrt(patients / (patients - 1)) * (resampled_means(clusters, stream) - mean_over_images(clusters))
        resampled += moved
        terms += float(moved.var()) ** 2 / (patients - 1)
    if trainings:
        resampled += training_noise.resampled_effects(trainings, RESAMPLES)
        terms += training_noise.satterthwaite_terms(trainings)
    variance = float(resampled.var())
    return StandardError(math.sqrt(variance), variance**2 / terms if terms else math.inf)
