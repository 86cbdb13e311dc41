"""Runs of a mask give what its pixels give."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage

from lungseg.config import PreprocessSettings
from lungseg.imaging.coco_rle import decode_runs, encode_runs
from lungseg.imaging.geometry import plan_geometry, restore
from lungseg.imaging.restored_runs import restore_runs
from lungseg.imaging.run_lengths import Runs, fill, find_holes, label_runs

U8 = NDArray[np.uint8]


def masks_of(height: int, width: int) -> st.SearchStrategy[U8]:
    return arrays(np.uint8, (height, width), elements=st.integers(0, 1))


sides = st.integers(1, 14)
masks = st.tuples(sides, sides).flatmap(lambda shape: masks_of(*shape))
pairs = st.tuples(sides, sides).flatmap(lambda shape: st.tuples(masks_of(*shape), masks_of(*shape)))


@given(masks)
def test_masks_survive_as_runs(mask: U8) -> None:
    runs = Runs.from_mask(mask)
    assert runs.area == mask.sum()
    restored = runs.to_mask()
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, mask)


@given(masks)
def test_run_lengths_are_those_of_pycocotools(mask: U8) -> None:
    expected = coco.encode(np.asfortranarray(mask))["counts"].decode()
    assert encode_runs(Runs.from_mask(mask)) == expected
    np.testing.assert_array_equal(decode_runs(expected, *mask.shape).to_mask(), mask)


@given(masks)
def test_components_are_numbered_in_reading_order(mask: U8) -> None:
    runs = Runs.from_mask(mask)
    numbers, count = label_runs(runs)
    labels, expected = ndimage.label(mask, np.ones((3, 3)))
    assert count == expected
    for number in range(count):
        np.testing.assert_array_equal(runs.select(numbers == number).to_mask(), labels == number + 1)


@given(masks)
def test_holes_are_those_of_scipy(mask: U8) -> None:
    runs = Runs.from_mask(mask)
    np.testing.assert_array_equal(fill(runs, find_holes(runs)).to_mask(), ndimage.binary_fill_holes(mask))


@given(masks, st.integers(1, 5))
def test_samples_are_every_nth_pixel(mask: U8, step: int) -> None:
    np.testing.assert_array_equal(Runs.from_mask(mask).sample(step).to_mask(), mask[::step, ::step])


@given(pairs)
def test_common_pixels_are_counted(pair: tuple[U8, U8]) -> None:
    first, second = pair
    assert Runs.from_mask(first).count_common(Runs.from_mask(second)) == (first & second).sum()


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (300, 300), (257, 391), (391, 257), (32, 32), (40, 60), (7, 5)]
)
@pytest.mark.parametrize("placement", ["pad", "crop"])
def test_restored_runs_are_the_thresholded_probabilities(height: int, width: int, placement: str) -> None:
    geometry = plan_geometry(height, width, PreprocessSettings(size=64, geometry=placement))  # type: ignore[arg-type]
    random = np.random.default_rng(height)
    noise = random.random((64, 64)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, 4)
    smooth = ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    for square in (noise, smooth, np.zeros_like(noise), np.ones_like(noise)):
        for threshold in (0.25, 0.5, 0.93):
            expected = restore(square, geometry) >= threshold
            np.testing.assert_array_equal(restore_runs(square, geometry, threshold).to_mask(), expected)
