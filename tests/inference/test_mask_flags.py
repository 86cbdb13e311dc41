"""Predicted masks that cannot be a pair of lungs are flagged, and masks of lungs are not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lungseg.imaging import phantom
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import mask_flags
from lungseg.ingest.reason_codes import RESULT_FLAGS
from tests.pictures.wrong_masks import WRONG, middle_row

U8 = NDArray[np.uint8]
LUNGS = [phantom.draw((8, number), phantom.STYLES[number % 2], 256)[1] for number in range(12)]


def find_flags(mask: NDArray[np.uint8], mean_probability: float | None) -> list[str]:
    return mask_flags.find_flags(Runs.from_mask(mask), mean_probability)


@pytest.mark.parametrize("size", [64, 300, 1000])
def test_lungs_are_not_flagged(size: int) -> None:
    for mask in LUNGS:
        assert find_flags(cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST), 0.95) == []


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_mask_is_flagged(kind: str) -> None:
    flagged = [bool(find_flags(WRONG[kind](mask).astype(np.uint8), 0.95)) for mask in LUNGS]
    assert np.mean(flagged) > 0.9


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("nothing", "lungs_empty"),
        ("one pixel", "lungs_implausible"),
        ("right lung alone", "lungs_one_side"),
        ("left lung alone", "lungs_one_side"),
        ("upper half", "lungs_implausible"),
        ("everything", "lungs_joined"),
        ("everything", "lungs_at_border"),
    ],
)
def test_flag_says_what_is_wrong(kind: str, flag: str) -> None:
    assert sum(flag in find_flags(WRONG[kind](mask), 0.95) for mask in LUNGS) >= 11


@pytest.mark.parametrize(("probability", "flags"), [(0.74, ["lungs_uncertain"]), (0.76, []), (None, [])])
def test_low_probability_is_flagged(probability: float | None, flags: list[str]) -> None:
    assert find_flags(LUNGS[0], probability) == flags


def test_joined_lungs_are_flagged_as_joined_only() -> None:
    mask = LUNGS[1].copy()
    row = middle_row(mask)
    columns = np.flatnonzero(mask[row])
    mask[row - 3 : row + 3, columns[0] : columns[-1]] = 1
    assert find_flags(mask, 0.95) == ["lungs_joined"]


def sided_flags(first: U8, second: U8) -> list[str]:
    sides = Runs.from_mask(first), Runs.from_mask(second)
    return mask_flags.find_flags(sides[0].union(sides[1]), 0.95, sides)


def test_lungs_of_two_classes_may_touch() -> None:
    right, left = split_sides(LUNGS[1])
    row = middle_row(LUNGS[1])
    right[row - 3 : row + 3, np.flatnonzero(LUNGS[1][row])[0] : np.flatnonzero(left[row])[0]] = 1
    assert find_flags(right | left, 0.95) == ["lungs_joined"]
    assert sided_flags(right, left) == sided_flags(left, right) == []


def test_small_lung_of_its_own_class_is_flagged() -> None:
    both, empty, point = LUNGS[1], np.zeros_like(LUNGS[1]), np.zeros_like(LUNGS[1])
    point[0, 0] = 1
    assert sided_flags(both, empty) == sided_flags(empty, both) == sided_flags(both, point) == ["lungs_one_side"]
    assert sided_flags(empty, empty) == ["lungs_empty"]
    assert sided_flags(both, both) == ["lungs_implausible"]


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (4000, 3000)])
def test_stretched_images_have_the_same_flags(shape: tuple[int, int]) -> None:
    mask = cv2.resize(LUNGS[2], (256, 256), interpolation=cv2.INTER_NEAREST)
    wide = np.pad(mask, ((0, 0), (0, 0)))
    height, width = shape
    scale = min(height, width) / 256
    wide = cv2.resize(wide, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    spare = (height - wide.shape[0], width - wide.shape[1])
    padded = np.pad(wide, [(part // 2, part - part // 2) for part in spare])
    assert find_flags(padded, 0.95) == []


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
def test_every_mask_gets_registered_flags(mask: U8) -> None:
    assert set(find_flags(mask, 0.5)) <= RESULT_FLAGS


def test_reference_masks_of_real_xrays_are_seldom_flagged(cxr256: Path) -> None:
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(cxr256.glob("*/masks/*.png"))[::3]]
    flagged = [bool(find_flags((np.asarray(mask) > 127).astype(np.uint8), 0.95)) for mask in masks]
    assert len(flagged) > 200
    assert np.mean(flagged) < 0.015
