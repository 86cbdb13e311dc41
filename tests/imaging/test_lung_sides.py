"""Right and left lung, compared with slow and simple computations."""

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from lungseg.imaging import lung_sides
from lungseg.imaging.lung_sides import emptiest_column, split_sides
from lungseg.imaging.run_lengths import Runs

U8 = NDArray[np.uint8]
EIGHT = np.ones((3, 3))
masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def count_side_pixels(mask: U8) -> tuple[int, int]:
    return lung_sides.count_side_pixels(Runs.from_mask(mask))


def midline(mask: U8) -> int:
    return lung_sides.midline(Runs.from_mask(mask))


def draw(*rows: str) -> U8:
    """Create a mask from a drawing: # is 1."""
    return np.array([[cell == "#" for cell in row] for row in rows], np.uint8)


def draw_lungs(*ellipses: tuple[int, int, int, int]) -> U8:
    """Draw ellipses (centre x, centre y, half width, half height) on 200 x 200 px."""
    mask = np.zeros((200, 200), np.uint8)
    for x, y, width, height in ellipses:
        cv2.ellipse(mask, (x, y), (width, height), 0, 0, 360, 1, -1)
    return mask


RIGHT, LEFT = (60, 100, 30, 70), (140, 100, 30, 70)


@given(masks)
def test_component_belongs_to_its_larger_side_unless_both_lungs(mask: U8) -> None:
    labels, count = ndimage.label(mask, EIGHT)
    middle, right = midline(mask), 0
    for label in range(1, count + 1):
        first, second = int((labels[:, :middle] == label).sum()), int((labels[:, middle:] == label).sum())
        if min(first, second) >= 0.25 * (first + second):
            right += first
        elif first > second:
            right += first + second
    assert count_side_pixels(mask)[0] == right


def test_right_lung_is_on_the_left_of_the_image() -> None:
    right, left = split_sides(draw("###....#", "###....#", "........"))
    assert (right == draw("###.....", "###.....", "........")).all()
    assert (left == draw(".......#", ".......#", "........")).all()


def test_only_joined_lungs_are_divided_at_the_midline() -> None:
    crossing = draw("######..", "####....", "####...#", "####...#")
    assert midline(crossing) == 4
    assert count_side_pixels(crossing) == (18, 2)
    joined = draw("###..###", "###..###", "########")
    assert midline(joined) == 4
    assert count_side_pixels(joined) == (10, 10)


@given(masks)
def test_split_sides_match_the_measured_areas(mask: U8) -> None:
    right, left = split_sides(mask)
    for lung in (right, left):
        assert lung.dtype == np.uint8
        assert lung.shape == mask.shape
    assert (right + left == mask).all()
    assert (right.sum(), left.sum()) == count_side_pixels(mask)


@given(masks)
def test_components_are_split_only_at_the_midline(mask: U8) -> None:
    right, left = split_sides(mask)
    labels, count = ndimage.label(mask, EIGHT)
    middle = midline(mask)
    for label in range(1, count + 1):
        component = labels == label
        if (right[component] == 1).any() and (left[component] == 1).any():
            assert (right[:, :middle][component[:, :middle]] == 1).all()
            assert (left[:, middle:][component[:, middle:]] == 1).all()


@given(masks)
def test_midline_is_the_emptiest_column_of_the_middle_third(mask: U8) -> None:
    width = mask.shape[1]
    filled = mask.sum(axis=0, dtype=np.int64)
    result = emptiest_column(filled, width // 3, max(width // 3 + 1, width - width // 3), width / 2)
    third = [column for column in range(width) if width // 3 <= column < width - width // 3] or [width // 3]
    assert result in third
    assert filled[result] == min(filled[column] for column in third)
    alike = [column for column in third if filled[column] == filled[result]]
    assert abs(result - width / 2) == min(abs(column - width / 2) for column in alike)
    if min(mask[:, :result].sum(), mask[:, result:].sum()) >= 0.2 * mask.sum():
        assert midline(mask) == result


@pytest.mark.parametrize("side", [(0, 150), (150, 0)])
def test_lungs_beside_the_centre_are_two(side: tuple[int, int]) -> None:
    lungs = draw_lungs(RIGHT, LEFT)
    right, left = split_sides(np.pad(lungs, ((0, 0), side)))
    assert (right == np.pad(draw_lungs(RIGHT), ((0, 0), side))).all()
    assert (left == np.pad(draw_lungs(LEFT), ((0, 0), side))).all()


@pytest.mark.parametrize("other", [(60, 190, 25, 9), (105, 60, 6, 10)])
def test_other_region_beside_the_centre_is_no_lung(other: tuple[int, int, int, int]) -> None:
    """Below the lung, or small beside it."""
    mask = np.pad(draw_lungs(RIGHT, other), ((0, 0), (0, 150)))
    right, left = split_sides(mask)
    assert (right == mask).all()
    assert not left.any()


def test_midline_of_empty_and_full_masks_is_the_middle() -> None:
    for mask in (np.zeros((6, 12), np.uint8), np.ones((6, 12), np.uint8)):
        assert midline(mask) == 6


def test_bridged_lungs_are_divided_where_the_bridge_is_narrow() -> None:
    mask = draw_lungs(RIGHT, LEFT)
    mask[95:105, 80:120] = 1
    right, left = split_sides(mask)
    assert (right[:, :90] == mask[:, :90]).all()
    assert (left[:, 110:] == mask[:, 110:]).all()
    assert not right[:, 110:].any()
    assert not left[:, :90].any()


@pytest.mark.parametrize("lung", [RIGHT, LEFT])
def test_single_lung_leaves_the_other_side_empty(lung: tuple[int, int, int, int]) -> None:
    mask = draw_lungs(lung)
    right, left = split_sides(mask)
    own, other = (right, left) if lung is RIGHT else (left, right)
    assert (own == mask).all()
    assert not other.any()


def test_islands_belong_to_the_lung_of_their_side() -> None:
    right, left = split_sides(draw_lungs(RIGHT, (140, 60, 30, 40), (140, 160, 20, 20)))
    assert (right == draw_lungs(RIGHT)).all()
    assert (left == draw_lungs((140, 60, 30, 40), (140, 160, 20, 20))).all()


def test_lungs_of_an_empty_mask_are_empty() -> None:
    right, left = split_sides(np.zeros((5, 7), np.uint8))
    assert right.shape == left.shape == (5, 7)
    assert not right.any()
    assert not left.any()
