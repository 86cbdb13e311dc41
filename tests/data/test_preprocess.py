"""A picture of any size to its square and back, and the grey levels."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lungseg.config import PreprocessSettings
from lungseg.data import preprocess
from lungseg.schema import Geometry

U8 = NDArray[np.uint8]
MODES = ["equalize", "clahe", "percentile", "none"]
SIDES = st.integers(40, 700)
SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).random((180, 160)), (0, 0), 6.0)
SMOOTH = (SMOOTH - SMOOTH.min()) / (SMOOTH.max() - SMOOTH.min())
GREY: U8 = np.rint(SMOOTH * 254 + 1).astype(np.uint8)


def of(size: int, geometry: str = "pad", histogram: str = "none") -> PreprocessSettings:
    return PreprocessSettings.model_validate({"size": size, "geometry": geometry, "histogram": histogram})


def dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


# Geometry


@given(SIDES, SIDES, st.sampled_from([64, 256, 512]), st.sampled_from(["pad", "crop"]))
def test_the_picture_keeps_its_proportions_and_lies_in_the_middle(
    height: int, width: int, size: int, geometry: str
) -> None:
    place = preprocess.plan(height, width, of(size, geometry))
    side = max(height, width) if geometry == "pad" else min(height, width)
    assert (place.native_height, place.native_width, place.size) == (height, width, size)
    for native, resized, start in (
        (height, place.resized_height, place.top),
        (width, place.resized_width, place.left),
    ):
        assert abs(resized - native * size / side) <= 0.5
        assert start <= (size - resized) / 2 < start + 1
        assert (start >= 0) if geometry == "pad" else (start <= 0)
    reach = max if geometry == "pad" else min
    assert reach(place.resized_height, place.resized_width) == size


@settings(max_examples=60)
@given(
    SIDES, SIDES, st.sampled_from([64, 256]), st.sampled_from(["pad", "crop"]), st.sampled_from([np.uint8, np.uint16])
)
def test_a_square_is_whole_and_what_is_around_the_picture_is_black(
    height: int, width: int, size: int, geometry: str, depth: type[Any]
) -> None:
    image = np.full((height, width), 200, depth)
    mask = np.ones((height, width), np.uint8)
    square, place = preprocess.prepare_image(image, of(size, geometry))
    small = preprocess.prepare_mask(mask, place)
    rows, columns = place.content()
    inside = np.zeros((size, size), bool)
    inside[rows, columns] = True
    for found, value in ((square, 200), (small, 1)):
        assert (found.shape, found.dtype) == ((size, size), np.uint8)
        np.testing.assert_array_equal(found, np.where(inside, value, 0))
    if geometry == "crop":
        assert inside.all()
    back = preprocess.restore(small.astype(np.float32), place)
    assert (back.shape, back.dtype) == ((height, width), np.float32)


@given(st.integers(200, 700), st.floats(0.7, 1.4), st.sampled_from([256, 512]), st.integers(0, 99))
@settings(max_examples=60)
def test_lungs_come_back_where_they_were(
    draw_pair: Callable[[int, int, int], tuple[U8, U8]], height: int, aspect: float, size: int, seed: int
) -> None:
    _, mask = draw_pair(seed, height, round(height * aspect))
    place = preprocess.plan(*mask.shape, of(size))
    back = preprocess.restore(preprocess.prepare_mask(mask, place).astype(np.float32), place) > 0.5
    assert dice(back, mask == 1) >= 0.99


@given(st.integers(100, 400), st.integers(100, 400), st.sampled_from([128, 256]))
@settings(max_examples=40)
def test_a_crop_loses_only_what_lies_outside(height: int, width: int, size: int) -> None:
    place = preprocess.plan(height, width, of(size, "crop"))
    back = preprocess.restore(np.ones((size, size), np.float32), place)
    side = min(height, width)
    kept = np.zeros((height, width), bool)
    top, left = (height - side) // 2, (width - side) // 2
    kept[top : top + side, left : left + side] = True
    wrong = (back > 0.5) != kept
    # The kept square's border may lie between two pixels of either grid, or at the picture's own edge.
    reach = max(2, -(-2 * side // size))
    border = (
        cv2.dilate(kept.astype(np.uint8), np.ones((2 * reach + 1,) * 2))
        - cv2.erode(np.pad(kept.astype(np.uint8), reach), np.ones((2 * reach + 1,) * 2))[reach:-reach, reach:-reach]
    )
    assert not (wrong & (border == 0)).any()
    if height == width:
        assert not wrong.any()


def test_restore_goes_through_the_same_place_as_preparation() -> None:
    """One bright spot off the middle of a wide picture: its centre must come back, in both geometries."""
    for geometry, native in (("pad", (150, 300)), ("crop", (150, 220)), ("crop", (220, 150)), ("pad", (300, 150))):
        mask = np.zeros(native, np.uint8)
        mask[40:60, 70:90] = 1
        place = preprocess.plan(*native, of(256, geometry))
        back = preprocess.restore(preprocess.prepare_mask(mask, place).astype(np.float32), place)
        rows, columns = np.nonzero(back > 0.5)
        assert abs(rows.mean() - 49.5) < 0.5
        assert abs(columns.mean() - 79.5) < 0.5


def test_restore_keeps_probabilities() -> None:
    place = preprocess.plan(90, 70, of(64))
    back = preprocess.restore(np.full((64, 64), 0.3, np.float32), place)
    np.testing.assert_allclose(back, 0.3, atol=1e-6)


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    for geometry in ("pad", "crop"):
        square, place = preprocess.prepare_image(image, of(64, geometry))
        np.testing.assert_array_equal(square, image)
        assert place == Geometry(64, 64, 64, 64, 0, 0, 64)


# Grey levels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_levels_are_bytes_and_the_image_is_not_changed(mode: str, depth: type[Any]) -> None:
    image = GREY.astype(depth) * depth(np.iinfo(depth).max // 255)
    before = image.copy()
    found = preprocess.normalise(image, mode)
    assert (found.dtype, found.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(found, image) or mode == "none"


@pytest.mark.parametrize("mode", MODES)
def test_eight_bits_and_the_same_in_sixteen_give_the_same(mode: str) -> None:
    shallow = preprocess.normalise(GREY, mode).astype(int)
    deep = preprocess.normalise(GREY.astype(np.uint16) * 257, mode)
    assert np.abs(shallow - deep).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_picture_of_fewer_bits_is_as_bright_as_one_of_eight(mode: str, bits: int) -> None:
    deep = np.rint(SMOOTH * (2**bits - 1)).astype(np.uint16)
    found = preprocess.normalise(deep, mode).astype(float)
    expected = preprocess.normalise(GREY, mode).astype(float)
    assert abs(found.mean() - expected.mean()) < 4.0
    assert abs(found.std() - expected.std()) < 4.0


@pytest.mark.parametrize("mode", ["equalize", "percentile", "none"])
@given(seed=st.integers(0, 2**32 - 1), depth=st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=25)
def test_a_brighter_pixel_never_becomes_a_darker_one(mode: str, seed: int, depth: type[Any]) -> None:
    random = np.random.default_rng(seed)
    image = (random.beta(*random.uniform(0.3, 4, 2), (40, 40)) * np.iinfo(depth).max).astype(depth)
    order = np.argsort(image, axis=None, kind="stable")
    levels = preprocess.normalise(image, mode).ravel()[order].astype(int)
    assert (np.diff(levels) >= 0).all()


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_equalize_makes_every_level_equally_frequent(depth: type[Any]) -> None:
    random = np.random.default_rng(0)
    image = (random.beta(2, 6, (400, 400)) * (np.iinfo(depth).max - 1) + 1).astype(depth)
    found = preprocess.normalise(image, "equalize")
    assert (found.min(), found.max()) == (0, 255)
    quantiles = np.quantile(found, np.linspace(0, 1, 21))
    assert np.abs(quantiles - np.linspace(0, 255, 21)).max() <= (6 if depth is np.uint8 else 1.5)


def test_equalize_is_that_of_gonzalez_and_woods() -> None:
    image = np.array([[10, 10, 20], [20, 20, 20], [30, 30, 40]], np.uint8)
    expected = {10: 0, 20: round(4 / 7 * 255), 30: round(6 / 7 * 255), 40: 255}
    np.testing.assert_array_equal(preprocess.normalise(image, "equalize"), np.vectorize(expected.get)(image))


@pytest.mark.parametrize("factor", [1, 257])
def test_percentile_spans_the_whole_range_and_forgets_outliers(factor: int) -> None:
    image = (np.linspace(50, 150, 100 * 100).reshape(100, 100).round() * factor).astype(np.uint16)
    image[0, 0], image[-1, -1] = 3 * factor, 250 * factor
    found = preprocess.normalise(image, "percentile")
    assert (found[0, 0], found[-1, -1]) == (0, 255)
    assert (found.min(), found.max()) == (0, 255)
    assert 0.005 < (found == 0).mean() < 0.03
    assert 0.005 < (found == 255).mean() < 0.03
    assert abs(float(found[50, 50]) - 127.5) < 3


@pytest.mark.parametrize("mode", ["equalize", "percentile"])
def test_black_bars_do_not_change_the_levels_of_the_picture(mode: str) -> None:
    padded = np.pad(GREY, ((0, 0), (200, 200)))
    found = preprocess.normalise(padded, mode)
    np.testing.assert_array_equal(found[:, 200:-200], preprocess.normalise(GREY, mode))
    assert not found[:, :200].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0, 1, 200])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_one_grey_everywhere_gives_one_level_everywhere(mode: str, value: int, depth: type[Any]) -> None:
    found = preprocess.normalise(np.full((48, 40), value, depth), mode)
    assert found.min() == found.max()
    assert mode == "clahe" or found[0, 0] == (value if mode == "none" else 0)


def test_none_keeps_eight_bits_as_they_are() -> None:
    np.testing.assert_array_equal(preprocess.normalise(GREY, "none"), GREY)
    np.testing.assert_array_equal(preprocess.normalise(GREY.astype(np.uint16), "none"), GREY)
