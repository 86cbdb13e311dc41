"""Preparation of images and masks, and its inverse."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from lungseg.config import PreprocessSettings
from lungseg.errors import InputError, SettingsError
from lungseg.imaging import geometry as geometry_module
from lungseg.schema import NOT_ANNOTATED, Geometry

U8 = NDArray[np.uint8]
SIDES = st.integers(40, 700)


def preprocess_settings(size: int, geometry: str = "pad", histogram: str = "none") -> PreprocessSettings:
    return PreprocessSettings.model_validate({"size": size, "geometry": geometry, "histogram": histogram})


def dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


# Geometry


@given(SIDES, SIDES, st.sampled_from([64, 256, 512]), st.sampled_from(["pad", "crop"]))
def test_the_image_keeps_its_aspect_ratio_and_is_centred(height: int, width: int, size: int, geometry: str) -> None:
    place = geometry_module.plan_geometry(height, width, preprocess_settings(size, geometry))
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
def test_padding_is_black_and_crops_fill_the_square(
    height: int, width: int, size: int, geometry: str, depth: type[Any]
) -> None:
    image = np.full((height, width), 200, depth)
    mask = np.ones((height, width), np.uint8)
    square, place = geometry_module.prepare_image(image, preprocess_settings(size, geometry))
    small = geometry_module.prepare_mask(mask, place)
    rows, columns = place.content()
    inside = np.zeros((size, size), bool)
    inside[rows, columns] = True
    for result, value in ((square, 200), (small, 1)):
        assert (result.shape, result.dtype) == ((size, size), np.uint8)
        np.testing.assert_array_equal(result, np.where(inside, value, 0))
    if geometry == "crop":
        assert inside.all()
    back = geometry_module.restore(small.astype(np.float32), place)
    assert (back.shape, back.dtype) == ((height, width), np.float32)


def draw_lungs(height: int, width: int, area: float, seed: int) -> U8:
    """Two smooth, uneven ellipses that cover about this share of the image."""
    random = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    scale = np.sqrt(area / (2 * np.pi * 0.13 * 0.32))
    mask = np.zeros((height, width), np.uint8)
    for middle in (0.27, 0.73):
        radius = scale * (
            1 + sum(random.uniform(-0.04, 0.04) * np.cos(k * angle + random.uniform(0, 6)) for k in (2, 3))
        )
        outline = np.stack([middle + 0.13 * radius * np.cos(angle), 0.5 + 0.32 * radius * np.sin(angle)], 1)
        cv2.fillPoly(mask, [np.rint(outline * (width, height) * 16).astype(np.int32)], 1, shift=4)
    return mask


def prepare_and_restore(mask: U8, geometry: str) -> tuple[Geometry, NDArray[np.bool_]]:
    place = geometry_module.plan_geometry(*mask.shape, preprocess_settings(512, geometry))
    return place, geometry_module.restore(geometry_module.prepare_mask(mask, place).astype(np.float32), place) > 0.5


@given(st.integers(300, 4000), st.floats(0.6, 1.7), st.floats(0.15, 0.35), st.integers(0, 99))
@settings(max_examples=25)
@pytest.mark.parametrize("geometry", ["pad", "crop"])
def test_synthetic_lungs_are_restored_in_place(
    geometry: str, longer: int, aspect: float, area: float, seed: int
) -> None:
    height, width = (longer, round(longer * aspect)) if aspect < 1 else (round(longer / aspect), longer)
    mask = draw_lungs(height, width, area, seed) == 1
    _, back = prepare_and_restore(mask.astype(np.uint8), geometry)
    kept = (slice(None), slice(None))
    if geometry == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        kept = (slice(top, top + side), slice(left, left + side))
    assert dice(back[kept], mask[kept]) >= 0.995


@pytest.mark.parametrize("dataset", ["montgomery", "shenzhen"])
def test_real_lungs_are_restored_in_place(cxr256: Path, dataset: str) -> None:
    for path in sorted((cxr256 / dataset / "masks").iterdir())[::40]:
        small = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for height, width in ((256, 256), (1024, 900), (1500, 2000)):
            smooth = cv2.GaussianBlur(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), (0, 0), 3.0)
            mask = smooth > 127
            assert dice(prepare_and_restore(mask.astype(np.uint8), "pad")[1], mask) >= 0.995


def test_masks_of_the_target_size_are_restored_exactly() -> None:
    mask = np.random.default_rng(2).integers(0, 2, (512, 512), dtype=np.uint8)
    for geometry in ("pad", "crop"):
        np.testing.assert_array_equal(prepare_and_restore(mask, geometry)[1], mask == 1)


@given(st.integers(100, 400), st.integers(100, 400), st.sampled_from([128, 256]))
@settings(max_examples=40)
def test_a_crop_loses_only_pixels_outside_it(height: int, width: int, size: int) -> None:
    place = geometry_module.plan_geometry(height, width, preprocess_settings(size, "crop"))
    back = geometry_module.restore(np.ones((size, size), np.float32), place)
    side = min(height, width)
    kept = np.zeros((height, width), bool)
    top, left = (height - side) // 2, (width - side) // 2
    kept[top : top + side, left : left + side] = True
    wrong = (back > 0.5) != kept
    # The kept square's border may lie between two pixels of either grid, or at the image's own edge.
    reach = max(2, -(-2 * side // size))
    border = (
        cv2.dilate(kept.astype(np.uint8), np.ones((2 * reach + 1,) * 2))
        - cv2.erode(np.pad(kept.astype(np.uint8), reach), np.ones((2 * reach + 1,) * 2))[reach:-reach, reach:-reach]
    )
    assert not (wrong & (border == 0)).any()
    if height == width:
        assert not wrong.any()


def test_restore_inverts_the_placement() -> None:
    """One bright spot off the middle of a wide image: its centre is restored in both geometries."""
    for geometry, native in (("pad", (150, 300)), ("crop", (150, 220)), ("crop", (220, 150)), ("pad", (300, 150))):
        mask = np.zeros(native, np.uint8)
        mask[40:60, 70:90] = 1
        place = geometry_module.plan_geometry(*native, preprocess_settings(256, geometry))
        back = geometry_module.restore(geometry_module.prepare_mask(mask, place).astype(np.float32), place)
        rows, columns = np.nonzero(back > 0.5)
        assert abs(rows.mean() - 49.5) < 0.5
        assert abs(columns.mean() - 79.5) < 0.5


def test_restore_keeps_probabilities() -> None:
    place = geometry_module.plan_geometry(90, 70, preprocess_settings(64))
    back = geometry_module.restore(np.full((64, 64), 0.3, np.float32), place)
    np.testing.assert_allclose(back, 0.3, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(2, 65), (65, 2), (65, 64), (130, 70)])
def test_shrinking_one_side_averages_areas(height: int, width: int) -> None:
    """Of 2 x 65 px the long side becomes 64 and the short one stays 2, by rounding."""
    stripes = (np.indices((height, width)).sum(0) % 2 * 200).astype(np.uint8)
    square, place = geometry_module.prepare_image(stripes, preprocess_settings(64))
    expected = cv2.resize(stripes, (place.resized_width, place.resized_height), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(square[place.content()], expected)


def test_images_of_the_target_size_are_unchanged() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    for geometry in ("pad", "crop"):
        square, place = geometry_module.prepare_image(image, preprocess_settings(64, geometry))
        np.testing.assert_array_equal(square, image)
        assert place == Geometry(64, 64, 64, 64, 0, 0, 64)


# Masks of several classes


@given(SIDES, SIDES, st.integers(0, 99), st.sampled_from([64, 512]), st.sampled_from(["pad", "crop"]))
@settings(max_examples=30)
def test_each_class_is_resized_as_if_it_were_alone(
    height: int, width: int, seed: int, size: int, geometry: str
) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((height, width)), (0, 0), 2.0)
    mask = (noise > 0.5).astype(np.uint8)
    place = geometry_module.plan_geometry(height, width, preprocess_settings(size, geometry))
    masks = geometry_module.prepare_masks(np.stack([1 - mask, mask, mask]), place)
    for number in (1, 2):
        np.testing.assert_array_equal(masks[number], geometry_module.prepare_mask(mask, place))
    np.testing.assert_array_equal(masks[0], geometry_module.prepare_mask(1 - mask, place))


def test_class_that_is_not_annotated_stays_so() -> None:
    place = geometry_module.plan_geometry(100, 80, preprocess_settings(64))
    unknown = np.full((1, 100, 80), NOT_ANNOTATED, np.uint8)
    assert (geometry_module.prepare_masks(unknown, place) == NOT_ANNOTATED).all()


def test_landmarks_of_the_settings_are_used() -> None:
    image = np.random.default_rng(3).integers(1, 256, (64, 64), dtype=np.uint8)
    landmarks = tuple(float(level) for level in range(50, 160, 10))
    matching = PreprocessSettings(size=64, histogram="match", landmarks=landmarks)
    square, _ = geometry_module.prepare_image(image, matching)
    assert abs(float(np.median(square)) - 100) <= 1
    with pytest.raises(SettingsError, match="--match-to"):
        geometry_module.prepare_image(image, preprocess_settings(64, histogram="match"))


@pytest.mark.parametrize(
    "change",
    [
        {"native_height": 1 << 20, "native_width": 1 << 20},
        {"size": 0},
        {"size": True},
        {"size": 64.0},
        {"top": 64},
        {"orientation": 9},
        {"other": 1},
    ],
)
def test_a_stored_geometry_that_cannot_be_right_is_refused(change: dict[str, object]) -> None:
    stored = asdict(geometry_module.plan_geometry(100, 80, PreprocessSettings(size=64)))
    assert geometry_module.read_geometry(stored) == Geometry(**stored)
    for values in ({**stored, **change}, [1], {}):
        with pytest.raises(InputError, match="the geometry is not valid"):
            geometry_module.read_geometry(values)
