"""Metrics of one image at prepared size, at native size and over thresholds, with hand-made geometries."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from lungseg.config import PreprocessSettings
from lungseg.imaging.geometry import plan_geometry, prepare_mask, restore
from lungseg.metrics import segmentation
from lungseg.result_columns import TEST_ROWS
from lungseg.schema import NOT_ANNOTATED, Geometry, Sample, table
from lungseg.training import evaluation

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
SIZE = 64
WHOLE = Geometry(SIZE, SIZE, SIZE, SIZE, 0, 0, SIZE)
WIDE = Geometry(64, 128, 32, 64, 16, 0, SIZE)  # at half size in the square, with bars above and below
CUT = Geometry(64, 128, 64, 128, 0, -32, SIZE)  # cropped: 32 columns on each side are outside the square


def box(rows: tuple[int, int], columns: tuple[int, int]) -> U8:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


def a_sample(mask: U8, geometry: Geometry = WHOLE) -> Sample:
    return Sample("i", "north", "p", None, "sha", geometry, np.zeros((SIZE, SIZE), np.uint8), mask[None])


MeasureOne = Callable[[Sample, F32], evaluation.Row]


def at_prepared_size(threshold: float) -> MeasureOne:
    return lambda sample, predicted: evaluation.measure_at_prepared_size({"lung": threshold})(sample, predicted[None])[
        0
    ]


def at_native_size(threshold: float) -> MeasureOne:
    return lambda sample, predicted: evaluation.measure_at_native_size({"lung": threshold})(sample, predicted[None])[0]


def sure(mask: U8) -> F32:
    """Probabilities of 0 and 1 that give exactly this mask."""
    return mask.astype(np.float32)


def pixels(row: evaluation.Row) -> tuple[int, ...]:
    return tuple(row[name] for name in ("tp", "fp", "fn", "tn"))


# At prepared size


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        (Geometry(32, 64, 32, 64, 16, 0, 64), 32 * 64),  # bars above and below
        (Geometry(80, 40, 64, 32, 0, 16, 64), 64 * 32),  # bars at the sides
        (CUT, 64 * 64),  # no bars
    ],
    ids=["wide", "tall", "cropped"],
)
def test_padding_is_not_counted(geometry: Geometry, area: int) -> None:
    mask = box((10, 40), (20, 50))
    row = at_prepared_size(0.5)(a_sample(mask, geometry), np.ones((SIZE, SIZE), np.float32))
    lung = int(mask[geometry.content()].sum())
    assert pixels(row) == (lung, area - lung, 0, 0)


def test_metrics_at_prepared_size_count_pixels() -> None:
    row = at_prepared_size(0.5)(a_sample(box((0, 10), (0, 10))), sure(box((5, 10), (0, 20))))
    assert pixels(row) == (50, 50, 50, 64 * 64 - 150)
    assert (row["image_id"], row["dataset"], row["patient_id"]) == ("i", "north", "p")
    assert row["dice"] == 0.5
    assert row["iou"] == pytest.approx(1 / 3)
    assert row["pixel_accuracy"] == pytest.approx(1 - 100 / 64**2)


def test_a_pixel_at_the_threshold_is_lung() -> None:
    half = np.full((SIZE, SIZE), 0.5, np.float32)
    for threshold, predicted in ((0.5, 64 * 64), (0.51, 0), (0.49, 64 * 64)):
        for measure in (at_prepared_size(threshold), at_native_size(threshold)):
            row = measure(a_sample(box((0, 8), (0, 8))), half)
            assert row["tp"] + row["fp"] == predicted


# At native size


def test_native_metrics_of_an_image_at_twice_the_size() -> None:
    """Full-height bars that are 4 px apart in the square are 8 px apart in the image."""
    truth, predicted = box((16, 48), (10, 20)), box((16, 48), (14, 24))
    row = at_native_size(0.5)(a_sample(truth, WIDE), sure(predicted))
    assert pixels(row) == (64 * 12, 64 * 8, 64 * 8, 64 * 128 - 64 * 28)
    assert row["dice"] == row["sensitivity"] == row["precision"] == pytest.approx(0.6)
    assert row["iou"] == pytest.approx(12 / 28)
    assert row["pixel_accuracy"] == pytest.approx(1 - 16 / 128)
    assert row["hd95_px"] == 8.0  # distance between the bars' far sides
    # Distances of the 164 border pixels of each bar: far side, 64 pixels at 8; each short side, 11 pixels at 0 and 7
    # at 1 to 7; near side, 64 pixels at 8, or less near the ends.
    near_side = sum(min(8, row, 63 - row) for row in range(64))
    assert row["assd_px"] == pytest.approx((64 * 8 + 2 * sum(range(1, 8)) + near_side) / 164)


def test_native_counts_include_cropped_sides() -> None:
    truth = box((0, 64), (0, 64))
    row = at_native_size(0.5)(a_sample(truth, CUT), np.ones((SIZE, SIZE), np.float32))
    assert pixels(row) == (64 * 64, 0, 0, 64 * 64)  # cropped pixels are background in both masks
    assert row["hd95_px"] == row["assd_px"] == 0.0


def test_predictions_in_the_padding_are_ignored() -> None:
    truth = box((24, 34), (10, 20))
    everywhere_outside = np.ones((SIZE, SIZE), np.float32)
    everywhere_outside[WIDE.content()] = sure(truth)[WIDE.content()]
    row = at_native_size(0.5)(a_sample(truth, WIDE), everywhere_outside)
    assert (row["fp"], row["fn"], row["dice"], row["hd95_px"]) == (0, 0, 1.0, 0.0)


@given(
    st.integers(20, 150),
    st.integers(20, 150),
    st.sampled_from(["pad", "crop"]),
    st.floats(0.05, 0.95),
    st.integers(0, 99),
)
def test_native_metrics_equal_those_of_restored_masks(
    height: int, width: int, way: str, threshold: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    native = np.zeros((height, width), np.uint8)
    top, left = random.integers(0, height // 2), random.integers(0, width // 2)
    native[top : top + height // 2, left : left + width // 2] = 1
    settings = PreprocessSettings(size=SIZE, geometry=way)  # type: ignore[arg-type]
    sample = a_sample(prepare_mask(native, geometry := plan_geometry(height, width, settings)), geometry)
    assert sample.masks is not None
    probabilities = random.random((SIZE, SIZE), np.float32)
    row = at_native_size(threshold)(sample, probabilities)
    predicted = restore(probabilities, geometry) >= threshold
    truth = restore(sample.masks[0].astype(np.float32), geometry) >= 0.5
    assert predicted.shape == truth.shape == (height, width)
    assert pixels(row) == (
        (predicted & truth).sum(),
        (predicted & ~truth).sum(),
        (~predicted & truth).sum(),
        (~predicted & ~truth).sum(),
    )
    same = at_native_size(0.5)(sample, sample.masks[0].astype(np.float32))
    assert (same["fp"], same["fn"], same["dice"]) == (0, 0, 1.0)
    assert same["hd95_px"] in (0.0, None)


def test_identical_masks_have_no_distance() -> None:
    truth = box((10, 40), (20, 50))
    row = at_native_size(0.5)(a_sample(truth), sure(truth))
    assert (row["dice"], row["sensitivity"], row["precision"], row["hd95_px"], row["assd_px"]) == (1, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("truth", "predicted", "sensitivity", "precision"),
    [
        (box((10, 40), (20, 50)), box((0, 0), (0, 0)), 0.0, 0.0),
        (box((0, 0), (0, 0)), box((10, 40), (20, 50)), None, 0.0),
        (box((0, 0), (0, 0)), box((0, 0), (0, 0)), 1.0, 1.0),
    ],
    ids=["nothing predicted", "nothing there", "neither"],
)
def test_undefined_metrics_are_null(truth: U8, predicted: U8, sensitivity: float | None, precision: float) -> None:
    row = at_native_size(0.5)(a_sample(truth), sure(predicted))
    assert (row["hd95_px"], row["assd_px"]) == (None, None)
    assert (row["sensitivity"], row["precision"]) == (sensitivity, precision)
    about = {"run": "r", "role": "cross", "group": "g"}
    (result,) = table([{**row, **about}], TEST_ROWS).to_pylist()
    assert result == {**row, **about}


# Thresholds


def over(sample: Sample, probabilities: F32) -> evaluation.Row:
    (row,) = evaluation.count_at_thresholds(("lung",))(sample, probabilities[None])
    return row


def test_threshold_counts_equal_single_threshold_counts() -> None:
    random = np.random.default_rng(1)
    sample, probabilities = a_sample(box((10, 40), (20, 50)), WIDE), random.random((SIZE, SIZE), np.float32)
    counts = over(sample, probabilities)["counts"]
    for threshold, result in zip(segmentation.THRESHOLDS, counts, strict=True):
        row = at_prepared_size(threshold)(sample, probabilities)
        assert tuple(result) == pixels(row)[:3]


@pytest.mark.parametrize(("inside", "outside", "expected"), [(0.32, 0.27, 0.3), (0.9, 0.84, 0.85), (0.6, 0.4, 0.5)])
def test_best_threshold_separates_lung_from_background(inside: float, outside: float, expected: float) -> None:
    masks = [box((10, 40), (20, 50)), box((0, 8), (0, 8))]
    rows = [over(a_sample(mask), np.where(mask == 1, inside, outside).astype(np.float32)) for mask in masks]
    assert evaluation.best_thresholds(rows, {"lung": 0.5})["lung"] == expected


def test_best_threshold_uses_means_over_images() -> None:
    """Two images with small lungs outweigh one with large lungs."""
    great, small = box((0, 64), (0, 60)), box((0, 4), (0, 4))
    rows = [over(a_sample(great), np.where(great == 1, 0.22, 0.0).astype(np.float32))]
    rows += [over(a_sample(small), np.where(small == 1, 0.92, 0.72).astype(np.float32)) for _ in range(2)]
    assert evaluation.best_thresholds(rows, {"lung": 0.5})["lung"] == 0.75


# Averages


def test_averages_are_means_over_images() -> None:
    rows = [
        {"class": "lung", "dice": 1.0, "iou": 1.0, "pixel_accuracy": 0.9, "tp": 10**6},
        {"class": "lung", "dice": 0.5, "iou": 1 / 3, "pixel_accuracy": 0.6, "tp": 1},
    ]
    assert evaluation.mean_metrics(rows) == {
        "dice": pytest.approx(0.75),
        "iou": pytest.approx(2 / 3),
        "pixel_accuracy": pytest.approx(0.75),
    }
    assert all(math.isnan(value) for value in evaluation.mean_metrics([]).values())


def test_means_of_several_classes_weigh_each_class_equally() -> None:
    values = (("heart", 0.2), ("opacity", 0.5), ("opacity", 0.7))
    rows = [{"class": name, "dice": dice, "iou": dice, "pixel_accuracy": 1.0} for name, dice in values]
    means = evaluation.mean_metrics(rows)
    assert means["dice"] == pytest.approx((0.2 + 0.6) / 2)
    assert (means["dice_heart"], means["dice_opacity"]) == (pytest.approx(0.2), pytest.approx(0.6))


def test_each_annotated_class_has_a_row() -> None:
    masks = np.stack([box((0, 10), (0, 10)), np.full((SIZE, SIZE), NOT_ANNOTATED, np.uint8), box((0, 4), (0, 4))])
    sample = replace(a_sample(masks[0]), masks=masks)
    thresholds = {"right_lung": 0.5, "heart": 0.5, "opacity": 0.9}
    probabilities = np.stack([sure(masks[0]), np.ones((SIZE, SIZE), np.float32), masks[2] * np.float32(0.8)])
    for make in (evaluation.measure_at_prepared_size, evaluation.measure_at_native_size):
        rows = make(thresholds)(sample, probabilities)
        assert [(row["class"], row["dice"]) for row in rows] == [("right_lung", 1.0), ("opacity", 0.0)]
    assert evaluation.measure_at_native_size(thresholds)(replace(sample, masks=None), probabilities) == []


def test_thresholds_are_chosen_for_each_class() -> None:
    mask = box((10, 40), (20, 50))
    sample = replace(a_sample(mask), masks=np.stack([mask, mask]))
    levels = [np.where(mask == 1, high, low) for high, low in ((0.9, 0.72), (0.3, 0.12))]
    rows = evaluation.count_at_thresholds(("heart", "opacity"))(sample, np.stack(levels).astype(np.float32))
    chosen = evaluation.best_thresholds(rows, {"heart": 0.5, "opacity": 0.5, "lung": 0.4})
    assert chosen == {"heart": 0.75, "opacity": 0.3, "lung": 0.4}


def test_means_are_per_role_and_dataset() -> None:
    def row(role: str, dataset: str, dice: float) -> evaluation.Row:
        return {"class": "lung", "role": role, "dataset": dataset, "dice": dice, "iou": dice / 2, "pixel_accuracy": 1.0}

    rows = [row("held-out", "b", 0.4), row("cross", "a", 0.1), row("held-out", "b", 0.6), row("held-out", "a", 0.9)]
    means = evaluation.mean_metrics_by_dataset(rows)
    result = [(mean["role"], mean["dataset"], mean["images"], pytest.approx(mean["dice"])) for mean in means]
    assert result == [("cross", "a", 1, 0.1), ("held-out", "a", 1, 0.9), ("held-out", "b", 2, 0.5)]
    assert evaluation.mean_metrics_by_dataset([]) == []


@pytest.mark.parametrize("make", [at_prepared_size, at_native_size])
def test_measuring_changes_neither_mask_nor_probabilities(make: Callable[[float], MeasureOne]) -> None:
    mask = box((10, 40), (20, 50))
    probabilities = np.random.default_rng(0).random((SIZE, SIZE), np.float32)
    before = mask.copy(), probabilities.copy()
    make(0.5)(a_sample(mask, WIDE), probabilities)
    np.testing.assert_array_equal(mask, before[0])
    np.testing.assert_array_equal(probabilities, before[1])
