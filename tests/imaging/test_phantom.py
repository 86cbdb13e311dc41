"""Phantoms are reproducible at every size, with two complete lungs."""

import pathlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from lungseg.imaging import phantom

styles = pytest.mark.parametrize("style", phantom.STYLES)


def _dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())


def _shrink(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA), np.float32)


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _typical(style: phantom.Style, size: int = 128, count: int = 12) -> dict[str, float]:
    """Average the features that distinguish the scanners."""
    pairs = [phantom.draw(seed, style, size) for seed in range(count)]
    return {
        "grey in the lungs": float(np.mean([image[mask > 0].mean() for image, mask in pairs])),
        "black": float(np.mean([(image < 4).mean() for image, _ in pairs])),
        "brightest": float(np.mean([np.percentile(image[mask == 0], 95) for image, mask in pairs])),
        "mask area": float(np.mean([mask.mean() for _, mask in pairs])),
        "mask height": float(np.mean([np.ptp(np.nonzero(mask.any(axis=1))[0]) / size for _, mask in pairs])),
    }


@styles
def test_the_same_seed_gives_the_same_bytes(style: phantom.Style) -> None:
    first, again = phantom.draw(3, style, 160), phantom.draw(3, style, 160)
    assert [pixels.tobytes() for pixels in first] == [pixels.tobytes() for pixels in again]


@styles
def test_different_seeds_give_different_patients(style: phantom.Style) -> None:
    masks = [phantom.draw(seed, style, 128)[1] for seed in range(8)]
    images = [phantom.draw(seed, style, 128)[0].astype(float) for seed in range(2)]
    overlaps = [_dice(one, other) for i, one in enumerate(masks) for other in masks[:i]]
    assert max(overlaps) < 0.98
    assert np.mean(overlaps) < 0.93
    assert np.abs(images[0] - images[1]).mean() > 5


def test_seed_sequences_and_styles_give_different_images() -> None:
    seeds: list[int | tuple[int, int]] = [5, (5, 1), (0, 5), (1, 5)]
    drawn = {phantom.draw(seed, style, 64)[0].tobytes() for seed in seeds for style in phantom.STYLES}
    assert len(drawn) == 2 * len(seeds)
    assert phantom.draw((5,), "shenzhen", 64)[0].tobytes() == phantom.draw(5, "shenzhen", 64)[0].tobytes()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64), style=st.sampled_from(phantom.STYLES), size=st.integers(64, 512))
def test_every_phantom_has_two_lungs_inside_the_image(seed: int, style: phantom.Style, size: int) -> None:
    image, mask = phantom.draw(seed, style, size)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert int(image.max()) - int(image.min()) > 150
    count, _, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
    assert count == 3
    assert stats[1:, cv2.CC_STAT_AREA].min() > 0.01 * size * size
    assert centroids[1:, 0].min() < 0.45 * size < 0.57 * size < centroids[1:, 0].max()
    assert 0.08 < mask.mean() < 0.42
    assert not np.concatenate([mask[[0, -1]].ravel(), mask[:, [0, -1]].ravel()]).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), style=st.sampled_from(phantom.STYLES))
def test_lungs_are_darker_than_their_surroundings_and_inside_the_field(seed: int, style: phantom.Style) -> None:
    image, mask = phantom.draw(seed, style, 192)
    around = cv2.dilate(mask, np.ones((15, 15), np.uint8)) - mask
    assert np.median(image[mask > 0]) < np.median(image[around > 0]) - 20
    assert (image[mask > 0] < 4).mean() < 0.02  # the collimator's black


@styles
@pytest.mark.parametrize("size", [128, 256])
def test_a_patient_looks_the_same_at_every_size(style: phantom.Style, size: int) -> None:
    for seed in range(3):
        large, small = phantom.draw(seed, style, 512), phantom.draw(seed, style, size)
        assert _dice((_shrink(large[1] * np.uint8(255), size) > 127).astype(np.uint8), small[1]) > 0.97
        soft = [cv2.GaussianBlur(_shrink(pixels, 64), (0, 0), 1.0) for pixels in (large[0], small[0])]
        assert np.corrcoef(soft[0].ravel(), soft[1].ravel())[0, 1] > 0.99


def test_styles_differ_like_the_scanners() -> None:
    shenzhen, montgomery = _typical("shenzhen"), _typical("montgomery")
    assert shenzhen["grey in the lungs"] > montgomery["grey in the lungs"] + 30
    assert montgomery["black"] > shenzhen["black"] + 0.1
    assert montgomery["brightest"] > shenzhen["brightest"] + 8
    assert shenzhen["mask area"] > montgomery["mask area"]
    assert shenzhen["mask height"] > montgomery["mask height"] + 0.03


def test_an_archive_contains_the_expected_pairs(tmp_path: pathlib.Path) -> None:
    phantom.write_archive(tmp_path, per_style=2, seed=9, size=64)
    names = [
        f"phantom-{style}/{kind}/PHANTOM_{style[0].upper()}_000{item}.png"
        for style in phantom.STYLES
        for kind in ("images", "masks")
        for item in (0, 1)
    ]
    assert sorted(_contents(tmp_path)) == sorted(names)
    folder, name = tmp_path / "phantom-montgomery", "PHANTOM_M_0001.png"
    image, mask = phantom.draw((9, 1), "montgomery", 64)
    for kind, pixels in (("images", image), ("masks", mask * 255)):
        assert np.array_equal(np.asarray(cv2.imread(str(folder / kind / name), cv2.IMREAD_UNCHANGED)), pixels)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_interrupted_archive_is_completed(tmp_path: pathlib.Path, kind: str) -> None:
    phantom.write_archive(tmp_path, per_style=2, size=64)
    complete = _contents(tmp_path)
    lost = tmp_path / "phantom-shenzhen" / kind / "PHANTOM_S_0001.png"
    lost.unlink()
    phantom.write_archive(tmp_path, per_style=2, size=64)
    assert _contents(tmp_path) == complete


def test_existing_pairs_are_not_drawn_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom.write_archive(tmp_path, per_style=1, size=64)
    drawn = []
    draw = phantom.draw_classes

    def recording_draw(
        seed: tuple[int, int], style: phantom.Style, size: int
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.uint8]]]:
        drawn.append((seed, style))
        return draw(seed, style, size)

    monkeypatch.setattr(phantom, "draw_classes", recording_draw)
    phantom.write_archive(tmp_path, per_style=2, size=64)
    assert drawn == [((0, 1), style) for style in phantom.STYLES]


def test_classes_are_drawn_where_they_belong() -> None:
    found = 0
    for seed in range(8):
        image, masks = phantom.draw_classes((0, seed), phantom.STYLES[seed % 2], 128)
        np.testing.assert_array_equal(image, phantom.draw((0, seed), phantom.STYLES[seed % 2], 128)[0])
        right, left = masks["right_lung"], masks["left_lung"]
        np.testing.assert_array_equal(right | left, masks["lung"])
        assert np.nonzero(right)[1].max() < np.nonzero(left)[1].min()
        assert 0.03 < masks["heart"].mean() < 0.2
        assert not (masks["opacity"] & ~masks["lung"]).any()
        found += bool(masks["opacity"].any())
    assert 0 < found < 8


def test_each_requested_class_has_a_folder(tmp_path: pathlib.Path) -> None:
    phantom.write_archive(tmp_path, per_style=1, size=64, classes=("right_lung", "heart", "clavicle"))
    folders = {path.name for path in (tmp_path / "phantom-shenzhen").iterdir()}
    assert folders == {"images", "masks", "right_lung_masks", "heart_masks"}
