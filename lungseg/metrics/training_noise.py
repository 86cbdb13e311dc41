"""Estimate how much a mean over images varies between trainings, from several trainings (seeds) of each fold.

Images, grouped by patient, are crossed with trainings: each image is tested by every training of a fold. The effect of
a training is how far it moves the mean. Effects vary because trainings differ, and because each image reacts in its own
way to each training (interaction). The bootstrap over patients contains the interaction already, so its share,
estimated from the variation between patients within a training, is removed from the effects. Counted twice or three
times, as in a plain bootstrap of crossed data, it would hide real differences.

Folds are fixed: the effects of a fold are compared within the fold only, and are independent of other folds, because
each fold draws its own random numbers (`training.run`).

Sources: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007 (crossed data; the interaction counts
up to three times); Cameron, Gelbach & Miller, Journal of Business & Economic Statistics 29(2), 2011 (variance of one
side plus variance of the other minus their intersection); Rao & Wu, JASA 83(401), 1988 (drawing n - 1 of n).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_STREAM = 2  # of random numbers; the bootstrap over patients uses 0 and 1


@dataclass(frozen=True)
class Measurements:
    """A metric of images by several trainings, one row for each image and training that define it."""

    values: Sequence[float]
    images: Sequence[str]
    patients: Sequence[str]
    folds: Sequence[int]
    seeds: Sequence[int]


@dataclass(frozen=True)
class FoldEffects:
    """Effects f64[S] of the trainings of a fold on a mean over images; their sum is 0.

    interaction: variance of the mean that the interaction of trainings with P patients adds. dof: of that variance.
    """

    seeds: tuple[int, ...]
    effects: F64
    interaction: float
    dof: int

    @property
    def variance(self) -> float:
        """Variance of the mean due to the fold's trainings, interaction included."""
        trainings = self.effects.size
        return float(trainings / (trainings - 1) * (self.effects**2).sum())


@dataclass(frozen=True)
class SeedSpread:
    """Smallest, largest and standard deviation (N - 1) of a mean that each of several seeds gives."""

    seeds: int
    min: float
    max: float
    sd: float


def seed_spread(means: Sequence[float]) -> SeedSpread | None:
    """Describe the means of several seeds; None for fewer than two."""
    if len(means) < 2:
        return None
    return SeedSpread(len(means), min(means), max(means), float(np.std(means, ddof=1)))


def fold_effects(measured: Measurements) -> dict[int, FoldEffects]:
    """Return the effects of the trainings by fold. The mean is over images, each with its mean over its rows."""
    values = np.asarray(measured.values, np.float64)
    images, patients = (np.unique(names, return_inverse=True)[1] for names in (measured.images, measured.patients))
    weights = 1 / ((images.max() + 1) * np.bincount(images))
    folds, seeds = np.asarray(measured.folds), np.asarray(measured.seeds)
    order = np.lexsort((seeds, images))  # so that the order of the rows changes no bit
    rows = {fold: order[folds[order] == fold] for fold in np.unique(folds).tolist()}
    return {fold: _effects(values[i], weights[images[i]], images[i], patients[i], seeds[i]) for fold, i in rows.items()}


def _effects(values: F64, weights: F64, images: I64, patients: I64, seeds: I64) -> FoldEffects:
    """Sum what each training adds to the mean of each image, and split it between patients."""
    names, trainings = np.unique(seeds, return_inverse=True)
    _, patients = np.unique(patients, return_inverse=True)
    rows_of_image = np.maximum(np.bincount(images), 1)
    deviations = weights * (values - (np.bincount(images, values) / rows_of_image)[images])
    by_patient = np.zeros((names.size, patients.max() + 1))
    np.add.at(by_patient, (trainings, patients), deviations)
    effects = by_patient.sum(axis=1)
    shares = np.bincount(patients, weights) / weights.sum()
    residuals = by_patient - effects[:, None] * shares
    n, clusters = names.size, shares.size
    dof = (n - 1) * (clusters - 1)
    interaction = float((residuals**2).sum()) * n * clusters / dof if dof else 0.0
    return FoldEffects(tuple(names.tolist()), effects, interaction, dof)


def subtract(own: Mapping[int, FoldEffects], other: Mapping[int, FoldEffects]) -> list[FoldEffects]:
    """Return the effects on the difference of two means over different images, tested by the same trainings."""
    return [_subtract(own.get(fold), other.get(fold)) for fold in sorted({*own, *other})]


def _subtract(own: FoldEffects | None, other: FoldEffects | None) -> FoldEffects:
    if own is None or other is None:
        effects = own or other
        assert effects is not None, "the fold is in one of them"
        return effects
    seeds = tuple(sorted({*own.seeds, *other.seeds}))
    first, second = (
        np.array([dict(zip(side.seeds, side.effects, strict=True)).get(seed, 0.0) for seed in seeds])
        for side in (own, other)
    )
    return FoldEffects(seeds, first - second, own.interaction + other.interaction, own.dof + other.dof)


def all_repeated(folds: Sequence[FoldEffects]) -> bool:
    """Return whether every fold has several trainings."""
    return bool(folds) and all(len(fold.seeds) > 1 for fold in folds)


def training_share(folds: Sequence[FoldEffects]) -> float:
    """Return the share of the effects' variance that is not interaction with patients, 0..1."""
    total = sum(fold.variance for fold in folds)
    return max(0.0, 1 - sum(fold.interaction for fold in folds) / total) if total else 0.0


def resampled_effects(folds: Sequence[FoldEffects], resamples: int) -> F64:
    """Return how far resampled trainings move the mean, f64[resamples], with the interaction removed.

    Each resample draws n - 1 of the n trainings of each fold with replacement, which makes its variance unbiased.
    """
    random, total = np.random.default_rng([0, _STREAM]), np.zeros(resamples)
    for fold in folds:
        n = fold.effects.size
        total += n * fold.effects[random.integers(0, n, (resamples, n - 1))].mean(axis=1)
    moved: F64 = total * np.sqrt(training_share(folds))
    return moved


def satterthwaite_terms(folds: Sequence[FoldEffects]) -> float:
    """Return the sum of variance^2 / degrees of freedom of the trainings and the interaction.

    The trainings of all folds are taken as equally variable: their degrees of freedom add up.
    """
    if not training_share(folds):
        return 0.0
    trainings = sum(len(fold.seeds) - 1 for fold in folds)
    total = sum(fold.variance for fold in folds)
    return float(total**2 / trainings + sum(fold.interaction**2 / fold.dof for fold in folds if fold.dof))
