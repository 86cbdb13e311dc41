"""Counts, overlap metrics and surface distances against naive numpy and brute-force scipy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from lungseg.metrics import segmentation
from lungseg.schema import Counts

U8 = NDArray[np.uint8]
no_deadline = settings(deadline=None)  # the machine may be busy

sides = st.integers(1, 12)
pixels = st.integers(0, 10**7)
any_counts = st.builds(Counts, pixels, pixels, pixels, pixels)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[U8, U8]:
    shape = (draw(sides), draw(sides))
    masks = arrays(np.uint8, shape, elements=st.integers(0, 1))
    return draw(masks), draw(masks)


def square(side: int, top: int, left: int, length: int) -> U8:
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + length, left : left + length] = 1
    return mask


def brute_force_distances(prediction: U8, truth: U8) -> tuple[float, float]:
    """HD95 (larger direction) and ASSD (both directions together), every border pixel against every other."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    first, second = (
        np.argwhere(mask.astype(bool) & ~binary_erosion(mask, cross, border_value=0)) for mask in (prediction, truth)
    )
    distances = cdist(first, second)
    from_prediction, from_truth = distances.min(axis=1), distances.min(axis=0)
    hd95 = max(np.percentile(from_prediction, 95), np.percentile(from_truth, 95))
    return hd95, float(np.concatenate([from_prediction, from_truth]).mean())


@no_deadline
@given(mask_pairs())
def test_counts_match_naive_counting(pair: tuple[U8, U8]) -> None:
    prediction, truth = pair
    cells = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
    expected = Counts(*(cells.count(kind) for kind in ((1, 1), (1, 0), (0, 1), (0, 0))))
    counts = segmentation.count_pixels(prediction, truth)
    assert counts == expected
    assert counts.tp + counts.fp + counts.fn + counts.tn == truth.size


@no_deadline
@given(mask_pairs())
def test_swapping_the_masks_swaps_false_positives_and_negatives(pair: tuple[U8, U8]) -> None:
    counts, swapped = segmentation.count_pixels(*pair), segmentation.count_pixels(*reversed(pair))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (swapped.tp, swapped.fn, swapped.fp, swapped.tn)
    assert segmentation.dice(counts) == segmentation.dice(swapped)
    assert segmentation.iou(counts) == segmentation.iou(swapped)


@no_deadline
@given(any_counts)
def test_dice_and_iou_satisfy_their_identity(counts: Counts) -> None:
    dice, iou = segmentation.dice(counts), segmentation.iou(counts)
    assert dice == pytest.approx(2 * iou / (1 + iou), abs=1e-12)
    assert 0.0 <= iou <= dice <= 1.0


@no_deadline
@given(any_counts)
def test_dice_is_the_exact_ratio(counts: Counts) -> None:
    size = 2 * counts.tp + counts.fp + counts.fn
    assert segmentation.dice(counts) == (float(Fraction(2 * counts.tp, size)) if size else 1.0)


def test_overlap_metrics_of_known_counts() -> None:
    counts = Counts(tp=30, fp=10, fn=20, tn=40)
    assert segmentation.dice(counts) == pytest.approx(60 / 90)
    assert segmentation.iou(counts) == pytest.approx(0.5)
    assert segmentation.pixel_accuracy(counts) == pytest.approx(0.7)


@no_deadline
@given(any_counts)
def test_sensitivity_and_precision_bracket_dice(counts: Counts) -> None:
    sensitivity, precision, dice = (
        segmentation.sensitivity(counts),
        segmentation.precision(counts),
        segmentation.dice(counts),
    )
    assert 0.0 <= precision <= 1.0
    if sensitivity is None:
        assert (dice, precision) == (0.0, 0.0)
    else:
        assert min(sensitivity, precision) - 1e-12 <= dice <= max(sensitivity, precision) + 1e-12


def test_sensitivity_and_precision_of_known_counts() -> None:
    counts = Counts(tp=30, fp=10, fn=20, tn=40)
    assert segmentation.sensitivity(counts) == pytest.approx(0.6)
    assert segmentation.precision(counts) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("counts", "sensitivity", "precision"),
    [
        (Counts(0, 0, 0, 9), 1.0, 1.0),  # both empty
        (Counts(0, 4, 0, 5), None, 0.0),  # only the truth is empty
        (Counts(0, 0, 4, 5), 0.0, 0.0),  # only the prediction is empty
        (Counts(0, 4, 4, 1), 0.0, 0.0),  # no overlap
    ],
)
def test_sensitivity_and_precision_of_empty_masks(counts: Counts, sensitivity: float | None, precision: float) -> None:
    assert (segmentation.sensitivity(counts), segmentation.precision(counts)) == (sensitivity, precision)


def test_thresholds_include_exactly_one_half() -> None:
    assert len(segmentation.THRESHOLDS) == 19
    assert (segmentation.THRESHOLDS[0], segmentation.THRESHOLDS[9], segmentation.THRESHOLDS[-1]) == (0.05, 0.5, 0.95)
    assert list(segmentation.THRESHOLDS) == sorted(set(segmentation.THRESHOLDS))


@st.composite
def probabilities_and_truths(draw: st.DrawFn) -> tuple[NDArray[np.float32], U8]:
    """Any probabilities, many of them at a threshold or next to it, and NaN."""
    shape = (draw(sides), draw(sides))
    at = [float(np.float32(t)) for t in segmentation.THRESHOLDS]
    near = [float(np.nextafter(np.float32(t), np.float32(side))) for t in segmentation.THRESHOLDS for side in (0, 1)]
    elements = st.one_of(st.floats(0, 1, width=32), st.sampled_from([*at, *near, 0.0, 1.0, math.nan]))
    return draw(arrays(np.float32, shape, elements=elements)), draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))


@no_deadline
@given(probabilities_and_truths())
def test_threshold_counts_match_the_thresholded_mask(pair: tuple[NDArray[np.float32], U8]) -> None:
    probability, truth = pair
    counts = segmentation.threshold_counts(probability, truth)
    assert (counts.shape, counts.dtype) == ((len(segmentation.THRESHOLDS), 3), np.dtype(np.int64))
    for t, row in zip(segmentation.THRESHOLDS, counts.tolist(), strict=True):
        expected = segmentation.count_pixels((probability >= t).astype(np.uint8), truth)
        assert row == [expected.tp, expected.fp, expected.fn]


def test_thresholds_are_compared_as_in_torch() -> None:
    probability = np.float32([[t, np.nextafter(np.float32(t), np.float32(0))] for t in segmentation.THRESHOLDS])
    counts = segmentation.threshold_counts(probability, np.ones(probability.shape, np.uint8))
    assert counts[:, 0].tolist() == [int((torch.from_numpy(probability) >= t).sum()) for t in segmentation.THRESHOLDS]


@no_deadline
@given(st.lists(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=19, max_size=19), min_size=1, max_size=6))
def test_best_threshold_has_the_highest_mean_dice(rows: list[list[tuple[int, int, int]]]) -> None:
    counts = np.array(rows, np.int64)
    threshold, value = segmentation.best_threshold(counts)
    means = [
        segmentation.mean([segmentation.dice(Counts(*image[i], 0)) for image in rows])
        for i in range(len(segmentation.THRESHOLDS))
    ]
    assert value == max(means)
    ties = [t for t, dice in zip(segmentation.THRESHOLDS, means, strict=True) if dice == value]
    assert abs(threshold - 0.5) <= min(abs(t - 0.5) for t in ties) + 1e-9
    assert segmentation.best_threshold(counts[::-1]) == (threshold, value)


@pytest.mark.parametrize(
    ("grid", "good", "best"),
    [
        ((0.3, 0.5, 0.7), (0, 1, 2), 0.5),  # all equal
        ((0.3, 0.5, 0.7), (0, 2), 0.3),  # equally far from 0.5, except for float64 rounding: the lower one
        ((0.55, 0.45), (0, 1), 0.45),
        ((0.2, 0.6, 0.9), (0, 2), 0.2),
        ((0.2, 0.6, 0.9), (2,), 0.9),
    ],
)
def test_ties_go_to_the_threshold_nearest_one_half(grid: tuple[float, ...], good: tuple[int, ...], best: float) -> None:
    counts = np.array([[(5, 0, 0) if i in good else (4, 1, 1) for i in range(len(grid))]] * 2, np.int64)
    assert segmentation.best_threshold(counts, grid) == (best, 1.0)


def test_image_without_lungs_favours_an_empty_prediction() -> None:
    empty = segmentation.threshold_counts(np.full((4, 4), 0.62, np.float32), np.zeros((4, 4), np.uint8))
    assert segmentation.best_threshold(empty[None]) == (0.65, 1.0)


@pytest.mark.parametrize("shape", [(0, 19, 3), (2, 18, 3), (2, 19, 4), (19, 3)])
def test_mismatched_counts_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one image or more, with 19 thresholds each"):
        segmentation.best_threshold(np.zeros(shape, np.int64))


def test_overlap_metrics_of_empty_masks() -> None:
    empty, full = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    both = segmentation.count_pixels(empty, empty)
    assert (segmentation.dice(both), segmentation.iou(both), segmentation.pixel_accuracy(both)) == (1.0, 1.0, 1.0)
    for pair in ((empty, full), (full, empty)):
        counts = segmentation.count_pixels(*pair)
        assert (segmentation.dice(counts), segmentation.iou(counts), segmentation.pixel_accuracy(counts)) == (
            0.0,
            0.0,
            0.0,
        )


@no_deadline
@given(mask_pairs())
def test_surface_distances_match_brute_force(pair: tuple[U8, U8]) -> None:
    prediction, truth = pair
    hd95, assd = segmentation.surface_distances(prediction, truth)
    if not prediction.any() or not truth.any():
        assert (hd95, assd) == (None, None)
        return
    assert (hd95, assd) == pytest.approx(brute_force_distances(prediction, truth), abs=1e-4)


def test_surface_distances_of_large_masks_match_brute_force() -> None:
    rows, columns = np.mgrid[:120, :150]
    truth = ((rows - 60) ** 2 + (columns - 50) ** 2 < 40**2).astype(np.uint8)
    prediction = ((rows - 66) ** 2 / 1.3 + (columns - 58) ** 2 < 37**2).astype(np.uint8)
    prediction[5:9, 140:150] = 1  # far away and at the edge
    assert segmentation.surface_distances(prediction, truth) == pytest.approx(
        brute_force_distances(prediction, truth), abs=1e-4
    )


@no_deadline
@given(mask_pairs())
def test_surface_distances_are_symmetric_and_translation_invariant(pair: tuple[U8, U8]) -> None:
    distances = segmentation.surface_distances(*pair)
    assert segmentation.surface_distances(pair[1], pair[0]) == pytest.approx(distances)
    moved = [np.pad(mask, ((5, 2), (0, 7))) for mask in pair]
    assert segmentation.surface_distances(*moved) == pytest.approx(distances)


@pytest.mark.parametrize("top", [0, 3, 12], ids=["at the edge", "inside", "at the far edge"])
def test_identical_masks_have_zero_distance(top: int) -> None:
    mask = square(20, top, top, 8)
    assert segmentation.surface_distances(mask, mask) == (0.0, 0.0)


def test_shifted_square_has_known_distances() -> None:
    # A 9 px square moved by 4 px has 32 border px: 9 at the trailing side have distance 4, 3 before each corner have
    # 3, 2 and 1, and 7 of the side inside the other square have 1, 2, 3, 4, 3, 2, 1. All others have distance 0.
    first, second = square(40, 10, 10, 9), square(40, 10, 14, 9)
    assert segmentation.surface_distances(first, second) == pytest.approx((4.0, (9 * 4 + 2 * 6 + 16) / 32))


def test_distance_of_two_single_pixels() -> None:
    first, second = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    first[1, 2], second[4, 6] = 1, 1
    assert segmentation.surface_distances(first, second) == pytest.approx((5.0, 5.0))


def test_hd95_is_the_larger_direction() -> None:
    truth = square(60, 20, 20, 4)
    prediction = truth.copy()
    prediction[20, 50:60] = 1  # 10 stray px against 12: from the truth, all distances are 0
    hd95, assd = segmentation.surface_distances(prediction, truth)
    assert hd95 is not None
    assert hd95 > 30.0
    assert segmentation.surface_distances(truth, prediction) == pytest.approx((hd95, assd))


def test_border_of_a_full_mask_is_the_image_edge() -> None:
    full, inner = np.ones((11, 11), np.uint8), square(11, 2, 2, 7)
    hd95, _ = segmentation.surface_distances(full, inner)
    # From the frame's corners 2 sqrt(2), from its sides 2; the corners are 4 of 40 px, more than 5 %.
    assert hd95 == pytest.approx(2 * math.sqrt(2), abs=1e-5)
    assert segmentation.surface_distances(full, full) == (0.0, 0.0)


@pytest.mark.parametrize("empty", ["prediction", "truth", "both"])
def test_empty_mask_has_no_surface_distance(empty: str) -> None:
    nothing, something = np.zeros((8, 8), np.uint8), square(8, 2, 2, 3)
    prediction = something if empty == "truth" else nothing
    truth = something if empty == "prediction" else nothing
    assert segmentation.surface_distances(prediction, truth) == (None, None)


def test_surface_distances_do_not_change_the_masks() -> None:
    prediction, truth = square(20, 0, 0, 8), square(20, 5, 5, 8)
    copies = prediction.copy(), truth.copy()
    segmentation.surface_distances(prediction, truth)
    assert (prediction == copies[0]).all()
    assert (truth == copies[1]).all()


def test_mean_is_exact_and_nan_if_empty() -> None:
    assert math.isnan(segmentation.mean([]))
    assert segmentation.mean([0.1] * 10) == 0.1
    assert segmentation.mean([1.0, 0.0, 0.5]) == 0.5
