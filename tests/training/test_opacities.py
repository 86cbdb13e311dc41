"""Painted opacities and gas: where they may be, and what they leave alone."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg.training.opacities import paint_gas, paint_opacities

U8 = NDArray[np.uint8]
SIDE = 256
SEEDS = range(40)


@pytest.fixture(scope="module")
def chest() -> tuple[U8, U8]:
    """A body of grey 180 with two lungs of grey 60, and black beside it."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for x in (88, 168):
        cv2.ellipse(mask, (x, 110), (32, 70), 0.0, 0.0, 360.0, 1, -1)
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[:, 30:-30] = 180
    image[mask == 1] = 60
    return image, mask


def paint_all(paint: object, chest: tuple[U8, U8]) -> NDArray[np.int64]:
    """Return the change of each pixel for each seed, i64[N,S,S]."""
    assert callable(paint)
    painted = [paint(*chest, np.random.default_rng(seed)) for seed in SEEDS]
    return np.stack(painted).astype(np.int64) - chest[0]


def test_opacities_brighten_the_lungs_up_to_tissue(chest: tuple[U8, U8]) -> None:
    inside = cv2.erode(chest[1], np.ones((13, 13), np.uint8)) == 1
    changes = paint_all(paint_opacities, chest)[:, inside]
    assert changes.min() >= -1
    assert 100 < changes.max() <= 121
    brightened = (changes > 12).mean(axis=1)
    assert (brightened == 0.0).any(), "some lungs stay healthy"
    assert brightened.max() > 0.5, "some are mostly opaque"
    assert 0.05 < brightened.mean() < 0.6


def test_opacities_fade_within_a_few_pixels_outside_the_lungs(chest: tuple[U8, U8]) -> None:
    far = cv2.dilate(chest[1], np.ones((19, 19), np.uint8)) == 0
    assert np.abs(paint_all(paint_opacities, chest)[:, far]).max() == 0


def test_gas_is_dark_and_never_inside_the_lungs(chest: tuple[U8, U8]) -> None:
    changes = paint_all(paint_gas, chest)
    assert changes.max() == 0
    assert (changes[:, chest[1] == 1] == 0).all()
    areas = (changes < -20).sum(axis=(1, 2))
    assert np.median(areas) > 100
    rows = np.nonzero((changes < -20).any(axis=(0, 2)))[0]
    assert rows.min() > 110, "it lies in the lower half of the lungs' height or below"


@pytest.mark.parametrize("paint", [paint_opacities, paint_gas])
def test_black_stays_black_and_nothing_turns_black(paint: object, chest: tuple[U8, U8]) -> None:
    painted = paint_all(paint, chest) + chest[0]
    assert ((painted == 0) == (chest[0] == 0)).all()


@pytest.mark.parametrize("paint", [paint_opacities, paint_gas])
def test_image_without_lungs_stays_as_it_is(paint: object, chest: tuple[U8, U8]) -> None:
    assert callable(paint)
    image = chest[0]
    assert paint(image, np.zeros_like(image), np.random.default_rng(0)) is image


def test_image_of_lungs_alone_gets_no_opacities(chest: tuple[U8, U8]) -> None:
    image, mask = chest
    only_lungs = image * mask
    assert paint_opacities(only_lungs, mask, np.random.default_rng(0)) is only_lungs
