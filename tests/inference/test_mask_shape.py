"""Mask measurements and confidence, compared with slow and simple computations."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from lungseg.imaging.run_lengths import Runs
from lungseg.inference import mask_shape

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
EIGHT = np.ones((3, 3))
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
masks = shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1)))
probabilities = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(0.0, 1.0, width=32)))
thresholds = st.floats(0.05, 0.95)


def describe(mask: NDArray[np.uint8], spacing_mm: float | None = None) -> dict[str, Any]:
    runs = Runs.from_mask(mask)
    return mask_shape.describe(runs, runs, spacing_mm)


def draw(*rows: str) -> U8:
    """Create a mask from a drawing: # is 1."""
    return np.array([[cell == "#" for cell in row] for row in rows], np.uint8)


@given(masks)
def test_area_centroid_and_box_match_the_pixels(mask: U8) -> None:
    values = describe(mask)
    rows, columns = np.nonzero(mask)
    assert values["area_px"] == len(rows)
    if not len(rows):
        assert (values["centroid_x_px"], values["centroid_y_px"], values["bbox"]) == (None, None, [])
        return
    assert values["centroid_x_px"] == pytest.approx(columns.mean())
    assert values["centroid_y_px"] == pytest.approx(rows.mean())
    x, y, width, height = values["bbox"]
    assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


@given(masks)
def test_both_lungs_add_up_to_the_mask(mask: U8) -> None:
    values = describe(mask)
    assert values["right_lung_px"] + values["left_lung_px"] == values["area_px"]
    assert min(values["right_lung_px"], values["left_lung_px"]) >= 0


@given(masks)
def test_values_are_plain_python_types(mask: U8) -> None:
    values = describe(mask)
    assert all(type(values[name]) is int for name in ("area_px", "right_lung_px", "left_lung_px"))
    assert all(type(values[name]) in (float, type(None)) for name in ("centroid_x_px", "centroid_y_px"))
    assert all(type(value) is int for value in values["bbox"])


def confidence(probability: F32, threshold: float) -> dict[str, float | None]:
    return mask_shape.confidence(probability, (probability >= threshold).astype(np.uint8))


@given(probabilities, thresholds)
def test_confidence_matches_a_plain_computation(probability: F32, threshold: float) -> None:
    values = confidence(probability, threshold)
    mask = probability >= np.float32(threshold)
    if not mask.any():
        assert values == {"mean_probability": None, "border_entropy": None}
        return
    assert values["mean_probability"] == pytest.approx(probability[mask].astype(float).mean())
    border = ndimage.maximum_filter(mask, 3, mode="nearest") != ndimage.minimum_filter(mask, 3, mode="nearest")
    expected = [_entropy(float(probability_value)) for probability_value in probability[border]]
    if expected:
        assert values["border_entropy"] == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    else:
        assert values["border_entropy"] is None


def _entropy(probability_value: float) -> float:
    return -sum(p * math.log2(p) for p in (probability_value, 1 - probability_value) if p > 0)


@given(probabilities, thresholds)
def test_confidence_values_stay_in_range(probability: F32, threshold: float) -> None:
    values = confidence(probability, threshold)
    mean, entropy = values["mean_probability"], values["border_entropy"]
    assert mean is None or np.float32(threshold) <= mean <= 1 or math.isclose(mean, np.float32(threshold))
    assert entropy is None or 0 <= entropy <= 1


def test_border_entropy_is_0_certain_and_1_undecided() -> None:
    certain = np.zeros((8, 8), np.float32)
    certain[2:6, 2:6] = 1
    assert confidence(certain, 0.5) == {"mean_probability": 1.0, "border_entropy": pytest.approx(0, abs=1e-9)}
    undecided = np.where(certain == 1, 0.5, np.nextafter(np.float32(0.5), np.float32(0))).astype(np.float32)
    assert confidence(undecided, 0.5) == {"mean_probability": 0.5, "border_entropy": pytest.approx(1)}


def test_mask_of_the_whole_image_has_no_border() -> None:
    assert confidence(np.full((5, 5), 0.9, np.float32), 0.5) == {
        "mean_probability": pytest.approx(0.9),
        "border_entropy": None,
    }


def test_pixels_far_from_the_border_do_not_count() -> None:
    probability = np.zeros((20, 20), np.float32)
    probability[5:15, 5:15] = 1
    probability[0, 0] = 0.4
    probability[9, 9] = 0.6
    assert confidence(probability, 0.5)["border_entropy"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("spacing", "area"), [(1.0, 0.12), (None, None)])
def test_areas_in_cm2_need_a_spacing(spacing: float | None, area: float | None) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[20:24, 10:12] = 1
    mask[20:24, 80:81] = 1
    values = describe(mask, spacing_mm=spacing)
    assert values["area_cm2"] == pytest.approx(area)
    assert values["right_lung_cm2"] == pytest.approx(None if area is None else 0.08)
    assert values["left_lung_cm2"] == pytest.approx(None if area is None else 0.04)
    assert values["spacing_mm"] == (None if area is None else spacing)
