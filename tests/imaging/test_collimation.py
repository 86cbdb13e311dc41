"""Detection of collimation borders."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from lungseg.imaging import phantom
from lungseg.imaging.collimation import content_box

U8 = NDArray[np.uint8]
BORDERS = st.tuples(*[st.integers(0, 60)] * 4)


def framed(image: NDArray[Any], border: tuple[int, int, int, int], value: int) -> NDArray[Any]:
    top, bottom, left, right = border
    return np.pad(image, ((top, bottom), (left, right)), constant_values=value)


@pytest.fixture(scope="module")
def chest() -> U8:
    """A phantom inside its own collimation, about 220 px a side."""
    image, _ = phantom.draw(3, "shenzhen", 256)
    content = image[content_box(image)][4:-4, 4:-4]
    assert content_box(content) == (slice(0, content.shape[0]), slice(0, content.shape[1]))
    return np.maximum(content, 1)


@pytest.mark.parametrize("value", [0, 40, 128, 255])
@pytest.mark.parametrize("bits", [8, 12, 16])
@given(border=BORDERS)
@settings(max_examples=15)
def test_borders_of_any_grey_are_found_exactly(
    chest: U8, value: int, bits: int, border: tuple[int, int, int, int]
) -> None:
    image = framed(chest, border, value).astype(np.uint16) << (bits - 8)
    rows, columns = content_box(image if bits > 8 else image.astype(np.uint8))
    top, bottom, left, right = border
    assert (rows, columns) == (slice(top, top + chest.shape[0]), slice(left, left + chest.shape[1]))
    assert image.shape == (rows.stop + bottom, columns.stop + right)


@pytest.mark.parametrize("size", [(700, 900), (1400, 1000), (64, 1800)])
def test_borders_are_found_at_any_size(chest: U8, size: tuple[int, int]) -> None:
    """Where lines are sampled, too: the border's end lies between two sampled lines."""
    content = cv2.resize(chest, size)
    for border in ((1, 0, 0, 0), (37, 111, 3, 200), (0, 0, 255, 1)):
        rows, columns = content_box(framed(content, border, 255))
        assert (rows.start, columns.start) == (border[0], border[2])
        assert (rows.stop - rows.start, columns.stop - columns.start) == content.shape


def test_nested_borders_are_found(chest: U8) -> None:
    image = framed(framed(framed(chest, (9, 5, 8, 0), 0), (6, 7, 0, 12), 255), (0, 0, 40, 40), 0)
    rows, columns = content_box(image)
    np.testing.assert_array_equal(image[rows, columns], chest)


def test_bars_of_two_greys_at_a_corner_are_found(chest: U8) -> None:
    image = framed(framed(chest, (0, 0, 50, 0), 0), (50, 0, 0, 0), 255)
    np.testing.assert_array_equal(image[content_box(image)], chest)


def test_a_border_with_a_burnt_in_letter_is_found(chest: U8) -> None:
    image = framed(chest, (40, 0, 0, 0), 0)
    image[10:24, 100:106] = 255
    assert content_box(image)[0].start == 40


def test_borders_in_jpeg_files_are_found(chest: U8) -> None:
    complete = framed(cv2.resize(chest, (640, 640)), (64, 64, 64, 64), 0)
    image = cv2.imdecode(cv2.imencode(".jpg", complete, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_UNCHANGED)
    for side in content_box(image):
        assert 56 <= side.start <= 64
        assert 704 <= side.stop <= 712


def test_air_beside_the_body_is_not_a_border(chest: U8) -> None:
    """Dark, but with the grain of film; single pixels show it where means over areas would be even."""
    grain = np.random.default_rng(0).normal(12, 4, (chest.shape[0], 60))
    image = np.hstack([np.clip(grain, 1, 255).astype(np.uint8), chest])
    assert content_box(image) == (slice(0, image.shape[0]), slice(0, image.shape[1]))


@pytest.mark.parametrize("steepness", [0.05, 0.3, 1.0, 2.0])
def test_a_gradient_is_not_a_border(steepness: float) -> None:
    slope = np.rint(np.clip(10 + steepness * np.arange(120), 0, 255)).astype(np.uint8)
    for image in (np.tile(slope, (90, 1)), np.tile(slope[::-1], (90, 1)).T):
        rows, columns = content_box(image)
        assert (rows.stop - rows.start, columns.stop - columns.start) == image.shape


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=90), elements=st.integers(0, 3)))
@settings(max_examples=200)
def test_the_box_is_inside_the_image_and_never_empty(image: U8) -> None:
    for side, length in zip(content_box(image), image.shape, strict=True):
        assert 0 <= side.start < side.stop <= length


@pytest.mark.parametrize("value", [0, 7, 255])
def test_the_box_of_a_uniform_image_is_the_image(value: int) -> None:
    assert content_box(np.full((30, 200), value, np.uint8)) == (slice(0, 30), slice(0, 200))


def test_a_half_black_image_has_a_box() -> None:
    image = np.zeros((100, 80), np.uint8)
    image[50:] = 255
    rows, columns = content_box(image)
    assert image[rows, columns].size > 0


@pytest.mark.parametrize("dataset", ["montgomery", "shenzhen"])
def test_boxes_of_real_images_remove_only_black(cxr256: Path, dataset: str) -> None:
    images = [
        cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((cxr256 / dataset / "images").iterdir())[::12]
    ]
    cut = 0
    for image in images:
        rows, columns = content_box(image)
        outside = image.astype(int).sum() - image[rows, columns].astype(int).sum()
        assert outside <= 0.005 * image.astype(int).sum()
        assert image[rows, columns].size >= image.size / 4
        cut += image[rows, columns].size < image.size
    # Padding to a square gives most of them bars.
    assert cut >= len(images) / 2
