"""Detection by area: known values, ties, and intervals over patients."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from lungseg.metrics.detection import detect


def test_values_of_a_known_table() -> None:
    result = detect([0.5, 0.2, 0.0, 0.0, 0.3, 0.0], [True, True, True, False, False, False], list("abcdef"), 0.1)
    assert (result.present, result.absent) == (3, 3)
    assert result.sensitivity.value == pytest.approx(2 / 3)
    assert result.specificity.value == pytest.approx(2 / 3)
    assert result.auroc.value == pytest.approx((3 + 2 + 0.5 * 2) / 9)


@pytest.mark.parametrize(("least", "sensitivity", "specificity"), [(0.2, 1.0, 0.5), (0.21, 0.5, 1.0), (0.0, 1.0, 0.0)])
def test_score_at_the_limit_is_detected(least: float, sensitivity: float, specificity: float) -> None:
    result = detect([0.2, 0.9, 0.2, 0.0], [True, True, False, False], list("abcd"), least)
    assert (result.sensitivity.value, result.specificity.value) == (sensitivity, specificity)


def test_auroc_is_that_of_the_rank_test() -> None:
    random = np.random.default_rng(3)
    present = random.random(200) < 0.4
    scores = np.round(random.random(200) + 0.3 * present, 1)
    result = detect(scores.tolist(), present.tolist(), [str(number) for number in range(200)], 0.5)
    pairs = np.count_nonzero(present) * np.count_nonzero(~present)
    expected = mannwhitneyu(scores[present], scores[~present]).statistic / pairs
    assert result.auroc.value == pytest.approx(expected, abs=1e-12)
    assert result.auroc.low is not None
    assert result.auroc.high is not None
    assert 0.04 < result.auroc.high - result.auroc.low < 0.25
    assert result.auroc.low < result.auroc.value < result.auroc.high


def test_order_of_images_does_not_matter() -> None:
    random = np.random.default_rng(5)
    scores, present, patients = random.random(60), random.random(60) < 0.5, random.integers(0, 25, 60).astype(str)
    order = random.permutation(60)
    first, second = (
        detect(scores[places].tolist(), present[places].tolist(), patients[places].tolist(), 0.4)
        for places in (np.arange(60), order)
    )
    assert first == second


def test_interval_is_over_patients() -> None:
    scores, present = [0.9, 0.8, 0.1, 0.2, 0.7, 0.1], [True, True, True, False, False, False]
    single = detect(scores, present, list("abcdef"), 0.5)
    repeated = detect(scores * 30, present * 30, list("abcdef") * 30, 0.5)
    assert single.sensitivity == repeated.sensitivity
    assert repeated.sensitivity.low is not None
    assert repeated.sensitivity.low < 0.5


def test_one_patient_of_a_kind_has_no_interval() -> None:
    result = detect([0.9, 0.8, 0.1], [True, True, False], ["a", "a", "b"], 0.5)
    assert (result.sensitivity.value, result.sensitivity.low, result.auroc.high) == (1.0, None, None)


def test_images_of_one_kind_are_refused() -> None:
    for present in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="expected some, but not all"):
            detect([0.1, 0.2], present, ["a", "b"], 0.5)
