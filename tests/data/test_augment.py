"""Random changes: the same for the same key, none when none is asked, and the mask goes where its image goes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lungseg.config import AugmentSettings
from lungseg.data.augment import augment

U8 = NDArray[np.uint8]
KEY = (3, 5, "case_01")
ALL = AugmentSettings(rotate_deg=10.0, scale=0.15, shift=0.05, gamma=0.4, flip=0.5)
ONE_EACH: list[dict[str, Any]] = [{"rotate_deg": 20.0}, {"scale": 0.3}, {"shift": 0.2}, {"gamma": 0.7}]


@pytest.fixture(scope="module")
def pair(draw_pair: Callable[[int, int, int], tuple[U8, U8]]) -> tuple[U8, U8]:
    return draw_pair(1, 96, 96)


def test_a_key_gives_one_change_on_every_rank_and_after_every_restart(pair: tuple[U8, U8]) -> None:
    first, again = (augment(*pair, ALL, KEY) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("key", [(4, 5, "case_01"), (3, 6, "case_01"), (3, 5, "case_02")])
def test_another_seed_epoch_or_image_gives_another_change(key: tuple[int, int, str], pair: tuple[U8, U8]) -> None:
    assert (augment(*pair, ALL, key)[0] != augment(*pair, ALL, KEY)[0]).mean() > 0.2


@given(st.integers(0, 2**40), st.integers(0, 1000), st.text(max_size=20))
@settings(max_examples=30)
def test_all_zero_changes_nothing(pair: tuple[U8, U8], seed: int, epoch: int, image_id: str) -> None:
    image, mask = augment(*pair, AugmentSettings(), (seed, epoch, image_id))
    np.testing.assert_array_equal(image, pair[0])
    np.testing.assert_array_equal(mask, pair[1])


def test_a_certain_flip_is_a_mirror(pair: tuple[U8, U8]) -> None:
    image, mask = augment(*pair, AugmentSettings(flip=1.0), KEY)
    np.testing.assert_array_equal(image, pair[0][:, ::-1])
    np.testing.assert_array_equal(mask, pair[1][:, ::-1])


def test_half_the_flips_of_one_half_are_mirrors(pair: tuple[U8, U8]) -> None:
    left = np.zeros((16, 16), np.uint8)
    left[:, :4] = 1
    flips = sum(int(augment(left, left, AugmentSettings(flip=0.5), (0, i, "x"))[1][0, -1]) for i in range(400))
    assert 150 < flips < 250


@given(st.integers(0, 1000))
@settings(max_examples=40)
def test_image_and_mask_move_together(pair: tuple[U8, U8], epoch: int) -> None:
    drawn = pair[1] * np.uint8(255)
    image, mask = augment(drawn, pair[1], ALL.model_copy(update={"gamma": 0.0}), (0, epoch, "x"))
    np.testing.assert_array_equal(image > 127, mask == 1)
    assert mask.sum() > 0.5 * pair[1].sum()


@pytest.mark.parametrize("change", [{"rotate_deg": 20.0}, {"scale": 0.3}, {"shift": 0.2}])
def test_each_movement_moves_the_mask(change: dict[str, Any], pair: tuple[U8, U8]) -> None:
    masks = [augment(*pair, AugmentSettings(**change), (0, epoch, "x"))[1] for epoch in range(5)]
    assert all((mask != pair[1]).mean() > 0.003 for mask in masks)


@pytest.mark.parametrize("change", ONE_EACH)
def test_results_keep_shape_and_range_and_the_originals_stay(change: dict[str, Any], pair: tuple[U8, U8]) -> None:
    before = [array.copy() for array in pair]
    image, mask = augment(*pair, AugmentSettings(**change), KEY)
    assert image.shape == mask.shape == pair[0].shape
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    np.testing.assert_array_equal(pair[0], before[0])
    np.testing.assert_array_equal(pair[1], before[1])


def test_gamma_changes_greys_in_order_and_no_place(pair: tuple[U8, U8]) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    means = []
    for epoch in range(40):
        image, mask = augment(ramp, ramp // 128, AugmentSettings(gamma=0.7), (0, epoch, "x"))
        np.testing.assert_array_equal(mask, ramp // 128)
        assert (np.diff(image[0].astype(int)) >= 0).all()
        assert (image[0, 0], image[0, -1]) == (0, 255)
        means.append(image.mean())
    assert min(means) < 115
    assert max(means) > 140


def test_movements_stay_within_their_bounds() -> None:
    square = np.zeros((101, 101), np.uint8)
    square[40:61, 40:61] = 1
    reaches, areas = [], []
    for epoch in range(200):
        _, shifted = augment(square, square, AugmentSettings(shift=0.1), (0, epoch, "x"))
        rows, columns = np.nonzero(shifted)
        reaches.append((rows.mean() - 50, columns.mean() - 50))
        areas.append(augment(square, square, AugmentSettings(scale=0.2), (0, epoch, "x"))[1].sum() / 441)
    reach = np.array(reaches)
    assert np.abs(reach).max() <= 10.6
    assert (np.abs(reach).max(axis=0) > 8).all()
    assert np.abs(reach.mean(axis=0)).max() < 1.5
    assert 0.6 < min(areas) < 0.75
    assert 1.3 < max(areas) < 1.5


def test_one_setting_does_not_change_what_another_draws(pair: tuple[U8, U8]) -> None:
    turned = AugmentSettings(rotate_deg=15.0)
    more = turned.model_copy(update={"gamma": 0.5})
    np.testing.assert_array_equal(augment(*pair, turned, KEY)[1], augment(*pair, more, KEY)[1])
    mirrored = augment(*pair, turned.model_copy(update={"flip": 1.0}), KEY)[1]
    assert (mirrored[:, ::-1] != augment(*pair, turned, KEY)[1]).mean() < 0.01


def test_what_comes_in_from_outside_is_black() -> None:
    white = np.full((64, 64), 255, np.uint8)
    image, _ = augment(white, white // 255, AugmentSettings(shift=0.5), (0, 1, "x"))
    assert set(np.unique(image)) >= {0, 255}
    assert (image == 0).sum() > 64
