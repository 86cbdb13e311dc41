"""Means of per-image metrics, their confidence intervals, and paired and unpaired differences.

Over patients: with one training behind a number, intervals and tests are over patients, not over trainings.
Over patients and trainings: with several trainings of every fold (`training_noise`), a hierarchical bootstrap draws
patients and, independently of them, trainings within each fold. Its standard deviation s gives the interval
mean +- t(0.975) s, and the same t test gives p, so p < 0.05 exactly where the interval excludes 0. The degrees of
freedom follow Satterthwaite, because few trainings know their variance poorly. `tests/benchmark_null.py` shows that
equal trainings then differ with p < 0.05 in about 5 % of comparisons.

Images of one patient are correlated, so intervals and tests are over patients: the bootstrap draws patients with
replacement, each with all of their images. Means, sd and percentiles are over images. The caller leaves out undefined
values, such as a distance to an empty mask: NaN, infinity, an empty list, or unequal numbers of values and patients
raise ValueError. Results do not depend on the order of the images, to the last bit.

Sources: Efron, Annals of Statistics 7(1), 1979 (the bootstrap); Davison & Hinkley, Bootstrap Methods and their
Application, 1997, ch. 3.8 (clusters) and 5.3 (percentile intervals, which are somewhat narrow for a few patients);
Satterthwaite, Biometrics Bulletin 2(6), 1946 (degrees of freedom); for the trainings see `training_noise`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lungseg.metrics import training_noise
from lungseg.metrics.clusters import (
    Clusters,
    Values,
    checked,
    cluster,
    mean_over_images,
    percentile_interval,
    resampled_means,
)
from lungseg.metrics.paired_tests import MIN_PATIENTS, signed_rank
from lungseg.metrics.standard_error import LEVEL, standard_error
from lungseg.metrics.training_noise import FoldEffects

Basis = Literal["patients", "patients and trainings"]
"""What an interval or a p accounts for."""


@dataclass(frozen=True)
class Summary:
    """A metric over images. sd: over images, N - 1, None for one image. p5: 5th percentile, linearly interpolated.

    low, high: 95 % interval of the mean, None for fewer than two patients. basis: what it accounts for.
    """

    images: int
    patients: int
    mean: float
    sd: float | None
    median: float
    p5: float
    low: float | None
    high: float | None
    basis: Basis = "patients"


@dataclass(frozen=True)
class PairedDifference:
    """A metric of the same images in two runs. difference: mean over images of first - second.

    low, high: its 95 % interval, None for fewer than two patients. p: two-sided, a signed-rank test over patients, or a
    t test over patients and trainings; 1 if no patient differs. no_p: why there is no p. p_holm: p after Holm's
    correction over the rows of a table, set by the caller.
    """

    images: int
    patients: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    basis: Basis = "patients"
    no_p: str = ""
    p_holm: float | None = None

    @property
    def disagrees(self) -> bool:
        """Whether only one of interval and p speaks for a difference."""
        if self.low is None or self.high is None or self.p is None:
            return False
        return (self.low > 0 or self.high < 0) != (self.p < LEVEL)


@dataclass(frozen=True)
class Gap:
    """Difference of a metric between own and other images. gap: own mean - other mean; positive if other is lower.

    low, high: its 95 % interval, None if a side has fewer than two patients. basis: what it accounts for.
    """

    own: float
    other: float
    gap: float
    low: float | None
    high: float | None
    basis: Basis = "patients"


def summarise(
    values: Values,
    patients: Sequence[str],
    trainings: Sequence[FoldEffects] = (),
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Summary:
    """Summarise a metric of N images; patients are in the same order.

    trainings: effects on the mean, where every fold was trained several times. limits: range of the metric; an interval
    over trainings ends there.
    """
    clusters = cluster(values, patients)
    images, mean = clusters.values.size, mean_over_images(clusters)
    if training_noise.all_repeated(trainings):
        low, high = standard_error([clusters], trainings).interval(mean, limits)
    else:
        low, high = percentile_interval(resampled_means(clusters))
    return Summary(
        images=images,
        patients=clusters.sums.size,
        mean=mean,
        sd=math.sqrt(math.fsum((clusters.values - mean) ** 2) / (images - 1)) if images > 1 else None,
        median=float(np.median(clusters.values)),
        p5=float(np.percentile(clusters.values, 5)),
        low=low,
        high=high,
        basis=_basis(trainings),
    )


def compare(
    first: Values, second: Values, patients: Sequence[str], trainings: Sequence[FoldEffects] = ()
) -> PairedDifference:
    """Compare a metric of the same N images, in the same order, from two runs.

    trainings: effects of the trainings of both sides on the mean, where every fold was trained several times on both.
    The difference weights images equally, as all means here; the signed-rank test weights patients equally.
    """
    first_values, second_values = checked(first), checked(second)
    if first_values.size != second_values.size:
        raise ValueError(f"{first_values.size} and {second_values.size} values: expected the same images in both")
    clusters = cluster(first_values - second_values, patients)
    difference = mean_over_images(clusters)
    if training_noise.all_repeated(trainings):
        return _tested(difference, [clusters], trainings)
    low, high = percentile_interval(resampled_means(clusters))
    p, no_p = signed_rank(clusters.sums / clusters.sizes)
    return PairedDifference(clusters.values.size, clusters.sums.size, difference, low, high, p, no_p=no_p)


def gap(
    own: Values,
    own_patients: Sequence[str],
    other: Values,
    other_patients: Sequence[str],
    trainings: Sequence[FoldEffects] = (),
) -> Gap:
    """Compute the mean over own images (held out from the training datasets) minus the mean over other images.

    trainings: effects on the gap, where every fold was trained several times. The two sides are drawn independently:
    equal patient names on both sides count as different patients. Use compare for the same images in two runs.
    """
    own_clusters, other_clusters = cluster(own, own_patients), cluster(other, other_patients)
    own_mean, other_mean = mean_over_images(own_clusters), mean_over_images(other_clusters)
    if training_noise.all_repeated(trainings):
        low, high = standard_error([own_clusters, other_clusters], trainings).interval(own_mean - other_mean)
    else:
        low, high = percentile_interval(resampled_means(own_clusters) - resampled_means(other_clusters, stream=1))
    return Gap(own_mean, other_mean, own_mean - other_mean, low, high, _basis(trainings))


def compare_gaps(
    own: Values,
    own_patients: Sequence[str],
    other: Values,
    other_patients: Sequence[str],
    trainings: Sequence[FoldEffects] = (),
) -> PairedDifference:
    """Compare two gaps: own and other are differences first - second of a metric of the same images.

    Interval and p are from the t distribution, also over patients only: ranks do not compare two groups of differences
    by their means.
    """
    clusters = [cluster(own, own_patients), cluster(other, other_patients)]
    repeated = trainings if training_noise.all_repeated(trainings) else ()
    return _tested(mean_over_images(clusters[0]) - mean_over_images(clusters[1]), clusters, repeated)


def _tested(difference: float, groups: Sequence[Clusters], trainings: Sequence[FoldEffects]) -> PairedDifference:
    """Return the t interval and p of a difference; no p where a group has under six patients."""
    images, patients = (sum(getattr(group, name).size for group in groups) for name in ("values", "sums"))
    error = standard_error(groups, trainings)
    low, high = error.interval(difference)
    fewest = min(group.sums.size for group in groups)
    p = error.p(difference) if fewest >= MIN_PATIENTS else None
    no_p = "" if p is not None else f"{fewest} patients, a test needs {MIN_PATIENTS}"
    return PairedDifference(images, patients, difference, low, high, p, _basis(trainings), no_p)


def _basis(trainings: Sequence[FoldEffects]) -> Basis:
    return "patients and trainings" if training_noise.all_repeated(trainings) else "patients"
