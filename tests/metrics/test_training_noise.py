"""Effects of trainings on a mean, their resampling, and intervals over patients and trainings."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg.metrics import bootstrap, training_noise
from lungseg.metrics.paired_tests import holm
from lungseg.metrics.training_noise import Measurements, fold_effects, seed_spread

F64 = NDArray[np.float64]


def measured(values: F64, fold: int = 0) -> Measurements:
    """Values f64[image, training] of one fold, one image per patient."""
    images, trainings = np.indices(values.shape)
    names = [str(image) for image in images.ravel()]
    folds = [fold] * len(names)
    return Measurements(values.ravel().tolist(), names, names, folds, trainings.ravel().tolist())


def joined(*parts: Measurements) -> Measurements:
    fields: Any = zip(
        *((part.values, part.images, part.patients, part.folds, part.seeds) for part in parts), strict=True
    )
    return Measurements(*([item for values in field for item in values] for field in fields))


def drawn(random: np.random.Generator, images: int, trainings: int, noise: float = 0.02, between: float = 0.01) -> F64:
    """Draw values of images by trainings."""
    patients = random.normal(0.9, 0.03, (images, 1))
    return patients + random.normal(0, between, trainings) + random.normal(0, noise, (images, trainings))


def summary(values: F64) -> bootstrap.Summary:
    names = [str(image) for image in range(len(values))]
    return bootstrap.summarise(values.mean(axis=1), names, list(fold_effects(measured(values)).values()))


def test_effects_are_the_deviations_of_the_means() -> None:
    values = drawn(np.random.default_rng(1), 30, 3)
    (fold,) = fold_effects(measured(values)).values()
    means = values.mean(axis=0)
    assert fold.effects == pytest.approx((means - means.mean()) / 3)
    assert fold.variance == pytest.approx(means.var(ddof=1) / 3)


def test_folds_share_the_mean_of_an_image() -> None:
    random = np.random.default_rng(2)
    first, second = drawn(random, 20, 3), drawn(random, 20, 2)
    folds = fold_effects(joined(measured(first), measured(second, fold=1)))
    for fold, values in zip(folds.values(), (first, second), strict=True):
        assert fold.effects == pytest.approx((values.mean(axis=0) - values.mean()) / 5)


def test_interaction_is_the_noise_of_single_images() -> None:
    random = np.random.default_rng(3)
    folds = [fold_effects(measured(drawn(random, 50, 3, between=0)))[0] for _ in range(200)]
    expected = 0.02**2 / (50 * 3)
    assert np.mean([fold.interaction for fold in folds]) == pytest.approx(expected, rel=0.05)
    assert np.mean([fold.variance for fold in folds]) == pytest.approx(expected, rel=0.2)


def test_resampled_trainings_vary_without_bias() -> None:
    values = np.tile([0.8, 0.9, 1.0], (40, 1))  # trainings differ alike on every image: no interaction
    folds = list(fold_effects(measured(values)).values())
    assert training_noise.training_share(folds) == pytest.approx(1.0)
    resampled = training_noise.resampled_effects(folds, 100_000)
    assert resampled.var() == pytest.approx(np.var([0.8, 0.9, 1.0], ddof=1) / 3, rel=0.02)


def test_order_of_rows_changes_no_bit() -> None:
    values = drawn(np.random.default_rng(4), 20, 3)
    rows = measured(values)
    order = np.random.default_rng(5).permutation(60)
    shuffled = Measurements(
        *([getattr(rows, name)[i] for i in order] for name in ("values", "images", "patients", "folds", "seeds"))
    )
    (fold,), (other,) = fold_effects(rows).values(), fold_effects(shuffled).values()
    assert (fold.effects == other.effects).all()
    assert fold.interaction == other.interaction


def test_undefined_value_of_one_training_adds_no_effect() -> None:
    rows = measured(np.tile(np.linspace(0.1, 0.9, 20)[:, None], (1, 3)))
    kept = [i for i in range(60) if i != 1]
    missing = Measurements(
        *([getattr(rows, name)[i] for i in kept] for name in ("values", "images", "patients", "folds", "seeds"))
    )
    (fold,) = fold_effects(missing).values()
    assert fold.effects == pytest.approx(0, abs=1e-15)


def test_interval_covers_the_mean_over_all_trainings() -> None:
    random, covered, naive = np.random.default_rng(6), 0, 0
    for _ in range(300):
        values = drawn(random, 60, 3)
        both = summary(values)
        patients = bootstrap.summarise(values.mean(axis=1), [str(i) for i in range(60)])
        assert both.low is not None
        assert both.high is not None
        assert patients.low is not None
        assert patients.high is not None
        covered += both.low <= 0.9 <= both.high
        naive += patients.low <= 0.9 <= patients.high
    assert covered / 300 > 0.92
    assert naive / 300 < 0.85


def test_interval_ends_at_the_limits_of_the_metric() -> None:
    values = np.array([[0.99, 1.0, 0.2], [1.0, 1.0, 0.3], [0.98, 0.99, 0.1]])
    names, effects = ["a", "b", "c"], list(fold_effects(measured(values)).values())
    free = bootstrap.summarise(values.mean(axis=1), names, effects)
    both = bootstrap.summarise(values.mean(axis=1), names, effects, (0.0, 1.0))
    assert free.low is not None
    assert free.high is not None
    assert free.low < 0  # trainings differ far more than the means of the images
    assert free.high > 1
    assert (both.low, both.high) == (0.0, 1.0)


def test_one_training_in_a_fold_leaves_trainings_out() -> None:
    values = drawn(np.random.default_rng(7), 20, 2)
    rows = joined(measured(values), measured(values[:, :1], fold=1))
    names = [str(i) for i in range(20)]
    result = bootstrap.summarise(values[:, 0], names, list(fold_effects(rows).values()))
    assert result == bootstrap.summarise(values[:, 0], names)
    assert result.basis == "patients"


def _paired(first: F64, second: F64) -> bootstrap.PairedDifference:
    effects = [*fold_effects(measured(first)).values(), *fold_effects(measured(second)).values()]
    names = [str(i) for i in range(len(first))]
    return bootstrap.compare(first.mean(axis=1), second.mean(axis=1), names, effects)


def test_p_is_below_5_percent_where_the_interval_excludes_0() -> None:
    random = np.random.default_rng(8)
    for shift in np.linspace(0, 0.06, 40):
        paired = _paired(drawn(random, 30, 3), drawn(random, 30, 3) + shift)
        assert paired.basis == "patients and trainings"
        assert not paired.disagrees
        assert paired.p is not None


def test_equal_trainings_rarely_differ() -> None:
    random = np.random.default_rng(9)
    pairs = []
    for _ in range(200):
        patients = random.normal(0.9, 0.03, (100, 1))
        sides = [patients + random.normal(0, 0.01, 3) + random.normal(0, 0.02, (100, 3)) for _ in range(2)]
        names = [str(i) for i in range(100)]
        pairs.append((_paired(*sides).p, bootstrap.compare(sides[0].mean(1), sides[1].mean(1), names).p))
    both, patients_only = (np.mean([p < 0.05 for p in column]) for column in zip(*pairs, strict=True))
    assert both <= 0.10
    assert patients_only > 0.4


def test_identical_sides_have_p_1() -> None:
    values = drawn(np.random.default_rng(10), 20, 3)
    paired = _paired(values, values)
    assert (paired.difference, paired.p) == (0.0, 1.0)


def test_no_p_under_six_patients_says_why() -> None:
    values = drawn(np.random.default_rng(11), 5, 3)
    paired = _paired(values, values + 0.1)
    assert (paired.p, paired.no_p) == (None, "5 patients, a test needs 6")
    few = bootstrap.compare([0.9] * 8, [0.8] * 3 + [0.9] * 5, [str(i) for i in range(8)])
    assert (few.p, few.no_p) == (None, "3 of 8 patients differ, a test needs 6")


def test_gap_effects_are_shared_by_both_sides() -> None:
    trainings = np.array([0.0, 0.1, -0.1])
    own, other = np.full((20, 1), 0.9) + trainings, np.full((30, 1), 0.7) + trainings
    effects = [fold_effects(measured(side)) for side in (own, other)]
    together = training_noise.subtract(*effects)
    assert together[0].effects == pytest.approx(0, abs=1e-12)  # a better training is better on both sides
    assert together[0].interaction == effects[0][0].interaction + effects[1][0].interaction


def test_change_of_gaps_needs_no_ranks() -> None:
    random = np.random.default_rng(12)
    own, cross = random.normal(0.0, 0.01, 40), random.normal(-0.03, 0.01, 50)
    names = [str(i) for i in range(50)]
    change = bootstrap.compare_gaps(own, names[:40], cross, names)
    assert change.difference == pytest.approx(0.03, abs=0.01)
    assert change.p is not None
    assert change.p < 1e-6
    assert (change.images, change.patients, change.basis) == (90, 90, "patients")


def test_disagreement_of_interval_and_ranks_is_seen() -> None:
    differences = [0.001] * 30 + [-0.9]  # ranks see 30 of 31 patients better, the mean does not
    paired = bootstrap.compare(differences, [0.0] * 31, [str(i) for i in range(31)])
    assert paired.p is not None
    assert paired.p < 0.05
    assert paired.low is not None
    assert paired.low < 0
    assert paired.disagrees


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.04, None, 0.01], [0.04, None, 0.02]),
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.9, 0.5, 0.6], [1.0, 1.0, 1.0]),
        ([None, None], [None, None]),
    ],
)
def test_holm_multiplies_the_smallest_p_most(p_values: list[float | None], expected: list[float | None]) -> None:
    assert holm(p_values) == [value if value is None else pytest.approx(value) for value in expected]


def test_spread_needs_two_seeds() -> None:
    assert seed_spread([0.9]) is None
    spread = seed_spread([0.9, 0.8, 0.85])
    assert spread is not None
    assert (spread.seeds, spread.min, spread.max) == (3, 0.8, 0.9)
    assert spread.sd == pytest.approx(math.sqrt(0.0025))
