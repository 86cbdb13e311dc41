"""Grey levels of any depth to 0..255, undisturbed by borders."""

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
def test_a_border_does_not_change_the_levels_of_the_picture(
    chest: U8, mode: str, value: int, border: tuple[int, int, int, int]
) -> None:
    bare = normalise(chest, mode).astype(int)
    found = normalise(framed(chest, border, value), mode)
    assert np.abs(inner(found, border) - bare).max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_a_border_becomes_one_level(chest: U8, mode: str) -> None:
    for value in (0, 90, 255):
        found = normalise(framed(chest, (30, 30, 0, 0), value), mode)
        assert found[:30].min() == found[:30].max()
        assert value or not found[:30].any()


@pytest.mark.parametrize("mode", MODES)
def test_a_border_brighter_than_the_depth_does_not_darken_the_picture(chest: U8, mode: str) -> None:
    twelve = chest.astype(np.uint16) << 4
    border = (20, 20, 20, 20)
    found = normalise(framed(twelve, border, 65535), mode)
    assert np.abs(inner(found, border) - normalise(twelve, mode).astype(int)).max() <= 1
    if mode in ("none", "clahe"):
        assert found[0, 0] == 255


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_pure_black_stays_black(chest: U8, mode: str, depth: type[Any]) -> None:
    image = chest.astype(depth)
    image[np.tril_indices(80)] = 0
    found = normalise(image, mode)
    assert not found[image == 0].any()


@pytest.mark.parametrize("mode", ["equalize", "percentile", "match"])
def test_pure_black_inside_the_picture_does_not_change_its_levels(chest: U8, mode: str) -> None:
    middle = slice(60, 140)
    image = chest.copy()
    image[:, middle] = 0
    found = np.delete(normalise(image, mode), middle, axis=1)
    np.testing.assert_array_equal(found, normalise(np.delete(chest, middle, axis=1), mode))


# Levels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_levels_are_bytes_and_the_image_is_not_changed(mode: str, depth: type[Any]) -> None:
    image = GREY.astype(depth) * depth(np.iinfo(depth).max // 255)
    before = image.copy()
    found = normalise(image, mode)
    assert (found.dtype, found.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(found, image) or mode == "none"


@pytest.mark.parametrize("mode", MODES)
def test_eight_bits_and_the_same_in_sixteen_give_the_same(mode: str) -> None:
    shallow = normalise(GREY, mode).astype(int)
    deep = normalise(GREY.astype(np.uint16) * 257, mode)
    assert np.abs(shallow - deep).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_picture_of_fewer_bits_is_as_bright_as_one_of_eight(mode: str, bits: int) -> None:
    deep = np.rint(SMOOTH * (2**bits - 1)).astype(np.uint16)
    found = normalise(deep, mode).astype(float)
    expected = normalise(GREY, mode).astype(float)
    assert abs(found.mean() - expected.mean()) < 4.0
    assert abs(found.std() - expected.std()) < 4.0


@pytest.mark.parametrize("mode", TABLES)
@given(seed=st.integers(0, 2**32 - 1), depth=st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=25)
def test_a_brighter_pixel_never_becomes_a_darker_one(mode: str, seed: int, depth: type[Any]) -> None:
    random = np.random.default_rng(seed)
    image = (random.beta(*random.uniform(0.3, 4, 2), (40, 40)) * np.iinfo(depth).max).astype(depth)
    order = np.argsort(image, axis=None, kind="stable")
    levels = normalise(image, mode).ravel()[order].astype(int)
    assert (np.diff(levels) >= 0).all()


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_equalize_makes_every_level_equally_frequent(depth: type[Any]) -> None:
    random = np.random.default_rng(0)
    image = (random.beta(2, 6, (400, 400)) * (np.iinfo(depth).max - 1) + 1).astype(depth)
    found = normalise(image, "equalize")
    assert (found.min(), found.max()) == (0, 255)
    quantiles = np.quantile(found, np.linspace(0, 1, 21))
    assert np.abs(quantiles - np.linspace(0, 255, 21)).max() <= (6 if depth is np.uint8 else 1.5)


def test_equalize_is_that_of_gonzalez_and_woods() -> None:
    image = np.array([[10, 10, 20], [20, 20, 20], [30, 30, 40]], np.uint8)
    expected = {10: 0, 20: round(4 / 7 * 255), 30: round(6 / 7 * 255), 40: 255}
    np.testing.assert_array_equal(normalise(image, "equalize"), np.vectorize(expected.get)(image))


@pytest.mark.parametrize("factor", [1, 257])
def test_percentile_spans_the_whole_range_and_forgets_outliers(factor: int) -> None:
    image = (np.linspace(50, 150, 100 * 100).reshape(100, 100).round() * factor).astype(np.uint16)
    image[0, 0], image[-1, -1] = 3 * factor, 250 * factor
    found = normalise(image, "percentile")
    assert (found[0, 0], found[-1, -1]) == (0, 255)
    assert (found.min(), found.max()) == (0, 255)
    assert 0.005 < (found == 0).mean() < 0.03
    assert 0.005 < (found == 255).mean() < 0.03
    assert abs(float(found[50, 50]) - 127.5) < 3


@pytest.mark.parametrize("mode", ["equalize", "percentile"])
def test_black_bars_do_not_change_the_levels_of_the_picture(mode: str) -> None:
    padded = np.pad(GREY, ((0, 0), (200, 200)))
    found = normalise(padded, mode)
    np.testing.assert_array_equal(found[:, 200:-200], normalise(GREY, mode))
    assert not found[:, :200].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0, 1, 200])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_one_grey_everywhere_gives_one_level_everywhere(mode: str, value: int, depth: type[Any]) -> None:
    found = normalise(np.full((48, 40), value, depth), mode)
    assert found.min() == found.max()
    assert mode in ("clahe", "match") or found[0, 0] == (value if mode == "none" else 0)


def test_none_keeps_eight_bits_as_they_are() -> None:
    np.testing.assert_array_equal(normalise(GREY, "none"), GREY)
    np.testing.assert_array_equal(normalise(GREY.astype(np.uint16), "none"), GREY)


# Landmarks


@given(seed=st.integers(0, 2**32 - 1), shift=st.sampled_from([0, 4, 8]))
@settings(max_examples=30)
def test_match_brings_the_percentiles_to_the_landmarks(seed: int, shift: int) -> None:
    random = np.random.default_rng(seed)
    image = (random.beta(*random.uniform(1, 4, 2), (120, 120)) * 254 + 1).astype(np.uint16) << shift
    found = normalise(image, "match")
    steps = np.percentile(image >> shift, NYUL)
    # Between two greys of the picture there is nothing: a landmark is met to half the widest step about it.
    widest = np.max(np.diff(LANDMARKS) / np.maximum(np.diff(steps), 1))
    assert np.abs(np.percentile(found, NYUL) - LANDMARKS).max() <= 1 + widest


def test_match_is_linear_between_landmarks_and_goes_on_beyond_them() -> None:
    image = np.arange(1, 65536, dtype=np.uint16).reshape(-1, 255)
    found = normalise(image, "match").ravel().astype(float)
    greys, levels = np.array(NYUL) / 100 * 65535, np.array(LANDMARKS)
    within = (image.ravel() >= greys[0]) & (image.ravel() <= greys[-1])
    expected = np.interp(image.ravel(), greys, levels)
    assert np.abs(found - expected)[within].max() <= 0.6
    below = levels[0] + (1 - greys[0]) * (levels[1] - levels[0]) / (greys[1] - greys[0])
    above = levels[-1] + (65535 - greys[-1]) * (levels[-1] - levels[-2]) / (greys[-1] - greys[-2])
    assert abs(found[0] - below) <= 0.6
    assert abs(found[-1] - above) <= 0.6


def test_what_lies_far_beyond_the_landmarks_is_cut() -> None:
    image = np.tile(np.arange(100, 150, dtype=np.uint8), (60, 2))
    image[0, 0], image[0, -1] = 1, 255
    found = normalise(image, "match")
    assert (found[0, 0], found[0, -1]) == (0, 255)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_match_to_itself_changes_nothing(chest: U8, bits: int) -> None:
    image = chest if bits == 8 else chest.astype(np.uint16) << (bits - 8)
    landmarks = intensity.compute_landmarks([image])
    np.testing.assert_allclose(landmarks, np.percentile(chest, NYUL), atol=1.0)
    found = intensity.normalise(image, "match", landmarks)
    middle = (chest >= landmarks[0]) & (chest <= landmarks[-1])
    assert np.abs(found.astype(int) - chest)[middle].max() <= 1


@pytest.mark.parametrize("gamma", [0.6, 0.8, 1.3, 1.7])
def test_match_undoes_a_gamma(chest: U8, gamma: float) -> None:
    changed = np.rint(65534 * (chest / 255.0) ** gamma + 1).astype(np.uint16)
    found = intensity.normalise(changed, "match", intensity.compute_landmarks([chest])).astype(float)
    before = np.abs(normalise(changed, "none").astype(float) - chest).mean()
    after = np.abs(found - chest).mean()
    assert after < 2.5
    assert after < before / 3


@pytest.mark.parametrize("greys", [[1], [200], [3, 250], [5, 6, 7], [0, 9]])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_few_greys_are_matched_in_their_order(greys: list[int], depth: type[Any]) -> None:
    image = np.random.default_rng(0).choice(np.array(greys, depth), (50, 50))
    found = normalise(image, "match")
    levels = [int(found[image == grey][0]) for grey in greys]
    assert levels == sorted(levels)
    assert (found == np.array(levels)[np.searchsorted(greys, image)]).all()


def test_a_grey_that_is_several_percentiles_goes_to_the_mean_of_their_landmarks() -> None:
    image = np.random.default_rng(0).permutation(np.repeat([10, 20], (350, 650))).reshape(20, 50).astype(np.uint8)
    found = normalise(image, "match")
    assert (found[image == 10] == round(np.mean(LANDMARKS[:4]))).all()
    assert (found[image == 20] == round(np.mean(LANDMARKS[4:]))).all()


@pytest.mark.parametrize(
    ("landmarks", "said"),
    [
        ((), "pass --match-to"),
        (LANDMARKS[:-1], "expected 11 levels"),
        ((*LANDMARKS, 255.0), "expected 11 levels"),
        (LANDMARKS[::-1], "higher than the one before"),
        ((*LANDMARKS[:5], LANDMARKS[4], *LANDMARKS[6:]), "higher than the one before"),
    ],
)
def test_match_without_rising_landmarks_is_refused(landmarks: tuple[float, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        intensity.normalise(GREY, "match", landmarks)


def test_landmarks_of_several_pictures_are_the_mean_on_the_standard_scale(chest: U8) -> None:
    pictures = [GREY, GREY // 2 + 60, chest]
    expected = []
    for picture in pictures:
        levels = np.percentile(picture, NYUL, method="inverted_cdf").astype(float)
        expected.append(2.55 + (levels - levels[0]) * (252.45 - 2.55) / (levels[-1] - levels[0]))
    found = intensity.compute_landmarks(iter(pictures))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-6)
    assert (found[0], found[-1]) == pytest.approx((2.55, 252.45))


def test_landmarks_ignore_depth_border_and_linear_changes(chest: U8) -> None:
    first = intensity.compute_landmarks([GREY, chest])
    deep = chest.astype(np.uint16) << 4
    again = intensity.compute_landmarks([GREY // 2 + 20, framed(deep, (30, 0, 20, 0), 4095)])
    np.testing.assert_allclose(first, again, atol=1.5)


@given(st.lists(st.sets(st.integers(1, 255), min_size=2, max_size=40), min_size=1, max_size=3), st.sampled_from([0, 4]))
@settings(max_examples=40)
def test_what_is_learnt_can_be_used(greys: list[set[int]], shift: int) -> None:
    """However few and however crowded the greys of the references are."""
    random = np.random.default_rng(0)
    pictures = [
        random.permutation(np.resize(sorted(some), 400)).reshape(20, 20).astype(np.uint16) << shift for some in greys
    ]
    landmarks = intensity.compute_landmarks(pictures)
    assert min(landmarks) >= 0
    assert max(landmarks) <= 255
    intensity.normalise(GREY, "match", landmarks)


def test_a_saturated_reference_gives_rising_landmarks() -> None:
    image = np.where(np.random.default_rng(0).random((100, 100)) < 0.4, 255, GREY[:100, :100]).astype(np.uint8)
    landmarks = intensity.compute_landmarks([image])
    assert (np.diff(landmarks) > 0).all()
    assert landmarks[-1] == 255.0


def test_a_reference_of_one_grey_is_named_by_its_number() -> None:
    with pytest.raises(ImageError, match="picture 2 of --match-to") as caught:
        intensity.compute_landmarks([GREY, np.full((50, 50), 9, np.uint8)])
    assert caught.value.code == "flat_reference"


def test_no_reference_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="--match-to holds no picture"):
        intensity.compute_landmarks(iter(()))


def test_match_brings_the_data_sets_nearer_to_each_other(cxr256: Path) -> None:
    both = [sorted((cxr256 / name / "images").iterdir()) for name in ("montgomery", "shenzhen")]
    paths = [path for paths in both for path in paths[:: len(paths) // 10]]
    pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    landmarks = intensity.compute_landmarks(pictures[len(pictures) // 2 :])

    def spread(mode: str) -> float:
        """Mean distance of the pictures' deciles from those of all."""
        found = [intensity.normalise(image, mode, landmarks) for image in pictures]
        deciles = np.array([np.percentile(image[image > 0], NYUL[1:-1]) for image in found])
        return float(np.abs(deciles - deciles.mean(0)).mean())

    assert spread("match") < spread("none") / 4
