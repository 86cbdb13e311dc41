"""Doubt of a prediction: the score, and the place that its words name."""

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from lungseg.arrays import F32, U8
from lungseg.inference.doubt import NO_UNUSUAL_PLACE, NOTHING_UNUSUAL, describe_doubt, measure_doubt
from lungseg.ingest.reason_codes import REGISTRY


def lungs() -> U8:
    mask = np.zeros((100, 100), np.uint8)
    mask[20:80, 10:40] = mask[20:80, 60:90] = 1
    return mask


def certain() -> F32:
    return np.where(lungs() == 1, 0.999, 0.001).astype(np.float32)


def reason(probability: F32) -> str:
    return describe_doubt(probability, (probability >= 0.5).astype(np.uint8), [])


@pytest.mark.parametrize("level", [0.6, 0.9, 1.0])
def test_doubt_is_one_minus_the_expected_overlap(level: float) -> None:
    mask = lungs()
    probability = (mask * level).astype(np.float32)
    assert measure_doubt(probability, mask) == pytest.approx(1 - 2 * level / (level + 1))


@given(arrays(np.float32, (8, 8), elements=st.floats(0, 1, width=32)), st.floats(0.1, 0.9))
def test_doubt_is_between_0_and_1(probability: F32, threshold: float) -> None:
    assert 0 <= measure_doubt(probability, (probability >= threshold).astype(np.uint8)) <= 1


@given(arrays(np.float32, (8, 8), elements=st.floats(0, 1, width=32)))
def test_doubt_of_pixels_adds_up_to_the_score(probability: F32) -> None:
    mask = (probability >= 0.5).astype(np.uint8)
    total = float(probability.sum(dtype=np.float64)) + int(mask.sum())
    amount = float(np.abs(probability.astype(np.float64) - mask).sum())
    assert measure_doubt(probability, mask) == pytest.approx(amount / total if total else 1, abs=1e-6)


def test_an_empty_mask_has_the_highest_doubt() -> None:
    empty = np.zeros((8, 8), np.uint8)
    assert measure_doubt(np.zeros((8, 8), np.float32), empty) == 1
    assert measure_doubt(np.full((8, 8), 0.4, np.float32), empty) == 1
    assert reason(np.full((8, 8), 0.4, np.float32)) == NOTHING_UNUSUAL


def test_reason_names_the_blurred_part_of_the_border() -> None:
    probability = certain()
    probability[60:80, 60] = probability[79, 60:90] = 0.6
    assert reason(probability) == "blurred border of the lower left lung"
    probability[40:60, 10] = probability[40:60, 39] = 0.55
    probability[40:60, 11] = probability[40:60, 38] = 0.55
    assert reason(probability) == "blurred border of the middle right lung"


def test_border_that_is_equally_blurred_names_no_part() -> None:
    blurred = cv2.GaussianBlur(lungs().astype(np.float32), (9, 9), 2)
    assert reason(blurred) == NOTHING_UNUSUAL


@pytest.mark.parametrize("scale", [1, 5])
def test_reason_names_an_unsure_region_inside_a_lung(scale: int) -> None:
    probability = certain()
    probability[30:70, 20:30] = 0.6
    assert reason(np.kron(probability, np.ones((scale, scale), np.float32))) == "unsure inside the right lung"
    probability[30:70, 70:80] = 0.6
    assert reason(np.kron(probability, np.ones((scale, scale), np.float32))) == "unsure inside both lungs"


def test_reason_names_a_possible_lung_outside_the_mask() -> None:
    probability = certain()
    probability[84:98, 65:85] = 0.4
    assert reason(probability) == "possible lung outside the left lung"


@given(arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(0, 1, width=32)))
def test_any_probabilities_have_a_reason(probability: F32) -> None:
    assert reason(probability)


def test_flags_replace_the_place() -> None:
    mask = lungs()
    words = describe_doubt(certain(), mask, ["no_mask", "rotated", "lungs_joined"])
    assert words == f"{REGISTRY['rotated'].meaning} {REGISTRY['lungs_joined'].meaning}"


def test_flags_of_something_else_leave_the_score_only() -> None:
    even = np.full((8, 8), 0.4, np.float32)
    assert describe_doubt(even, np.zeros((8, 8), np.uint8), ["spacing_unusable"]) == NO_UNUSUAL_PLACE
