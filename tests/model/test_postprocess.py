"""Components counted, lungs kept, holes filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from lungseg.model.postprocess import components, keep_lungs

U8 = NDArray[np.uint8]
unhurried = settings(deadline=None)  # other work may hold the machine up
EIGHT = np.ones((3, 3))
masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def drawn(*rows: str) -> U8:
    """Read a mask off a drawing: # is 1."""
    return np.array([[cell == "#" for cell in row] for row in rows], np.uint8)


@unhurried
@given(masks)
def test_components_are_those_of_scipy(mask: U8) -> None:
    assert components(mask) == ndimage.label(mask, EIGHT)[1]


def test_diagonal_neighbours_are_one_component() -> None:
    assert components(drawn("#..", ".#.", "..#")) == 1
    assert components(drawn("#.#", "...", "#.#")) == 4
    assert components(np.zeros((5, 5), np.uint8)) == 0
    assert components(np.ones((5, 5), np.uint8)) == 1


@unhurried
@given(masks)
def test_what_is_kept_is_the_two_largest_components_filled(mask: U8) -> None:
    kept = keep_lungs(mask)
    labels, count = ndimage.label(mask, EIGHT)
    areas = sorted((int((labels == label).sum()) for label in range(1, count + 1)), reverse=True)
    assert kept.dtype == np.uint8
    assert kept.shape == mask.shape
    assert set(np.unique(kept)) <= {0, 1}
    untouched = (kept & mask).astype(bool)
    # A dropped piece may lie in a hole and come back with its filling; what was kept is there in full.
    whole = [area for label, area in enumerate(np.bincount(labels[untouched], minlength=count + 1)[1:], 1)]
    assert sorted(whole, reverse=True)[:2] == areas[:2] + [0] * (len(whole[:2]) - len(areas[:2]))
    assert (ndimage.binary_fill_holes(kept) == kept).all()


@unhurried
@given(masks)
def test_keeping_twice_is_keeping_once(mask: U8) -> None:
    once = keep_lungs(mask)
    assert (keep_lungs(once) == once).all()
    assert components(once) <= 2


def test_specks_go_and_the_two_lungs_stay() -> None:
    mask = drawn("###...##", "###...##", "........", "#..#....")
    assert (keep_lungs(mask) == drawn("###...##", "###...##", "........", "........")).all()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("####", "#..#", "#..#", "####"), ("####",) * 4),
        ((".##.", "#..#", ".##."), (".##.", "####", ".##.")),  # closed by diagonals only
        (("####", "#..#", "#..#", "#.##"), ("####", "#..#", "#..#", "#.##")),  # open at the frame's edge
        (("#.#", "#.#", "###"), ("#.#", "#.#", "###")),
    ],
    ids=["hole", "diagonal ring", "open at the edge", "bay"],
)
def test_a_hole_is_filled_and_a_bay_is_not(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    assert (keep_lungs(drawn(*before)) == drawn(*after)).all()


def test_a_speck_in_a_hole_goes_with_the_hole() -> None:
    mask = drawn("#####..#", "#...#..#", "#.#.#..#", "#...#..#", "#####..#")
    assert (keep_lungs(mask) == drawn(*["#####..#"] * 5)).all()


def test_empty_and_full_masks_stay_as_they_are() -> None:
    for mask in (np.zeros((6, 4), np.uint8), np.ones((6, 4), np.uint8)):
        assert (keep_lungs(mask) == mask).all()


def test_the_mask_itself_is_not_changed() -> None:
    mask = drawn("###.", "#.#.", "###.", "...#")
    copy = mask.copy()
    keep_lungs(mask)
    assert (mask == copy).all()
