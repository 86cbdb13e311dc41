"""Measures of drawn masks whose values are known."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from lungseg.arrays import U8
from lungseg.imaging.derived_measures import (
    MEASURES,
    cardiothoracic_ratio,
    find_mirrored,
    heart_offset,
    measure,
    thorax_width,
)
from lungseg.imaging.run_lengths import Runs

SHAPE = (60, 100)


def box(top: int, bottom: int, left: int, right: int) -> U8:
    mask = np.zeros(SHAPE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def chest(**changes: U8) -> dict[str, U8]:
    """Lungs from column 10 to 89, heart from 40 to 71, opacity in a quarter of the right lung."""
    return {
        "right_lung": box(10, 50, 10, 40),
        "left_lung": box(10, 50, 60, 90),
        "heart": box(30, 50, 40, 72),
        "opacity": box(10, 30, 25, 45),
        **changes,
    }


def as_runs(masks: Mapping[str, U8]) -> dict[str, Runs]:
    return {name: Runs.from_mask(mask) for name, mask in masks.items()}


def test_measures_of_drawn_masks_are_exact() -> None:
    measured = measure(as_runs(chest(left_lung=box(10, 40, 60, 90))))
    assert measured == {
        "cardiothoracic_ratio": 32 / 80,
        "right_lung_opaque_share": 0.25,
        "left_lung_opaque_share": 0.0,
        "right_left_ratio": 4 / 3,
    }


def test_thorax_is_measured_in_rows_that_cross_both_lungs() -> None:
    right = box(0, 20, 20, 40) | box(40, 60, 0, 40)  # widest where there is no left lung
    left = box(0, 20, 60, 80) | box(10, 12, 60, 95)
    assert thorax_width(Runs.from_mask(right), Runs.from_mask(left)) == 75
    assert thorax_width(Runs.from_mask(box(0, 9, 0, 9)), Runs.from_mask(box(9, 20, 50, 60))) == 0


@given(*(arrays(np.uint8, (7, 9), elements=st.integers(0, 1)) for _ in range(3)))
def test_ratio_is_that_of_the_pixels(heart: U8, right: U8, left: U8) -> None:
    widths = [
        np.flatnonzero(row).max() - np.flatnonzero(row).min() + 1
        for row, on_right, on_left in zip(right | left, right, left, strict=True)
        if on_right.any() and on_left.any()
    ]
    columns = np.flatnonzero(heart.any(axis=0))
    expected = (columns.max() - columns.min() + 1) / max(widths) if columns.size and widths else None
    assert cardiothoracic_ratio(*map(Runs.from_mask, (heart, right, left))) == expected


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("heart", {"cardiothoracic_ratio"}),
        ("opacity", {"right_lung_opaque_share", "left_lung_opaque_share"}),
        ("right_lung", {"cardiothoracic_ratio", "right_lung_opaque_share", "right_left_ratio"}),
        ("left_lung", {"cardiothoracic_ratio", "left_lung_opaque_share", "right_left_ratio"}),
    ],
)
def test_missing_class_leaves_its_measures_unknown(missing: str, unknown: set[str]) -> None:
    masks = as_runs(chest())
    del masks[missing]
    assert {name for name, value in measure(masks).items() if value is None} == unknown
    empty = measure({**masks, missing: Runs.from_mask(np.zeros(SHAPE, np.uint8))})
    if missing == "opacity":
        assert (empty["right_lung_opaque_share"], empty["left_lung_opaque_share"]) == (0.0, 0.0)
    else:
        assert {name for name, value in empty.items() if value is None} == unknown


def test_model_of_lungs_has_no_measures() -> None:
    assert measure({"lung": Runs.from_mask(box(10, 50, 10, 90))}) == dict.fromkeys(MEASURES)


def test_heart_on_the_right_is_flagged() -> None:
    masks = chest()
    assert find_mirrored(as_runs(masks)) == []
    mirrored = as_runs({name: np.ascontiguousarray(mask[:, ::-1]) for name, mask in masks.items()})
    assert find_mirrored(mirrored) == ["heart_on_right"]
    named_by_place = {**mirrored, "right_lung": mirrored["left_lung"], "left_lung": mirrored["right_lung"]}
    assert find_mirrored(named_by_place) == ["heart_on_right"]


@pytest.mark.parametrize(("shift", "flags"), [(0, []), (-1, []), (-2, ["heart_on_right"])])
def test_heart_near_the_midline_is_not_flagged(shift: int, flags: list[str]) -> None:
    masks = as_runs(chest(heart=box(30, 50, 35 + shift, 65 + shift)))
    assert heart_offset(masks) == pytest.approx(shift / 80)
    assert find_mirrored(masks) == flags


def test_heart_beside_a_far_smaller_lung_is_not_flagged() -> None:
    masks = as_runs(chest(heart=box(30, 50, 10, 30)))
    assert find_mirrored(masks) == ["heart_on_right"]
    small = Runs.from_mask(box(30, 40, 60, 70))
    assert small.area < masks["right_lung"].area / 5
    assert find_mirrored({**masks, "left_lung": small}) == []


@pytest.mark.parametrize("missing", ["heart", "right_lung", "left_lung"])
def test_nothing_is_flagged_without_heart_and_lungs(missing: str) -> None:
    masks = as_runs(chest(heart=box(30, 50, 10, 30)))
    assert find_mirrored(masks) == ["heart_on_right"]
    assert find_mirrored({name: runs for name, runs in masks.items() if name != missing}) == []
    assert find_mirrored({**masks, missing: Runs.from_mask(np.zeros(SHAPE, np.uint8))}) == []
