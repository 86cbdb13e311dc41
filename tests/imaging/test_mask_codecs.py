"""Decoding of lung masks of every kind and of labels; refusal of ambiguous ones."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lungseg.errors import ImageError
from lungseg.imaging import codecs
from tests.imaging.image_files import COLOUR, DEEP, MASK, U8, opencv, pil


@pytest.mark.parametrize(
    "coded",
    [MASK, MASK * 255, MASK * 38, MASK.astype(np.uint16), MASK.astype(np.uint16) * 65535, MASK * 200 + 20],
    ids=["0/1", "0/255", "0/38", "0/1 in 16 bits", "0/65535", "20/220"],
)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_masks_of_any_two_levels_are_decoded(coded: NDArray[Any], suffix: str) -> None:
    result = codecs.decode_mask(opencv(coded, suffix), "mask")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, MASK)


def test_one_bit_colour_and_jpeg_masks_are_decoded() -> None:
    red = np.dstack([MASK * 255, MASK * 0, MASK * 0])
    for content in (pil(MASK.astype(bool), "PNG"), pil(red, "PNG"), pil(MASK * 255, "JPEG", quality=90)):
        np.testing.assert_array_equal(codecs.decode_mask(content, "mask"), MASK)


def test_antialiased_masks_are_thresholded_at_half() -> None:
    large = cv2.resize(MASK, (200, 160), interpolation=cv2.INTER_NEAREST)
    soft = cv2.resize(large * 255, (100, 80), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(soft, (3, 3), 0)
    assert len(np.unique(soft)) > 3
    result = codecs.decode_mask(opencv(soft, ".png"), "mask")
    np.testing.assert_array_equal(result, soft > 127)
    assert abs(int(result.sum()) - 4 * int(MASK.sum())) < 0.02 * 4 * MASK.sum()


# Lungs of a grey value each, and labels

SIDES = MASK * np.where(np.arange(50) < 25, 1, 2).astype(np.uint8)  # 1 left in the image, 2 right
LOBES = SIDES + np.where(np.arange(40)[:, None] < 20, 0, 2).astype(np.uint8) * MASK
levels = st.integers(1, 255)


def painted(labels: U8, *greys: int, side: int = 1) -> U8:
    """Paint each label in its grey, enlarged `side` times."""
    large = np.kron(labels, np.ones((side, side), np.uint8))
    return np.array([0, *greys], np.uint8)[large]


@given(levels, levels, st.sampled_from([1, 4, 12]), st.booleans())
def test_one_grey_level_for_each_lung_is_accepted(left: int, right: int, side: int, deep: bool) -> None:
    coded: NDArray[Any] = painted(SIDES, left, right, side=side)
    coded = coded.astype(np.uint16) * 257 if deep else coded
    np.testing.assert_array_equal(codecs.decode_mask(opencv(coded, ".png"), "mask"), painted(MASK, 1, side=side))


@given(st.lists(levels, min_size=4, max_size=4, unique=True))
def test_one_grey_level_for_each_lobe_is_accepted(greys: list[int]) -> None:
    lobes = painted(LOBES, *greys, side=4)
    np.testing.assert_array_equal(codecs.decode_mask(opencv(lobes, ".png"), "mask"), painted(MASK, 1, side=4))


@pytest.mark.parametrize(("left", "right"), [(127, 254), (254, 127), (85, 170), (60, 255), (128, 255)])
@pytest.mark.parametrize("way", ["antialiased", "jpeg"])
def test_two_grey_levels_with_soft_edges_are_lung(left: int, right: int, way: str) -> None:
    coded = painted(SIDES, left, right, side=6)
    soft = cv2.resize(coded, (100, 80), interpolation=cv2.INTER_AREA)
    content = opencv(soft, ".png") if way == "antialiased" else pil(coded, "JPEG", quality=80)
    result = codecs.decode_mask(content, "mask")
    expected = painted(MASK, 1, side=result.shape[0] // 40)
    assert 2 * (result & expected).sum() / (result.sum() + expected.sum()) > 0.96


def test_two_colours_are_lung() -> None:
    red, blue = ((side == SIDES) * np.uint8(255) for side in (1, 2))
    content = pil(np.dstack([red, red * 0, blue]), "PNG")
    np.testing.assert_array_equal(codecs.decode_mask(content, "mask"), MASK)


@given(st.integers(2, 255), st.integers(32, 200), st.sampled_from(["area", "linear", "cubic", "blurred"]))
def test_one_grey_level_with_any_edges_is_thresholded_at_half(grey: int, side: int, way: str) -> None:
    large = painted(MASK, grey, side=4)
    ways = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
    soft = cv2.resize(large, (side, side), interpolation=ways.get(way, cv2.INTER_AREA))
    soft = cv2.GaussianBlur(soft, (0, 0), side / 64) if way == "blurred" else soft
    result = codecs.decode_mask(opencv(soft, ".png"), "mask")
    np.testing.assert_array_equal(result, soft > int(soft.max()) // 2)


@given(st.integers(32, 255), st.integers(5, 100))
def test_jpeg_ringing_is_not_a_label(grey: int, quality: int) -> None:
    content = pil(painted(MASK, grey, side=4), "JPEG", quality=quality)
    coded = codecs.decode(content, "mask")
    np.testing.assert_array_equal(codecs.decode_mask(content, "mask"), coded > int(coded.max()) // 2)


@given(st.integers(2, 31), st.integers(5, 100))
@example(6, 20)
def test_dark_mask_with_jpeg_ringing_is_right_or_refused(grey: int, quality: int) -> None:
    content = pil(painted(MASK, grey, side=4), "JPEG", quality=quality)
    coded = codecs.decode(content, "mask")
    code, result = "", None
    try:
        result = codecs.decode_mask(content, "mask")
    except ImageError as error:
        code = error.code
    assert code == "mask_levels" or np.array_equal(result, coded > int(coded.max()) // 2)


def test_specks_and_thin_rims_are_not_labels() -> None:
    coded = painted(MASK, 255, side=4)
    coded[::9, ::9] |= 1  # scattered over the image
    np.testing.assert_array_equal(codecs.decode_mask(opencv(coded, ".png"), "mask"), painted(MASK, 1, side=4))
    rim = cv2.dilate(painted(MASK, 255, side=4), np.ones((3, 3), np.uint8))
    rim[(rim > 0) & (coded < 255)] = 1
    np.testing.assert_array_equal(codecs.decode_mask(opencv(rim, ".png"), "mask"), painted(MASK, 1, side=4))


def test_a_grey_background_is_not_a_label() -> None:
    coded = np.where(painted(MASK, 1, side=4) == 1, np.uint8(220), np.uint8(20))
    coded[:12] = 0
    np.testing.assert_array_equal(codecs.decode_mask(opencv(coded, ".png"), "mask"), painted(MASK, 1, side=4))


HEART: U8 = np.zeros((40, 50), np.uint8)
HEART[20:32, 22:34] = 1


@pytest.mark.parametrize(
    "coded",
    [
        np.where(MASK == 1, 1, 2 * HEART).astype(np.uint8),
        np.where(MASK == 1, SIDES, 3 * HEART).astype(np.uint8),
        np.where(MASK == 1, 64 * SIDES, 192 * HEART).astype(np.uint8),
        np.where(MASK == 1, 1, 255 * HEART).astype(np.uint8),
    ],
    ids=["lungs 1, heart 2", "lungs 1 and 2, heart 3", "64, 128, 192", "lungs 1, heart 255"],
)
def test_ambiguous_labels_are_refused(coded: U8) -> None:
    """A threshold would select the heart, or one lung and the heart."""
    with pytest.raises(ImageError, match=r"^mask m\.png marks whole areas by the grey values \d+, \d+"):
        codecs.decode_mask(opencv(np.kron(coded, np.ones((4, 4), np.uint8)), ".png"), "mask m.png")


def test_an_empty_mask_stays_empty() -> None:
    assert not codecs.decode_mask(opencv(MASK * 0, ".png"), "mask").any()


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 9)))
def test_labels_survive_encoding(mask: U8) -> None:
    content = codecs.encode_labels(mask)
    assert (content[24], content[25]) == (8, 0)  # bits, grey
    result = codecs.decode_labels(content, "x")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, mask)


@pytest.mark.parametrize("content", [pil(COLOUR, "PNG"), pil(DEEP, "PNG")], ids=["colour", "16 bits"])
def test_files_without_class_numbers_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^x\.png"):
        codecs.decode_labels(content, "x.png")
