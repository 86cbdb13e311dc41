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
    """Draw values of one to four images a patient; patients differ more than a patient's images do."""
    sizes = random.integers(1, 5, patients)
    names = np.repeat(np.arange(patients), sizes)
    values = mean + random.normal(0, 0.03, patients)[names] + random.normal(0, 0.01, names.size)
    return values, [str(name) for name in names]


@no_deadline
@given(studies())
def test_summary_matches_numpy(study: tuple[list[float], list[str]]) -> None:
    values, patients = study
    found = bootstrap.summarise(values, patients)
    assert (found.images, found.patients) == (len(values), len(set(patients)))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.median == pytest.approx(np.median(values), abs=1e-9)
    assert found.p5 == pytest.approx(np.percentile(values, 5), abs=1e-9)
    assert found.sd == (pytest.approx(np.std(values, ddof=1), abs=1e-9) if len(values) > 1 else None)
    assert ((found.low is None) and (found.high is None)) == (found.patients < 2)


@no_deadline
@given(studies(), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(study: tuple[list[float], list[str]], random: Any) -> None:
    values, patients = study
    order = list(range(len(values)))
    random.shuffle(order)
    again, whose = [values[i] for i in order], [patients[i] for i in order]
    assert bootstrap.summarise(values, patients) == bootstrap.summarise(again, whose)
    zeros, half = np.zeros(len(values)), len(values) // 2
    assert bootstrap.compare(values, zeros, patients) == bootstrap.compare(again, zeros, whose)
    if half:
        first, second = sorted(order[:half]), sorted(order[half:])
        ordered = [values[i] for i in first], [patients[i] for i in first]
        shuffled = [values[i] for i in order[:half]], [patients[i] for i in order[:half]]
        rest = [values[i] for i in second], [patients[i] for i in second]
        assert bootstrap.gap(*ordered, *rest) == bootstrap.gap(*shuffled, *rest)


def test_rounding_does_not_depend_on_the_order() -> None:
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    found = {bootstrap.summarise([*some, 0.9], ["a", "a", "a", "b"]) for some in permutations((0.1, 0.2, 0.3))}
    assert len(found) == 1


@no_deadline
@given(studies())
def test_interval_is_within_the_values(study: tuple[list[float], list[str]]) -> None:
    found = bootstrap.summarise(*study)
    assert min(study[0]) <= found.mean <= max(study[0])
    if found.low is not None and found.high is not None:
        assert min(study[0]) <= found.low <= found.high <= max(study[0])


@no_deadline
@given(st.integers(10, 60), st.integers(0, 2**32 - 1))
def test_interval_contains_the_mean(patients: int, seed: int) -> None:
    found = bootstrap.summarise(*simulate(np.random.default_rng(seed), patients))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high


@no_deadline
@given(some_values, st.lists(st.sampled_from("abc"), min_size=1, max_size=50))
def test_equal_values_have_a_zero_width_interval(value: float, patients: list[str]) -> None:
    found = bootstrap.summarise([value] * len(patients), patients)
    ends = (value, value) if len(set(patients)) > 1 else (None, None)
    assert (found.mean, found.median, found.p5, found.low, found.high) == (value, value, value, *ends)
    assert found.sd == (0.0 if len(patients) > 1 else None)
    paired = bootstrap.compare([value] * len(patients), [value] * len(patients), patients)
    ends = (0.0, 0.0) if len(set(patients)) > 1 else (None, None)
    assert (paired.difference, paired.low, paired.high, paired.p) == (0.0, *ends, 1.0)


def test_mean_of_equal_values_is_exact() -> None:
    assert math.fsum([0.05] * 3) / 3 != 0.05
    found = bootstrap.summarise([0.05] * 3, ["a", "b", "b"])
    assert (found.mean, found.sd, found.low, found.high) == (0.05, 0.0, 0.05, 0.05)


def _coverage(clusters: str) -> float:
    """Share of 200 simulated studies of 60 patients order interval holds the true mean 0.9."""
    random, held = np.random.default_rng(7), 0
    for _ in range(200):
        values, patients = simulate(random, 60)
        names = patients if clusters == "patients" else [str(i) for i in range(len(patients))]
        found = bootstrap.summarise(values, names)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.9 <= found.high
    return held / 200


def test_intervals_have_95_percent_coverage() -> None:
    assert 0.90 <= _coverage("patients") <= 0.98


def test_bootstrap_over_images_has_too_low_coverage() -> None:
    assert _coverage("images") < 0.85


def test_interval_without_clusters_matches_scipy() -> None:
    values = np.random.default_rng(1).beta(20, 2, 150)
    found = bootstrap.summarise(values, [str(i) for i in range(150)])
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(2))
    low, high = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * expected.standard_error)


def test_interval_with_clusters_matches_naive_resampling() -> None:
    values, patients = simulate(np.random.default_rng(3), 25)
    images = [values[np.array(patients) == patient] for patient in sorted(set(patients))]
    random = np.random.default_rng(4)
    naive = [np.concatenate([images[i] for i in random.integers(0, 25, 25)]).mean() for _ in range(5000)]
    found = bootstrap.summarise(values, patients)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(naive, [2.5, 97.5])), abs=0.15 * np.std(naive))


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
    there, back = bootstrap.compare(first, second, patients), bootstrap.compare(second, first, patients)
    assert there.difference == pytest.approx(better, rel=0.1)
    assert there.low is not None
    assert there.high is not None
    assert 0 < there.low < there.difference < there.high
    assert back.difference == -there.difference
    assert (back.images, back.patients, back.p) == (second.size, 20, there.p)
    assert back.high is not None
    assert back.high < 0


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
    found = bootstrap.compare(differences + [0.0] * 5, [0.0] * 12, names)
    assert found.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert found.patients == 12


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
    found = bootstrap.compare(first, [0.0] * 9, [str(i) for i in range(9)])
    assert found.p == (p if p is None else pytest.approx(p))


def test_gap_is_positive_if_other_images_are_worse() -> None:
    random = np.random.default_rng(6)
    own, own_patients = simulate(random, 60, 0.95)
    other, other_patients = simulate(random, 60, 0.85)
    found = bootstrap.gap(own, own_patients, other, other_patients)
    assert (found.own, found.other) == pytest.approx((own.mean(), other.mean()))
    assert found.gap == found.own - found.other
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.gap < found.high
    sides = [bootstrap.summarise(own, own_patients), bootstrap.summarise(other, other_patients)]
    widths = [side.high - side.low for side in sides if side.high is not None and side.low is not None]
    # Independent errors add as squares: drawn alike on both sides they would not.
    assert found.high - found.low == pytest.approx(math.hypot(*widths), rel=0.1)


def test_gap_sides_are_drawn_independently() -> None:
    values, patients = simulate(np.random.default_rng(8), 40)
    found, side = bootstrap.gap(values, patients, values, patients), bootstrap.summarise(values, patients)
    assert found.gap == 0.0
    assert found.low is not None
    assert found.high is not None
    assert side.low is not None
    assert side.high is not None
    assert found.high - found.low == pytest.approx(math.sqrt(2) * (side.high - side.low), rel=0.1)


@pytest.mark.parametrize("single", ["own", "other"])
def test_gap_with_one_patient_has_no_interval(single: str) -> None:
    one, many = ([0.8, 0.9], ["a", "a"]), ([0.7, 0.8, 0.9], ["a", "b", "c"])
    found = bootstrap.gap(*one, *many) if single == "own" else bootstrap.gap(*many, *one)
    assert abs(found.gap) == pytest.approx(0.05)
    assert (found.low, found.high) == (None, None)


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
    found = bootstrap.summarise(values, patients)
    taken, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert taken < 60
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low < 0.001
