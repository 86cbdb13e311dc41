"""Augmentation: reproducible, off by default, and equal for image and mask."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from lungseg.config import AugmentSettings
from lungseg.schema import NOT_ANNOTATED
from lungseg.training.augment import augment as augment_masks

U8 = NDArray[np.uint8]
KEY = (3, 5, "case_01")
MOVES: dict[str, float] = {"rotate_deg": 20.0, "scale": 0.3, "shift": 0.2, "elastic": 0.03, "flip": 1.0}
CURVES: dict[str, float] = {"gamma": 0.7, "contrast": 0.5, "brightness": 0.2, "jitter": 0.5}
GREYS: dict[str, float] = {**CURVES, "shadow": 0.5, "blur": 2.0, "noise": 0.05}
DISEASES: dict[str, float] = {"opacity": 1.0, "gas": 1.0}
KINDS: dict[str, float] = {**MOVES, **GREYS, **DISEASES, "collimate": 1.0}
ALL = AugmentSettings(**KINDS)
MOST = {"rotate_deg": 180.0, "scale": 0.99, "elastic": 0.03, "gamma": 3.0, "contrast": 0.99, "jitter": 3.0}
MOST |= {"shadow": 0.99, "blur": 10.0, "noise": 0.5}
ANY = st.builds(AugmentSettings, **{name: st.floats(0.0, MOST.get(name, 1.0)) for name in KINDS})
RAMP = np.tile(np.arange(256, dtype=np.uint8), (256, 1))


def augment(image: U8, mask: U8, settings: AugmentSettings, key: tuple[int, int, str]) -> tuple[U8, U8]:
    augmented, masks = augment_masks(image, mask[None], settings, key)
    return augmented, masks[0]


@pytest.fixture(scope="module")
def pair(draw_pair: Callable[[int, int, int], tuple[U8, U8]]) -> tuple[U8, U8]:
    return draw_pair(1, 96, 96)


def test_same_key_gives_the_same_augmentation(pair: tuple[U8, U8]) -> None:
    first, second = (augment(*pair, ALL, KEY) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("key", [(4, 5, "case_01"), (3, 6, "case_01"), (3, 5, "case_02")])
def test_seed_epoch_and_image_change_the_augmentation(key: tuple[int, int, str], pair: tuple[U8, U8]) -> None:
    assert (augment(*pair, ALL, key)[0] != augment(*pair, ALL, KEY)[0]).mean() > 0.2


@given(st.integers(0, 2**40), st.integers(0, 1000), st.text(max_size=20))
@settings(max_examples=30)
def test_all_zero_changes_nothing(pair: tuple[U8, U8], seed: int, epoch: int, image_id: str) -> None:
    masks = pair[1][None]
    image, returned = augment_masks(pair[0], masks, AugmentSettings(), (seed, epoch, image_id))
    assert image is pair[0]
    assert returned is masks


def test_a_certain_flip_is_a_mirror(pair: tuple[U8, U8]) -> None:
    image, mask = augment(*pair, AugmentSettings(flip=1.0), KEY)
    np.testing.assert_array_equal(image, pair[0][:, ::-1])
    np.testing.assert_array_equal(mask, pair[1][:, ::-1])


def test_flip_probability_is_respected(pair: tuple[U8, U8]) -> None:
    left = np.zeros((16, 16), np.uint8)
    left[:, :4] = 1
    flips = sum(int(augment(left, left, AugmentSettings(flip=0.5), (0, i, "x"))[1][0, -1]) for i in range(400))
    assert 150 < flips < 250


@given(st.integers(0, 1000))
@settings(max_examples=40)
def test_image_and_mask_move_together(pair: tuple[U8, U8], epoch: int) -> None:
    drawn = pair[1] * np.uint8(255)
    image, mask = augment(drawn, pair[1], AugmentSettings(**{**MOVES, "shift": 0.05, "flip": 0.5}), (0, epoch, "x"))
    np.testing.assert_array_equal(image > 127, mask == 1)
    assert mask.sum() > 0.4 * pair[1].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_only_geometric_augmentation_changes_the_mask(kind: str, pair: tuple[U8, U8]) -> None:
    changed = np.empty((10, 2))
    for epoch in range(10):
        image, mask = augment(*pair, AugmentSettings(**{kind: KINDS[kind]}), (0, epoch, "x"))
        changed[epoch] = (image != pair[0]).mean(), (mask != pair[1]).mean()
    # A blur can be too weak to change the image.
    assert (changed[:, 0] > 0.003).sum() >= 8
    assert (changed[:, 1] > 0.0).sum() == (10 if kind in MOVES else 0)


@given(ANY, st.integers(0, 2**40), st.integers(0, 1000), st.text(max_size=20))
@settings(max_examples=60)
def test_any_settings_keep_shape_and_range_and_the_originals(
    pair: tuple[U8, U8], chosen: AugmentSettings, seed: int, epoch: int, image_id: str
) -> None:
    before = [array.copy() for array in pair]
    image, mask = augment(*pair, chosen, (seed, epoch, image_id))
    assert image.shape == mask.shape == pair[0].shape
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    np.testing.assert_array_equal(pair[0], before[0])
    np.testing.assert_array_equal(pair[1], before[1])
    again = augment(*pair, chosen, (seed, epoch, image_id))
    np.testing.assert_array_equal(again, (image, mask))


def test_threads_change_nothing(pair: tuple[U8, U8]) -> None:
    def change(epoch: int) -> tuple[U8, U8]:
        return augment(*pair, ALL, (0, epoch, "x"))

    with ThreadPoolExecutor(8) as pool:
        for threaded, single in zip(pool.map(change, range(60)), map(change, range(60)), strict=True):
            np.testing.assert_array_equal(threaded, single)


def _draws(pair: tuple[U8, U8], chosen: AugmentSettings) -> dict[Any, Any]:
    """Return the final state of each random generator, by seed."""
    generators: dict[Any, np.random.Generator] = {}
    make = np.random.default_rng
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda seed: generators.setdefault(tuple(map(int, seed)), make(seed)))
        augment(*pair, chosen, KEY)
    return {seed: generator.bit_generator.state for seed, generator in generators.items()}


# The number of draws of painted diseases depends on what is painted, but no other kind uses their generators.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DISEASES])
def test_random_draws_are_independent_of_other_settings(kind: str, pair: tuple[U8, U8]) -> None:
    combined = _draws(pair, ALL)
    assert len(combined) == len(KINDS)
    strong, weak = (_draws(pair, AugmentSettings(**{kind: share * KINDS[kind]})) for share in (1.0, 1e-3))
    assert strong == weak
    assert strong == {seed: combined[seed] for seed in strong}


def test_gamma_keeps_the_order_of_grey_levels(pair: tuple[U8, U8]) -> None:
    means = []
    for epoch in range(40):
        image, mask = augment(RAMP, RAMP // 128, AugmentSettings(gamma=0.7), (0, epoch, "x"))
        np.testing.assert_array_equal(mask, RAMP // 128)
        assert (np.diff(image[0].astype(int)) >= 0).all()
        assert (image[0, 0], image[0, -1]) == (0, 255)
        means.append(image.mean())
    assert min(means) < 115
    assert max(means) > 140


def test_rotation_is_about_the_centre_and_rigid() -> None:
    square = np.zeros((201, 201), np.uint8)
    square[60:141, 60:141] = 1
    for epoch in range(30):
        _, turned = augment(square, square, AugmentSettings(rotate_deg=40.0), (0, epoch, "x"))
        (x, y), lengths, _ = cv2.minAreaRect(np.argwhere(turned).astype(np.int32))
        assert (x, y) == pytest.approx((100, 100), abs=0.6)
        assert sorted(lengths) == pytest.approx([80, 80], abs=1.6)
        assert int(turned.sum()) == pytest.approx(81 * 81, rel=0.01)


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


def test_geometric_draws_are_independent_of_grey_settings(pair: tuple[U8, U8]) -> None:
    turned = AugmentSettings(rotate_deg=15.0)
    more = turned.model_copy(update={**GREYS, "collimate": 1.0})
    np.testing.assert_array_equal(augment(*pair, turned, KEY)[1], augment(*pair, more, KEY)[1])
    mirrored = augment(*pair, turned.model_copy(update={"flip": 1.0}), KEY)[1]
    assert (mirrored[:, ::-1] != augment(*pair, turned, KEY)[1]).mean() < 0.01


def test_pixels_from_outside_are_black() -> None:
    white = np.full((64, 64), 255, np.uint8)
    image, _ = augment(white, white // 255, AugmentSettings(shift=0.5), (0, 1, "x"))
    assert set(np.unique(image)) >= {0, 255}
    assert (image == 0).sum() > 64


@given(st.integers(0, 1000))
@settings(max_examples=40)
def test_bending_is_smooth_and_folds_nothing(epoch: int) -> None:
    settings = AugmentSettings(elastic=0.03)
    across = augment(RAMP, RAMP // 128, settings, (0, epoch, "x"))[0][16:-16, 16:-16].astype(int)
    down = augment(RAMP.T.copy(), RAMP // 128, settings, (0, epoch, "x"))[0][16:-16, 16:-16].astype(int)
    assert np.diff(across, axis=1).min() >= 0
    assert np.diff(down, axis=0).min() >= 0
    for bent, straight in ((across, RAMP), (down, RAMP.T)):
        assert np.abs(bent - straight[16:-16, 16:-16]).max() <= 0.03 * 256 * 1.5


@given(ANY, st.integers(0, 1000))
@settings(max_examples=100)
def test_grey_curve_always_rises_from_black(chosen: AugmentSettings, epoch: int) -> None:
    only_curve = AugmentSettings(**{kind: getattr(chosen, kind) for kind in CURVES})
    image, _ = augment(RAMP, RAMP // 128, only_curve, (0, epoch, "x"))
    assert (np.diff(image[0].astype(int)) >= 0).all()
    assert image[0, 0] == 0


def test_contrast_and_brightness_vary_both_ways_without_clipping() -> None:
    for kind in ("contrast", "brightness"):
        curves = [augment(RAMP, RAMP // 128, AugmentSettings(**{kind: 0.2}), (0, i, "x"))[0][0] for i in range(60)]
        spread = np.array(curves, int) - RAMP[0]
        assert np.abs(spread).max() <= 52
        assert spread[:, 180].min() < -8
        assert spread[:, 180].max() > 8
        assert all(np.unique(curve[200:]).size > 10 for curve in curves)
    assert np.abs(spread[:, 60] - spread[:, 150]).max() <= 1


def test_jittered_curve_has_no_plateaus_and_reaches_white() -> None:
    curves = [augment(RAMP, RAMP // 128, AugmentSettings(jitter=0.5), (0, i, "x"))[0][0] for i in range(60)]
    slopes = np.array([(curve[10:].astype(int) - curve[:-10]) / 10 for curve in curves])
    assert all(curve[-1] == 255 for curve in curves)
    assert slopes.min() > 0.3
    assert slopes.max() < 2.8
    assert np.abs(np.array(curves, int) - RAMP[0]).max() > 20


def test_shading_is_smooth_and_limited() -> None:
    largest = 0.0
    for epoch in range(30):
        flat = np.full((512, 512), 50, np.uint8)
        shaded = augment(flat, flat // 50, AugmentSettings(shadow=0.4), (0, epoch, "x"))[0].astype(int)
        assert np.abs(np.diff(shaded, axis=0)).max() <= 4
        assert np.abs(np.diff(shaded, axis=1)).max() <= 4
        largest = max(largest, np.abs(shaded / 50 - 1).max())
        white = augment(flat + 205, flat // 50, AugmentSettings(shadow=0.4), (0, epoch, "x"))[0]
        assert (white == 255).all()
    assert 0.25 < largest <= 0.41


def test_noise_has_the_configured_deviation() -> None:
    flat = np.full((256, 256), 128, np.uint8)
    grains = np.array([augment(flat, flat, AugmentSettings(noise=0.05), (0, i, "x"))[0] for i in range(60)], float)
    deviations = grains.std(axis=(1, 2)) / 255
    assert deviations.max() < 0.0505
    assert deviations.max() > 0.045
    assert deviations.min() < 0.005
    assert np.abs(grains.mean(axis=(1, 2)) - 128).max() < 0.3


def test_blur_smooths_and_keeps_the_mean(pair: tuple[U8, U8]) -> None:
    blurred = [augment(*pair, AugmentSettings(blur=2.0), (0, epoch, "x"))[0].astype(float) for epoch in range(20)]
    roughness = np.array([np.abs(np.diff(image, axis=0)).mean() for image in (pair[0].astype(float), *blurred)])
    assert (roughness[1:] <= roughness[0] + 0.01).all()
    assert roughness.min() < 0.3 * roughness[0]
    assert max(abs(image.mean() - pair[0].mean()) for image in blurred) < 2


@given(ANY, st.integers(0, 1000))
@settings(max_examples=60)
def test_black_bars_stay_black(pair: tuple[U8, U8], chosen: AugmentSettings, epoch: int) -> None:
    barred = np.pad(pair[0][20:-20], ((20, 20), (0, 0)))
    still = chosen.model_copy(update=dict.fromkeys(MOVES, 0.0))
    image, _ = augment(barred, pair[1], still, (0, epoch, "x"))
    assert not image[:20].any()
    assert not image[-20:].any()


@given(st.tuples(*[st.integers(0, 95)] * 4), st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
@settings(max_examples=150)
def test_collimation_never_covers_the_lungs(box: tuple[int, int, int, int], epoch: int, moves: float) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[min(box[:2]) : max(box[:2]) + 1, min(box[2:]) : max(box[2:]) + 1] = 1
    moving = AugmentSettings(**{kind: moves * amount for kind, amount in MOVES.items()}, collimate=1.0)
    image, moved = augment(np.full_like(mask, 255), mask, moving, (0, epoch, "x"))
    assert image[moved == 1].min(initial=255) >= 127
    if not moves:
        assert image[cv2.dilate(mask, np.ones((3, 3), np.uint8)) == 1].min(initial=255) == 255


def test_collimation_covers_one_to_four_sides_but_no_padding() -> None:
    white, mask = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    white[:, 28:-28] = 255
    mask[80:176, 80:176] = 1
    sides, greys = [], []
    for epoch in range(300):
        image, _ = augment(white, mask, AugmentSettings(collimate=1.0), (0, epoch, "x"))
        assert not image[:, :28].any()
        assert not image[:, -28:].any()
        assert (image[76:180, 76:180] == 255).all()
        middles = image[0, 128], image[-1, 128], image[128, 28], image[128, -29]
        sides.append(sum(int(grey) < 255 for grey in middles))
        greys.append(min(middles))
    assert {1, 2, 3, 4} <= set(sides)
    assert sides.count(0) < 30
    assert 0.4 < np.mean(np.array(greys) == 0) < 0.6
    assert np.mean([grey <= 160 for grey in greys if grey < 255]) > 0.95  # the others are anti-aliased edges


def test_collimation_probability_is_respected(pair: tuple[U8, U8]) -> None:
    closed = sum(augment(*pair, AugmentSettings(collimate=0.3), (0, i, "x"))[0] is not pair[0] for i in range(400))
    assert 90 < closed < 150


@pytest.mark.parametrize(("grey", "label"), [(0, 0), (0, 1), (200, 0), (200, 1)])
def test_uniform_images_are_accepted(grey: int, label: int) -> None:
    for epoch in range(20):
        shape = np.ones((64, 64), np.uint8)
        image, mask = augment(shape * np.uint8(grey), shape * np.uint8(label), ALL, (0, epoch, "x"))
        assert image.any() == (grey > 0)
        assert mask.any() == (label > 0)


CLASSES = ("right_lung", "left_lung", "heart", "opacity")


@pytest.fixture(scope="module")
def masks(pair: tuple[U8, U8]) -> U8:
    """Right and left lung, a heart over both, and opacities that are not annotated."""
    right, left, heart = pair[1].copy(), pair[1].copy(), np.zeros_like(pair[1])
    right[:, 48:] = 0
    left[:, :48] = 0
    heart[50:70, 30:60] = 1
    return np.stack([right, left, heart, np.full_like(heart, NOT_ANNOTATED)])


def test_a_flip_exchanges_left_and_right_classes(pair: tuple[U8, U8], masks: U8) -> None:
    _, flipped = augment_masks(pair[0], masks, AugmentSettings(flip=1.0), KEY, CLASSES)
    np.testing.assert_array_equal(flipped[0], masks[1, :, ::-1])
    np.testing.assert_array_equal(flipped[1], masks[0, :, ::-1])
    np.testing.assert_array_equal(flipped[2], masks[2, :, ::-1])
    assert (flipped[3] == NOT_ANNOTATED).all()
    _, kept = augment_masks(pair[0], masks, AugmentSettings(flip=0.0, shift=0.01), KEY, CLASSES)
    assert kept[0, :, 48:].sum() < kept[0, :, :48].sum()


def test_not_annotated_side_is_exchanged_too(pair: tuple[U8, U8], masks: U8) -> None:
    partly = masks.copy()
    partly[1] = NOT_ANNOTATED
    _, flipped = augment_masks(pair[0], partly, AugmentSettings(flip=1.0), KEY, CLASSES)
    assert (flipped[0] == NOT_ANNOTATED).all()
    np.testing.assert_array_equal(flipped[1], masks[0, :, ::-1])


def test_each_class_moves_as_it_would_alone(pair: tuple[U8, U8], masks: U8) -> None:
    moves = AugmentSettings(**{**MOVES, "flip": 0.0})
    _, moved = augment_masks(pair[0], masks, moves, KEY, CLASSES)
    for number in range(3):
        np.testing.assert_array_equal(moved[number], augment(pair[0], masks[number], moves, KEY)[1])


def test_opacities_are_painted_in_both_lungs_unless_annotated(pair: tuple[U8, U8], masks: U8) -> None:
    painting = AugmentSettings(opacity=1.0)
    painted, _ = augment_masks(pair[0], masks, painting, KEY, CLASSES)
    np.testing.assert_array_equal(painted, augment(*pair, painting, KEY)[0])
    annotated = masks.copy()
    annotated[3] = 0
    assert augment_masks(pair[0], annotated, painting, KEY, CLASSES)[0] is pair[0]
    assert (augment_masks(pair[0], annotated, AugmentSettings(gas=1.0), KEY, CLASSES)[0] != pair[0]).any()


def test_no_disease_is_painted_without_lungs(pair: tuple[U8, U8], masks: U8) -> None:
    hearts = masks[2:3]
    assert augment_masks(pair[0], hearts, AugmentSettings(**DISEASES), KEY, ("heart",))[0] is pair[0]
