"""Components counted, specks dropped, lungs kept, holes filled, borders smoothed; all by setting."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from lungseg.config import PostprocessSettings
from lungseg.inference.postprocess import clean, count_components, drop_specks, fill_holes, keep_lungs, midline, smooth

U8 = NDArray[np.uint8]
NOTHING = {"lungs": False, "holes": False}
EIGHT = np.ones((3, 3))
masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
shares = st.floats(0.0, 1.0)
radii = st.floats(0.0, 0.3)
cleanings = st.builds(
    PostprocessSettings, specks=shares, lungs=st.booleans(), holes=st.booleans(), smooth=st.just(0.05)
)


def drawn(*rows: str) -> U8:
    """Read a mask off a drawing: # is 1."""
    return np.array([[cell == "#" for cell in row] for row in rows], np.uint8)


def parts_of(mask: U8) -> list[U8]:
    labels, count = ndimage.label(mask, EIGHT)
    return [(labels == label).astype(np.uint8) for label in range(1, count + 1)]


def is_mask_like(found: U8, mask: U8) -> bool:
    return found.dtype == np.uint8 and found.shape == mask.shape and set(np.unique(found)) <= {0, 1}


def most_on(part: U8, side: slice) -> int:
    return int(part[:, side].sum())


@given(masks)
def test_components_are_those_of_scipy(mask: U8) -> None:
    assert count_components(mask) == ndimage.label(mask, EIGHT)[1]


def test_diagonal_neighbours_are_one_component() -> None:
    assert count_components(drawn("#..", ".#.", "..#")) == 1
    assert count_components(drawn("#.#", "...", "#.#")) == 4
    assert count_components(np.zeros((5, 5), np.uint8)) == 0
    assert count_components(np.ones((5, 5), np.uint8)) == 1


@given(masks, shares)
def test_specks_are_the_components_smaller_than_the_share_of_the_whole_mask(mask: U8, share: float) -> None:
    found = drop_specks(mask, share)
    kept = [part for part in parts_of(mask) if part.sum() >= share * mask.sum()]
    assert is_mask_like(found, mask)
    assert (found == np.sum(kept, axis=0, initial=0, dtype=np.uint8)).all() if kept else not found.any()


def test_a_component_of_just_the_share_is_no_speck() -> None:
    mask = drawn("###.#", "###..", "###..")  # 9 and 1 of 10
    assert (drop_specks(mask, 0.1) == mask).all()
    assert (drop_specks(mask, 0.11) == drawn("###..", "###..", "###..")).all()


@given(masks)
def test_at_most_two_lungs_are_kept_and_each_is_a_whole_component(mask: U8) -> None:
    found = keep_lungs(mask)
    kept = parts_of(found)
    assert is_mask_like(found, mask)
    assert (len(kept) >= 1) == bool(mask.any())
    assert len(kept) <= 2
    before = {part.tobytes() for part in parts_of(mask)}
    assert {part.tobytes() for part in kept} <= before


@given(masks)
def test_keeping_twice_is_keeping_once(mask: U8) -> None:
    once = keep_lungs(mask)
    assert (keep_lungs(once) == once).all()


@given(masks)
def test_what_is_kept_has_most_on_its_side_of_the_midline_and_is_no_speck_beside_the_other(mask: U8) -> None:
    found = keep_lungs(mask)
    kept, middle = parts_of(found), midline(found)
    for part in kept:
        sides = [side for side in (slice(None, middle), slice(middle, None)) if most_on(part, side)]
        assert any(most_on(part, side) == max(most_on(other, side) for other in kept) for side in sides)
        assert part.sum() >= 0.05 * max(other.sum() for other in kept)


@given(masks)
def test_the_component_with_most_pixels_on_a_side_stays_when_the_midline_does_not_move(mask: U8) -> None:
    found, middle = keep_lungs(mask), midline(mask)
    if midline(found) != middle:
        return
    for side in (slice(None, middle), slice(middle, None)):
        rivals = sorted((most_on(part, side), i) for i, part in enumerate(parts_of(mask)))
        if not rivals or not rivals[-1][0] or (len(rivals) > 1 and rivals[-1][0] == rivals[-2][0]):
            continue
        best = parts_of(mask)[rivals[-1][1]]
        assert (found[best == 1] == 1).all() or best.sum() < 0.05 * max(part.sum() for part in parts_of(mask))


def test_a_large_false_part_beside_one_lung_goes_and_the_smaller_lung_on_the_other_side_stays() -> None:
    mask = drawn(
        "####.......##.",
        "####.......##.",
        "####..........",
        "..............",
        "###...........",
        "###...........",
    )
    assert (keep_lungs(mask) == drawn(*["####.......##."] * 2, "####..........", *[".............."] * 3)).all()


def test_specks_go_and_the_two_lungs_stay() -> None:
    mask = drawn("###...##", "###...##", "........", "#..#....")
    assert (keep_lungs(mask) == drawn("###...##", "###...##", "........", "........")).all()


def test_joined_lungs_stay_and_take_both_sides() -> None:
    mask = drawn("###..###", "########", "###..###", "........", "##....##")
    assert (keep_lungs(mask) == drawn("###..###", "########", "###..###", "........", "........")).all()


@pytest.mark.parametrize(("height", "stays"), [(1, False), (2, True)], ids=["under 5 %", "5 %"])
def test_a_second_lung_under_a_twentieth_of_the_first_is_none(height: int, stays: bool) -> None:
    mask = np.zeros((10, 16), np.uint8)
    mask[:, :4] = 1  # 40
    mask[:height, 14] = 1
    assert count_components(keep_lungs(mask)) == 1 + stays


def test_a_lung_alone_stays_alone_on_either_side() -> None:
    left = drawn("##......", "##......", "........", "#.......")
    expected = drawn("##......", "##......", "........", "........")
    assert (keep_lungs(left) == expected).all()
    assert (keep_lungs(np.ascontiguousarray(left[:, ::-1])) == expected[:, ::-1]).all()


def test_lungs_are_kept_anew_where_the_dropped_part_had_moved_the_midline() -> None:
    mask = drawn("..##..", "......", "#..#..")
    assert (midline(mask), midline(drawn("..##..", "......", "#....."))) == (2, 3)
    assert (keep_lungs(mask) == drawn("..##..", "......", "......")).all()


@given(masks)
def test_holes_are_filled_as_scipy_fills_them(mask: U8) -> None:
    found = fill_holes(mask)
    assert is_mask_like(found, mask)
    assert (found == ndimage.binary_fill_holes(mask)).all()


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
    assert (fill_holes(drawn(*before)) == drawn(*after)).all()


@given(masks, radii)
def test_smoothing_twice_is_smoothing_once_and_the_mirrored_mask_is_smoothed_alike(mask: U8, share: float) -> None:
    once = smooth(mask, share)
    assert is_mask_like(once, mask)
    assert (smooth(once, share) == once).all()
    assert (smooth(np.ascontiguousarray(mask[:, ::-1]), share) == once[:, ::-1]).all()


@given(masks)
def test_under_half_a_pixel_nothing_is_smoothed(mask: U8) -> None:
    assert (smooth(mask, 0.49 / max(mask.shape)) == mask).all()


def test_smoothing_takes_off_a_spur_closes_a_cleft_and_leaves_a_straight_border() -> None:
    block = np.zeros((40, 60), np.uint8)
    block[10:30, 10:50] = 1
    spoilt = block.copy()
    spoilt[5:10, 20] = 1
    spoilt[10:30, 40] = 0
    found = smooth(spoilt, 2 / 60)
    assert not found[:9].any()  # the disk's own tip fits into the spur's foot
    assert (found[14:26] == block[14:26]).all()


def test_a_lung_at_the_pictures_edge_is_not_eaten_there() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :20] = 1
    assert (smooth(mask, 0.05) == mask).all()


@given(masks)
def test_the_midline_is_an_emptiest_column_of_the_middle_third(mask: U8) -> None:
    width = mask.shape[1]
    found, filled = midline(mask), mask.sum(axis=0)
    third = [column for column in range(width) if width // 3 <= column < width - width // 3] or [width // 3]
    assert found in third
    assert filled[found] == min(filled[column] for column in third)
    alike = [column for column in third if filled[column] == filled[found]]
    assert abs(found - width / 2) == min(abs(column - width / 2) for column in alike)


def test_the_midline_of_nothing_and_of_everything_is_the_middle() -> None:
    for mask in (np.zeros((6, 12), np.uint8), np.ones((6, 12), np.uint8)):
        assert midline(mask) == 6


@given(masks)
def test_nothing_is_done_that_is_not_asked_for(mask: U8) -> None:
    assert (clean(mask, PostprocessSettings(**NOTHING)) == mask).all()


@given(masks, cleanings)
def test_cleaning_is_specks_then_lungs_then_holes_then_border(mask: U8, asked: PostprocessSettings) -> None:
    expected = drop_specks(mask, asked.specks)
    expected = keep_lungs(expected) if asked.lungs else expected
    expected = fill_holes(expected) if asked.holes else expected
    assert (clean(mask, asked) == smooth(expected, asked.smooth)).all()


def test_a_speck_in_a_hole_goes_before_the_hole_is_filled() -> None:
    mask = drawn("#####...#", "#...#...#", "#.#.#...#", "#...#...#", "#####...#")
    hollow = drawn("#####...#", "#...#...#", "#...#...#", "#...#...#", "#####...#")
    whole = drawn(*["#####...#"] * 5)
    for asked in ({**NOTHING, "specks": 0.06}, {**NOTHING, "lungs": True}):
        assert (clean(mask, PostprocessSettings.model_validate(asked)) == hollow).all()
        assert (clean(mask, PostprocessSettings.model_validate({**asked, "holes": True})) == whole).all()


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_stay_as_they_are(value: int) -> None:
    mask = np.full((30, 24), value, np.uint8)
    asked = PostprocessSettings(specks=0.5, lungs=True, holes=True, smooth=0.05)
    assert (clean(mask, asked) == mask).all()


@given(masks, cleanings)
def test_the_mask_itself_is_not_changed(mask: U8, asked: PostprocessSettings) -> None:
    copy = mask.copy()
    clean(mask, asked)
    assert (mask == copy).all()
