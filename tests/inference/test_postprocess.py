"""Post-processing: components, specks, lungs, holes, smoothing."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from lungseg.config import PostprocessSettings
from lungseg.imaging import lung_sides
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import postprocess

U8 = NDArray[np.uint8]
DISABLED = {"lungs": False, "holes": False}
EIGHT = np.ones((3, 3))
masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
shares = st.floats(0.0, 1.0)
radii = st.floats(0.0, 0.3)
settings_strategy = st.builds(
    PostprocessSettings, specks=shares, lungs=st.booleans(), holes=st.booleans(), smooth=st.just(0.05)
)


def clean(mask: U8, settings: PostprocessSettings) -> U8:
    return postprocess.clean(Runs.from_mask(mask), settings).to_mask()


def drop_specks(mask: U8, share: float) -> U8:
    return postprocess.drop_specks(Runs.from_mask(mask), share).to_mask()


def keep_lungs(mask: U8) -> U8:
    return postprocess.keep_lungs(Runs.from_mask(mask)).to_mask()


def fill_holes(mask: U8) -> U8:
    return postprocess.fill_holes(Runs.from_mask(mask)).to_mask()


def smooth(mask: U8, share: float) -> U8:
    return postprocess.smooth(Runs.from_mask(mask), share).to_mask()


def count_components(mask: U8) -> int:
    return postprocess.count_components(Runs.from_mask(mask))


def midline(mask: U8) -> int:
    return lung_sides.midline(Runs.from_mask(mask))


def draw(*rows: str) -> U8:
    """Create a mask from a drawing: # is 1."""
    return np.array([[cell == "#" for cell in row] for row in rows], np.uint8)


def components_of(mask: U8) -> list[U8]:
    labels, count = ndimage.label(mask, EIGHT)
    return [(labels == label).astype(np.uint8) for label in range(1, count + 1)]


def is_valid_mask(result: U8, mask: U8) -> bool:
    return result.dtype == np.uint8 and result.shape == mask.shape and set(np.unique(result)) <= {0, 1}


def pixels_on(component: U8, side: slice) -> int:
    return int(component[:, side].sum())


@given(masks)
def test_components_are_those_of_scipy(mask: U8) -> None:
    assert count_components(mask) == ndimage.label(mask, EIGHT)[1]


def test_diagonal_neighbours_are_one_component() -> None:
    assert count_components(draw("#..", ".#.", "..#")) == 1
    assert count_components(draw("#.#", "...", "#.#")) == 4
    assert count_components(np.zeros((5, 5), np.uint8)) == 0
    assert count_components(np.ones((5, 5), np.uint8)) == 1


@given(masks, shares)
def test_components_under_the_share_are_dropped(mask: U8, share: float) -> None:
    result = drop_specks(mask, share)
    kept = [component for component in components_of(mask) if component.sum() >= share * mask.sum()]
    assert is_valid_mask(result, mask)
    assert (result == np.sum(kept, axis=0, initial=0, dtype=np.uint8)).all() if kept else not result.any()


def test_component_of_exactly_the_share_stays() -> None:
    mask = draw("###.#", "###..", "###..")  # 9 and 1 of 10
    assert (drop_specks(mask, 0.1) == mask).all()
    assert (drop_specks(mask, 0.11) == draw("###..", "###..", "###..")).all()


@given(masks)
def test_at_most_two_complete_components_are_kept(mask: U8) -> None:
    result = keep_lungs(mask)
    kept = components_of(result)
    assert is_valid_mask(result, mask)
    assert (len(kept) >= 1) == bool(mask.any())
    assert len(kept) <= 2
    before = {component.tobytes() for component in components_of(mask)}
    assert {component.tobytes() for component in kept} <= before


@given(masks)
def test_keep_lungs_is_idempotent(mask: U8) -> None:
    once = keep_lungs(mask)
    assert (keep_lungs(once) == once).all()


@given(masks)
def test_kept_lung_is_largest_on_its_side(mask: U8) -> None:
    result = keep_lungs(mask)
    kept, middle = components_of(result), midline(result)
    for component in kept:
        sides = [side for side in (slice(None, middle), slice(middle, None)) if pixels_on(component, side)]
        assert any(pixels_on(component, side) == max(pixels_on(other, side) for other in kept) for side in sides)
        assert component.sum() >= 0.05 * max(other.sum() for other in kept)


@given(masks)
def test_largest_component_of_a_side_stays(mask: U8) -> None:
    result, middle = keep_lungs(mask), midline(mask)
    if midline(result) != middle:
        return
    for side in (slice(None, middle), slice(middle, None)):
        rivals = sorted((pixels_on(component, side), i) for i, component in enumerate(components_of(mask)))
        if not rivals or not rivals[-1][0] or (len(rivals) > 1 and rivals[-1][0] == rivals[-2][0]):
            continue
        largest = components_of(mask)[rivals[-1][1]]
        assert (result[largest == 1] == 1).all() or largest.sum() < 0.05 * max(
            component.sum() for component in components_of(mask)
        )


def test_false_region_beside_a_lung_goes_smaller_lung_stays() -> None:
    mask = draw(
        "####.......##.",
        "####.......##.",
        "####..........",
        "..............",
        "###...........",
        "###...........",
    )
    assert (keep_lungs(mask) == draw(*["####.......##."] * 2, "####..........", *[".............."] * 3)).all()


def test_specks_go_and_two_lungs_stay() -> None:
    mask = draw("###...##", "###...##", "........", "#..#....")
    assert (keep_lungs(mask) == draw("###...##", "###...##", "........", "........")).all()


def test_joined_lungs_take_both_sides() -> None:
    mask = draw("###..###", "########", "###..###", "........", "##....##")
    assert (keep_lungs(mask) == draw("###..###", "########", "###..###", "........", "........")).all()


@pytest.mark.parametrize(("height", "stays"), [(1, False), (2, True)], ids=["under 5 %", "5 %"])
def test_second_lung_under_5_percent_is_dropped(height: int, stays: bool) -> None:
    mask = np.zeros((10, 16), np.uint8)
    mask[:, :4] = 1  # 40
    mask[:height, 14] = 1
    assert count_components(keep_lungs(mask)) == 1 + stays


def test_single_lung_stays_on_either_side() -> None:
    left = draw("##......", "##......", "........", "#.......")
    expected = draw("##......", "##......", "........", "........")
    assert (keep_lungs(left) == expected).all()
    assert (keep_lungs(np.ascontiguousarray(left[:, ::-1])) == expected[:, ::-1]).all()


def test_selection_repeats_when_the_midline_moves() -> None:
    mask = draw("..##..", "......", "#..#..")
    assert (midline(mask), midline(draw("..##..", "......", "#....."))) == (2, 3)
    assert (keep_lungs(mask) == draw("..##..", "......", "......")).all()


@given(masks)
def test_holes_are_filled_as_by_scipy(mask: U8) -> None:
    result = fill_holes(mask)
    assert is_valid_mask(result, mask)
    assert (result == ndimage.binary_fill_holes(mask)).all()


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
def test_holes_are_filled_and_bays_are_not(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    assert (fill_holes(draw(*before)) == draw(*after)).all()


@given(masks, radii)
def test_smoothing_is_idempotent_and_mirror_symmetric(mask: U8, share: float) -> None:
    once = smooth(mask, share)
    assert is_valid_mask(once, mask)
    assert (smooth(once, share) == once).all()
    assert (smooth(np.ascontiguousarray(mask[:, ::-1]), share) == once[:, ::-1]).all()


@given(masks)
def test_radius_under_half_a_pixel_changes_nothing(mask: U8) -> None:
    assert (smooth(mask, 0.49 / max(mask.shape)) == mask).all()


def test_smoothing_removes_a_spur_and_closes_a_cleft() -> None:
    block = np.zeros((40, 60), np.uint8)
    block[10:30, 10:50] = 1
    damaged = block.copy()
    damaged[5:10, 20] = 1
    damaged[10:30, 40] = 0
    result = smooth(damaged, 2 / 60)
    assert not result[:9].any()  # the disk's own tip fits into the spur's foot
    assert (result[14:26] == block[14:26]).all()


def test_smoothing_keeps_a_lung_at_the_image_border() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :20] = 1
    assert (smooth(mask, 0.05) == mask).all()


@given(masks)
def test_disabled_steps_change_nothing(mask: U8) -> None:
    assert (clean(mask, PostprocessSettings(**DISABLED)) == mask).all()


@given(masks, settings_strategy)
def test_steps_run_in_documented_order(mask: U8, settings: PostprocessSettings) -> None:
    expected = drop_specks(mask, settings.specks)
    expected = keep_lungs(expected) if settings.lungs else expected
    expected = fill_holes(expected) if settings.holes else expected
    assert (clean(mask, settings) == smooth(expected, settings.smooth)).all()


def test_speck_in_a_hole_goes_before_filling() -> None:
    mask = draw("#####...#", "#...#...#", "#.#.#...#", "#...#...#", "#####...#")
    hollow = draw("#####...#", "#...#...#", "#...#...#", "#...#...#", "#####...#")
    filled = draw(*["#####...#"] * 5)
    for settings in ({**DISABLED, "specks": 0.06}, {**DISABLED, "lungs": True}):
        assert (clean(mask, PostprocessSettings.model_validate(settings)) == hollow).all()
        assert (clean(mask, PostprocessSettings.model_validate({**settings, "holes": True})) == filled).all()


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_stay_unchanged(value: int) -> None:
    mask = np.full((30, 24), value, np.uint8)
    settings = PostprocessSettings(specks=0.5, lungs=True, holes=True, smooth=0.05)
    assert (clean(mask, settings) == mask).all()
