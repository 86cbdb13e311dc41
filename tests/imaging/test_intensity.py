"""Normalisation of any bit depth to 0..255, independent of borders."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from lungseg.errors import ImageError, InputError, SettingsError
from lungseg.imaging import intensity, phantom
from lungseg.imaging.collimation import content_box

U8 = NDArray[np.uint8]
MODES = ["equalize", "clahe", "percentile", "match", "none"]
TABLES = ["equalize", "percentile", "match", "none"]
SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).random((180, 160)), (0, 0), 6.0)
SMOOTH = (SMOOTH - SMOOTH.min()) / (SMOOTH.max() - SMOOTH.min())
GREY: U8 = np.rint(SMOOTH * 254 + 1).astype(np.uint8)
NYUL = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
LANDMARKS = tuple(float(level) for level in (8, 30, 52, 75, 98, 120, 140, 165, 190, 220, 248))
BORDERS = st.tuples(*[st.integers(0, 60)] * 4)


def normalise(image: NDArray[Any], mode: str) -> U8:
    return intensity.normalise(image, mode, LANDMARKS if mode == "match" else ())


def framed(image: NDArray[Any], border: tuple[int, int, int, int], value: int) -> NDArray[Any]:
    top, bottom, left, right = border
    return np.pad(image, ((top, bottom), (left, right)), constant_values=value)


def inner(image: NDArray[Any], border: tuple[int, int, int, int]) -> NDArray[Any]:
    top, bottom, left, right = border
    return image[top : image.shape[0] - bottom, left : image.shape[1] - right]


@pytest.fixture(scope="module")
def chest() -> U8:
    """A phantom inside its own collimation, about 220 px a side."""
    image, _ = phantom.draw(3, "shenzhen", 256)
    content = image[content_box(image)][4:-4, 4:-4]
    return np.maximum(content, 1)


# Borders


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0, 90, 255])
@given(border=BORDERS)
@settings(max_examples=10)
def test_borders_do_not_change_levels_inside(
    chest: U8, mode: str, value: int, border: tuple[int, int, int, int]
) -> None:
    bare = normalise(chest, mode).astype(int)
    result = normalise(framed(chest, border, value), mode)
    assert np.abs(inner(result, border) - bare).max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_borders_stay_uniform(chest: U8, mode: str) -> None:
    for value in (0, 90, 255):
        result = normalise(framed(chest, (30, 30, 0, 0), value), mode)
        assert result[:30].min() == result[:30].max()
        assert value or not result[:30].any()


@pytest.mark.parametrize("mode", MODES)
def test_overbright_borders_do_not_darken_the_image(chest: U8, mode: str) -> None:
    twelve = chest.astype(np.uint16) << 4
    border = (20, 20, 20, 20)
    result = normalise(framed(twelve, border, 65535), mode)
    assert np.abs(inner(result, border) - normalise(twelve, mode).astype(int)).max() <= 1
    if mode in ("none", "clahe"):
        assert result[0, 0] == 255


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_pure_black_stays_black(chest: U8, mode: str, depth: type[Any]) -> None:
    image = chest.astype(depth)
    image[np.tril_indices(80)] = 0
    result = normalise(image, mode)
    assert not result[image == 0].any()


@pytest.mark.parametrize("mode", ["equalize", "percentile", "match"])
def test_black_areas_inside_do_not_change_levels(chest: U8, mode: str) -> None:
    middle = slice(60, 140)
    image = chest.copy()
    image[:, middle] = 0
    result = np.delete(normalise(image, mode), middle, axis=1)
    np.testing.assert_array_equal(result, normalise(np.delete(chest, middle, axis=1), mode))


# Levels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_the_result_is_u8_and_the_input_is_unchanged(mode: str, depth: type[Any]) -> None:
    image = GREY.astype(depth) * depth(np.iinfo(depth).max // 255)
    before = image.copy()
    result = normalise(image, mode)
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(result, image) or mode == "none"


@pytest.mark.parametrize("mode", MODES)
def test_8_and_16_bit_copies_give_equal_levels(mode: str) -> None:
    shallow = normalise(GREY, mode).astype(int)
    deep = normalise(GREY.astype(np.uint16) * 257, mode)
    assert np.abs(shallow - deep).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_brightness_does_not_depend_on_bit_depth(mode: str, bits: int) -> None:
    deep = np.rint(SMOOTH * (2**bits - 1)).astype(np.uint16)
    result = normalise(deep, mode).astype(float)
    expected = normalise(GREY, mode).astype(float)
    assert abs(result.mean() - expected.mean()) < 4.0
    assert abs(result.std() - expected.std()) < 4.0


@pytest.mark.parametrize("mode", TABLES)
@given(seed=st.integers(0, 2**32 - 1), depth=st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=25)
def test_lookup_tables_are_monotonic(mode: str, seed: int, depth: type[Any]) -> None:
    random = np.random.default_rng(seed)
    image = (random.beta(*random.uniform(0.3, 4, 2), (40, 40)) * np.iinfo(depth).max).astype(depth)
    order = np.argsort(image, axis=None, kind="stable")
    levels = normalise(image, mode).ravel()[order].astype(int)
    assert (np.diff(levels) >= 0).all()


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_equalize_gives_a_uniform_histogram(depth: type[Any]) -> None:
    random = np.random.default_rng(0)
    image = (random.beta(2, 6, (400, 400)) * (np.iinfo(depth).max - 1) + 1).astype(depth)
    result = normalise(image, "equalize")
    assert (result.min(), result.max()) == (0, 255)
    quantiles = np.quantile(result, np.linspace(0, 1, 21))
    assert np.abs(quantiles - np.linspace(0, 255, 21)).max() <= (6 if depth is np.uint8 else 1.5)


def test_equalize_follows_gonzalez_and_woods() -> None:
    image = np.array([[10, 10, 20], [20, 20, 20], [30, 30, 40]], np.uint8)
    expected = {10: 0, 20: round(4 / 7 * 255), 30: round(6 / 7 * 255), 40: 255}
    np.testing.assert_array_equal(normalise(image, "equalize"), np.vectorize(expected.get)(image))


@pytest.mark.parametrize("factor", [1, 257])
def test_percentile_uses_the_full_range_and_ignores_outliers(factor: int) -> None:
    image = (np.linspace(50, 150, 100 * 100).reshape(100, 100).round() * factor).astype(np.uint16)
    image[0, 0], image[-1, -1] = 3 * factor, 250 * factor
    result = normalise(image, "percentile")
    assert (result[0, 0], result[-1, -1]) == (0, 255)
    assert (result.min(), result.max()) == (0, 255)
    assert 0.005 < (result == 0).mean() < 0.03
    assert 0.005 < (result == 255).mean() < 0.03
    assert abs(float(result[50, 50]) - 127.5) < 3


@pytest.mark.parametrize("mode", ["equalize", "percentile"])
def test_black_bars_do_not_change_levels(mode: str) -> None:
    padded = np.pad(GREY, ((0, 0), (200, 200)))
    result = normalise(padded, mode)
    np.testing.assert_array_equal(result[:, 200:-200], normalise(GREY, mode))
    assert not result[:, :200].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0, 1, 200])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_uniform_images_stay_uniform(mode: str, value: int, depth: type[Any]) -> None:
    result = normalise(np.full((48, 40), value, depth), mode)
    assert result.min() == result.max()
    assert mode in ("clahe", "match") or result[0, 0] == (value if mode == "none" else 0)


def test_none_keeps_8_bits_unchanged() -> None:
    np.testing.assert_array_equal(normalise(GREY, "none"), GREY)
    np.testing.assert_array_equal(normalise(GREY.astype(np.uint16), "none"), GREY)


# Landmarks


@given(seed=st.integers(0, 2**32 - 1), shift=st.sampled_from([0, 4, 8]))
@settings(max_examples=30)
def test_match_maps_percentiles_to_landmarks(seed: int, shift: int) -> None:
    random = np.random.default_rng(seed)
    image = (random.beta(*random.uniform(1, 4, 2), (120, 120)) * 254 + 1).astype(np.uint16) << shift
    result = normalise(image, "match")
    steps = np.percentile(image >> shift, NYUL)
    # Grey values are discrete: a landmark is met within half of the widest step around it.
    widest = np.max(np.diff(LANDMARKS) / np.maximum(np.diff(steps), 1))
    assert np.abs(np.percentile(result, NYUL) - LANDMARKS).max() <= 1 + widest


def test_match_is_linear_between_and_beyond_landmarks() -> None:
    image = np.arange(1, 65536, dtype=np.uint16).reshape(-1, 255)
    result = normalise(image, "match").ravel().astype(float)
    greys, levels = np.array(NYUL) / 100 * 65535, np.array(LANDMARKS)
    within = (image.ravel() >= greys[0]) & (image.ravel() <= greys[-1])
    expected = np.interp(image.ravel(), greys, levels)
    assert np.abs(result - expected)[within].max() <= 0.6
    below = levels[0] + (1 - greys[0]) * (levels[1] - levels[0]) / (greys[1] - greys[0])
    above = levels[-1] + (65535 - greys[-1]) * (levels[-1] - levels[-2]) / (greys[-1] - greys[-2])
    assert abs(result[0] - below) <= 0.6
    assert abs(result[-1] - above) <= 0.6


def test_match_clips_levels_far_beyond_the_landmarks() -> None:
    image = np.tile(np.arange(100, 150, dtype=np.uint8), (60, 2))
    image[0, 0], image[0, -1] = 1, 255
    result = normalise(image, "match")
    assert (result[0, 0], result[0, -1]) == (0, 255)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_matching_an_image_to_itself_changes_nothing(chest: U8, bits: int) -> None:
    image = chest if bits == 8 else chest.astype(np.uint16) << (bits - 8)
    landmarks = intensity.compute_landmarks([image])
    np.testing.assert_allclose(landmarks, np.percentile(chest, NYUL), atol=1.0)
    result = intensity.normalise(image, "match", landmarks)
    middle = (chest >= landmarks[0]) & (chest <= landmarks[-1])
    assert np.abs(result.astype(int) - chest)[middle].max() <= 1


@pytest.mark.parametrize("gamma", [0.6, 0.8, 1.3, 1.7])
def test_match_undoes_a_gamma(chest: U8, gamma: float) -> None:
    changed = np.rint(65534 * (chest / 255.0) ** gamma + 1).astype(np.uint16)
    result = intensity.normalise(changed, "match", intensity.compute_landmarks([chest])).astype(float)
    before = np.abs(normalise(changed, "none").astype(float) - chest).mean()
    after = np.abs(result - chest).mean()
    assert after < 2.5
    assert after < before / 3


@pytest.mark.parametrize("greys", [[1], [200], [3, 250], [5, 6, 7], [0, 9]])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_match_keeps_the_order_of_few_grey_values(greys: list[int], depth: type[Any]) -> None:
    image = np.random.default_rng(0).choice(np.array(greys, depth), (50, 50))
    result = normalise(image, "match")
    levels = [int(result[image == grey][0]) for grey in greys]
    assert levels == sorted(levels)
    assert (result == np.array(levels)[np.searchsorted(greys, image)]).all()


def test_a_grey_value_at_several_percentiles_gets_their_mean_landmark() -> None:
    image = np.random.default_rng(0).permutation(np.repeat([10, 20], (350, 650))).reshape(20, 50).astype(np.uint8)
    result = normalise(image, "match")
    assert (result[image == 10] == round(np.mean(LANDMARKS[:4]))).all()
    assert (result[image == 20] == round(np.mean(LANDMARKS[4:]))).all()


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ((), "pass --match-to"),
        (LANDMARKS[:-1], "expected 11 levels"),
        ((*LANDMARKS, 255.0), "expected 11 levels"),
        (LANDMARKS[::-1], "higher than the one before"),
        ((*LANDMARKS[:5], LANDMARKS[4], *LANDMARKS[6:]), "higher than the one before"),
    ],
)
def test_match_needs_increasing_landmarks(landmarks: tuple[float, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        intensity.normalise(GREY, "match", landmarks)


def test_landmarks_of_several_images_are_averaged_on_the_standard_scale(chest: U8) -> None:
    images = [GREY, GREY // 2 + 60, chest]
    expected = []
    for image in images:
        levels = np.percentile(image, NYUL, method="inverted_cdf").astype(float)
        expected.append(2.55 + (levels - levels[0]) * (252.45 - 2.55) / (levels[-1] - levels[0]))
    result = intensity.compute_landmarks(iter(images))
    np.testing.assert_allclose(result, np.mean(expected, axis=0), atol=1e-6)
    assert (result[0], result[-1]) == pytest.approx((2.55, 252.45))


def test_landmarks_ignore_depth_border_and_linear_changes(chest: U8) -> None:
    first = intensity.compute_landmarks([GREY, chest])
    deep = chest.astype(np.uint16) << 4
    again = intensity.compute_landmarks([GREY // 2 + 20, framed(deep, (30, 0, 20, 0), 4095)])
    np.testing.assert_allclose(first, again, atol=1.5)


@given(st.lists(st.sets(st.integers(1, 255), min_size=2, max_size=40), min_size=1, max_size=3), st.sampled_from([0, 4]))
@settings(max_examples=40)
def test_computed_landmarks_are_valid(greys: list[set[int]], shift: int) -> None:
    """For references with few or adjacent grey values."""
    random = np.random.default_rng(0)
    images = [
        random.permutation(np.resize(sorted(some), 400)).reshape(20, 20).astype(np.uint16) << shift for some in greys
    ]
    landmarks = intensity.compute_landmarks(images)
    assert min(landmarks) >= 0
    assert max(landmarks) <= 255
    intensity.normalise(GREY, "match", landmarks)


def test_a_saturated_reference_gives_increasing_landmarks() -> None:
    image = np.where(np.random.default_rng(0).random((100, 100)) < 0.4, 255, GREY[:100, :100]).astype(np.uint8)
    landmarks = intensity.compute_landmarks([image])
    assert (np.diff(landmarks) > 0).all()
    assert landmarks[-1] == 255.0


def test_a_uniform_reference_is_refused_by_number() -> None:
    with pytest.raises(ImageError, match="image 2 of --match-to") as caught:
        intensity.compute_landmarks([GREY, np.full((50, 50), 9, np.uint8)])
    assert caught.value.code == "flat_match_image"


def test_missing_references_are_refused() -> None:
    with pytest.raises(InputError, match="--match-to contains no image"):
        intensity.compute_landmarks(iter(()))


def test_match_reduces_differences_between_datasets(cxr256: Path) -> None:
    both = [sorted((cxr256 / name / "images").iterdir()) for name in ("montgomery", "shenzhen")]
    paths = [path for paths in both for path in paths[:: len(paths) // 10]]
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    landmarks = intensity.compute_landmarks(images[len(images) // 2 :])

    def spread(mode: str) -> float:
        """Mean distance of the image deciles to the overall mean."""
        result = [intensity.normalise(image, mode, landmarks) for image in images]
        deciles = np.array([np.percentile(image[image > 0], NYUL[1:-1]) for image in result])
        return float(np.abs(deciles - deciles.mean(0)).mean())

    assert spread("match") < spread("none") / 4


# Extremes


@pytest.mark.parametrize(("depth", "marker"), [(np.uint8, 255), (np.uint16, 65535)])
def test_values_are_sorted_without_marker_and_border(depth: type[Any], marker: int) -> None:
    body = np.random.default_rng(1).integers(80, 120, (60, 70)).astype(depth)
    assert intensity.without_extremes(body).tolist() == sorted(body.ravel().tolist())
    image = np.pad(body, 3, constant_values=0)
    image[10:14, 10:30] = marker
    kept = sorted(
        np.delete(body, np.s_[7:11], axis=0).ravel().tolist() + np.delete(body[7:11], np.s_[7:27], 1).ravel().tolist()
    )
    values = intensity.without_extremes(image)
    assert (values.dtype, values.tolist()) == (image.dtype, kept)
