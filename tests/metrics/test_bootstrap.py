"""Intervals and tests over patients, compared with SciPy, simulation and naive resampling."""

import math
import time
import tracemalloc
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from scipy import stats

from lungseg.metrics import bootstrap

F64 = NDArray[np.float64]
no_deadline = settings(deadline=None, max_examples=40)  # the machine may be busy; each example draws 2000 resamples

some_values = st.floats(-100, 100, allow_subnormal=False)


@st.composite
def studies(draw: st.DrawFn, least: int = 1) -> tuple[list[float], list[str]]:
    """Values of images of a few patients."""
    pairs = st.tuples(some_values, st.sampled_from("abcdefgh"))
    rows = draw(st.lists(pairs, min_size=least, max_size=30))
    return [value for value, _ in rows], [patient for _, patient in rows]


def simulate(random: np.random.Generator, patients: int, mean: float = 0.9) -> tuple[F64, list[str]]:
    """Draw values of one to four images per patient; values vary more between patients than within a patient."""
    sizes = random.integers(1, 5, patients)
    names = np.repeat(np.arange(patients), sizes)
    values = mean + random.normal(0, 0.03, patients)[names] + random.normal(0, 0.01, names.size)
    return values, [str(name) for name in names]


@no_deadline
@given(studies())
def test_summary_matches_numpy(study: tuple[list[float], list[str]]) -> None:
    values, patients = study
    summary = bootstrap.summarise(values, patients)
    assert (summary.images, summary.patients) == (len(values), len(set(patients)))
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert summary.median == pytest.approx(np.median(values), abs=1e-9)
    assert summary.p5 == pytest.approx(np.percentile(values, 5), abs=1e-9)
    assert summary.sd == (pytest.approx(np.std(values, ddof=1), abs=1e-9) if len(values) > 1 else None)
    assert ((summary.low is None) and (summary.high is None)) == (summary.patients < 2)


@no_deadline
@given(studies(), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(study: tuple[list[float], list[str]], random: Any) -> None:
    values, patients = study
    order = list(range(len(values)))
    random.shuffle(order)
    reordered, reordered_patients = [values[i] for i in order], [patients[i] for i in order]
    assert bootstrap.summarise(values, patients) == bootstrap.summarise(reordered, reordered_patients)
    zeros, half = np.zeros(len(values)), len(values) // 2
    assert bootstrap.compare(values, zeros, patients) == bootstrap.compare(reordered, zeros, reordered_patients)
    if half:
        first, second = sorted(order[:half]), sorted(order[half:])
        ordered = [values[i] for i in first], [patients[i] for i in first]
        shuffled = [values[i] for i in order[:half]], [patients[i] for i in order[:half]]
        rest = [values[i] for i in second], [patients[i] for i in second]
        assert bootstrap.gap(*ordered, *rest) == bootstrap.gap(*shuffled, *rest)


def test_rounding_does_not_depend_on_the_order() -> None:
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    summaries = {bootstrap.summarise([*values, 0.9], ["a", "a", "a", "b"]) for values in permutations((0.1, 0.2, 0.3))}
    assert len(summaries) == 1


@no_deadline
@given(studies())
def test_interval_is_within_the_values(study: tuple[list[float], list[str]]) -> None:
    summary = bootstrap.summarise(*study)
    assert min(study[0]) <= summary.mean <= max(study[0])
    if summary.low is not None and summary.high is not None:
        assert min(study[0]) <= summary.low <= summary.high <= max(study[0])


@no_deadline
@given(st.integers(10, 60), st.integers(0, 2**32 - 1))
def test_interval_contains_the_mean(patients: int, seed: int) -> None:
    summary = bootstrap.summarise(*simulate(np.random.default_rng(seed), patients))
    assert summary.low is not None
    assert summary.high is not None
    assert summary.low < summary.mean < summary.high


@no_deadline
@given(some_values, st.lists(st.sampled_from("abc"), min_size=1, max_size=50))
def test_equal_values_have_a_zero_width_interval(value: float, patients: list[str]) -> None:
    summary = bootstrap.summarise([value] * len(patients), patients)
    ends = (value, value) if len(set(patients)) > 1 else (None, None)
    assert (summary.mean, summary.median, summary.p5, summary.low, summary.high) == (value, value, value, *ends)
    assert summary.sd == (0.0 if len(patients) > 1 else None)
    paired = bootstrap.compare([value] * len(patients), [value] * len(patients), patients)
    ends = (0.0, 0.0) if len(set(patients)) > 1 else (None, None)
    assert (paired.difference, paired.low, paired.high, paired.p) == (0.0, *ends, 1.0)


def test_mean_of_equal_values_is_exact() -> None:
    assert math.fsum([0.05] * 3) / 3 != 0.05
    summary = bootstrap.summarise([0.05] * 3, ["a", "b", "b"])
    assert (summary.mean, summary.sd, summary.low, summary.high) == (0.05, 0.0, 0.05, 0.05)


def _coverage(clusters: str) -> float:
    """Return the share of 200 simulated studies of 60 patients whose interval contains the true mean 0.9."""
    random, covered = np.random.default_rng(7), 0
    for _ in range(200):
        values, patients = simulate(random, 60)
        names = patients if clusters == "patients" else [str(i) for i in range(len(patients))]
        summary = bootstrap.summarise(values, names)
        assert summary.low is not None
        assert summary.high is not None
        covered += summary.low <= 0.9 <= summary.high
    return covered / 200


def test_intervals_have_95_percent_coverage() -> None:
    assert 0.90 <= _coverage("patients") <= 0.98


def test_bootstrap_over_images_has_too_low_coverage() -> None:
    assert _coverage("images") < 0.85


def test_interval_without_clusters_matches_scipy() -> None:
    values = np.random.default_rng(1).beta(20, 2, 150)
    summary = bootstrap.summarise(values, [str(i) for i in range(150)])
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(2))
    low, high = expected.confidence_interval
    assert (summary.low, summary.high) == pytest.approx((low, high), abs=0.15 * expected.standard_error)


def test_interval_with_clusters_matches_naive_resampling() -> None:
    values, patients = simulate(np.random.default_rng(3), 25)
    images = [values[np.array(patients) == patient] for patient in sorted(set(patients))]
    random = np.random.default_rng(4)
    naive = [np.concatenate([images[i] for i in random.integers(0, 25, 25)]).mean() for _ in range(5000)]
    summary = bootstrap.summarise(values, patients)
    expected = tuple(np.percentile(naive, [2.5, 97.5]))
    assert (summary.low, summary.high) == pytest.approx(expected, abs=0.15 * np.std(naive))


def test_copies_of_images_do_not_change_the_interval() -> None:
    values = np.random.default_rng(5).normal(0.9, 0.05, 40).tolist()
    patients = [str(i) for i in range(40)]
    once, thrice = bootstrap.summarise(values, patients), bootstrap.summarise(3 * values, 3 * patients)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


@no_deadline
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.2))
def test_paired_difference_is_first_minus_second(seed: int, better: float) -> None:
    random = np.random.default_rng(seed)
    second, patients = simulate(random, 20)
    first = second + better + random.normal(0, better / 50, second.size)
    difference = bootstrap.compare(first, second, patients)
    reversed_difference = bootstrap.compare(second, first, patients)
    assert difference.difference == pytest.approx(better, rel=0.1)
    assert difference.low is not None
    assert difference.high is not None
    assert 0 < difference.low < difference.difference < difference.high
    assert reversed_difference.difference == -difference.difference
    assert (reversed_difference.images, reversed_difference.patients) == (second.size, 20)
    assert reversed_difference.p == difference.p
    assert reversed_difference.high is not None
    assert reversed_difference.high < 0


@no_deadline
@given(st.integers(6, 80), st.integers(0, 2**32 - 1))
def test_p_matches_scipy_over_patient_means(patients: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    first, names = simulate(random, patients)
    second = first + random.normal(0.002, 0.01, first.size)
    places = np.array([int(name) for name in names])
    means = np.bincount(places, first - second) / np.bincount(places)
    assert bootstrap.compare(first, second, names).p == pytest.approx(stats.wilcoxon(means).pvalue, rel=1e-9)


def test_patients_without_difference_are_excluded_from_p() -> None:
    differences = [0.01, -0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
    names = [str(i) for i in range(12)]
    comparison = bootstrap.compare(differences + [0.0] * 5, [0.0] * 12, names)
    assert comparison.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert comparison.patients == 12


def test_rounding_errors_do_not_change_p() -> None:
    assert 0.1 + 0.2 - 0.3 != 0.0
    same = bootstrap.compare([0.1, 0.2, 0.0], [0.0, 0.0, 0.3], ["a", "a", "a"])
    assert same.p == 1.0
    steps = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    signs = np.array([1, 1, 1, -1, 1, 1, -1, 1])
    assert len(set(abs(steps + 0.1 * signs - steps))) > 1
    tied = bootstrap.compare(steps + 0.1 * signs, steps, [str(i) for i in range(8)])
    assert tied.p == pytest.approx(stats.wilcoxon(signs).pvalue)


@pytest.mark.parametrize(("differing", "p"), [(0, 1.0), (1, None), (5, None), (6, 2 / 2**6)])
def test_too_few_differing_patients_have_no_p(differing: int, p: float | None) -> None:
    first = [0.01 * (i + 1) if i < differing else 0.0 for i in range(9)]
    comparison = bootstrap.compare(first, [0.0] * 9, [str(i) for i in range(9)])
    assert comparison.p == (p if p is None else pytest.approx(p))


def test_gap_is_positive_if_other_images_are_worse() -> None:
    random = np.random.default_rng(6)
    own, own_patients = simulate(random, 60, 0.95)
    other, other_patients = simulate(random, 60, 0.85)
    gap = bootstrap.gap(own, own_patients, other, other_patients)
    assert (gap.own, gap.other) == pytest.approx((own.mean(), other.mean()))
    assert gap.gap == gap.own - gap.other
    assert gap.low is not None
    assert gap.high is not None
    assert 0 < gap.low < gap.gap < gap.high
    sides = [bootstrap.summarise(own, own_patients), bootstrap.summarise(other, other_patients)]
    widths = [side.high - side.low for side in sides if side.high is not None and side.low is not None]
    # Squared errors add up only if both sides are drawn independently.
    assert gap.high - gap.low == pytest.approx(math.hypot(*widths), rel=0.1)


def test_gap_sides_are_drawn_independently() -> None:
    values, patients = simulate(np.random.default_rng(8), 40)
    gap, side = bootstrap.gap(values, patients, values, patients), bootstrap.summarise(values, patients)
    assert gap.gap == 0.0
    assert gap.low is not None
    assert gap.high is not None
    assert side.low is not None
    assert side.high is not None
    assert gap.high - gap.low == pytest.approx(math.sqrt(2) * (side.high - side.low), rel=0.1)


@pytest.mark.parametrize("single", ["own", "other"])
def test_gap_with_one_patient_has_no_interval(single: str) -> None:
    single_patient, patients = ([0.8, 0.9], ["a", "a"]), ([0.7, 0.8, 0.9], ["a", "b", "c"])
    gap = bootstrap.gap(*single_patient, *patients) if single == "own" else bootstrap.gap(*patients, *single_patient)
    assert abs(gap.gap) == pytest.approx(0.05)
    assert (gap.low, gap.high) == (None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_undefined_value_is_refused(value: Any) -> None:
    good, bad, names = [0.5, 0.6], [0.5, value], ["a", "b"]
    with pytest.raises(ValueError, match="NaN"):
        bootstrap.summarise(bad, names)
    for pair in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(ValueError, match="NaN"):
            bootstrap.compare(*pair, names)
    with pytest.raises(ValueError, match="NaN"):
        bootstrap.gap(good, names, bad, names)


def test_mismatched_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one value or more"):
        bootstrap.summarise([], [])
    with pytest.raises(ValueError, match="one value or more"):
        bootstrap.summarise(np.zeros((2, 2)), ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="2 values and 3 patients"):
        bootstrap.summarise([0.5, 0.6], ["a", "b", "c"])
    with pytest.raises(ValueError, match="the same images in both"):
        bootstrap.compare([0.5, 0.6], [0.5], ["a", "b"])


def test_large_archive_needs_little_memory() -> None:
    random = np.random.default_rng(9)
    values, patients = random.beta(20, 2, 100_000), [str(i) for i in random.integers(0, 60_000, 100_000)]
    tracemalloc.start()
    start = time.perf_counter()
    summary = bootstrap.summarise(values, patients)
    taken, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert taken < 60
    assert summary.low is not None
    assert summary.high is not None
    assert summary.high - summary.low < 0.001
