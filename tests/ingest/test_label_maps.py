"""Masks and label maps are told from X-rays by their grey values."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lungseg.arrays import U8
from lungseg.errors import ImageError
from lungseg.imaging import phantom
from lungseg.ingest import image_checks
from lungseg.ingest.label_maps import is_label_map
from tests.conftest import DrawPair


def as_jpeg(image: U8, quality: int) -> U8:
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), np.uint8)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (255, 0), (0, 1, 2), (0, 128, 255), (3, 4), (0, 50, 100, 200)])
def test_pictures_of_few_values_are_label_maps(values: tuple[int, ...], draw_pair: DrawPair) -> None:
    _, mask = draw_pair(1, 200, 180)
    label = mask * np.uint8(1)
    for number in range(2, len(values)):
        label[(number - 1) * 30 : number * 30] *= np.uint8(number)
    picture = np.array([*values, *[0] * 8], np.uint8)[np.minimum(label, len(values) - 1)]
    assert is_label_map(picture)
    assert is_label_map(picture.astype(np.uint16) * np.uint16(257))


@pytest.mark.parametrize("labels", [7, 8, 14, 30])
def test_maps_of_many_labels_are_label_maps(labels: int) -> None:
    random = np.random.default_rng(labels)
    picture = np.zeros((256, 256), np.uint8)
    for label in range(1, labels + 1):
        x, y, radius = (int(number) for number in random.integers([20, 20, 6], [236, 236, 30]))
        cv2.circle(picture, (x, y), radius, label * 7, -1)
    assert is_label_map(picture)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
@pytest.mark.parametrize("size", [96, 256, 700])
def test_masks_with_jpeg_noise_are_label_maps(size: int, quality: int, draw_pair: DrawPair) -> None:
    mask = draw_pair(2, size, size)[1] * np.uint8(255)
    assert is_label_map(as_jpeg(mask, quality))
    assert is_label_map(as_jpeg(np.uint8(255) - mask, quality))


def test_soft_edges_of_a_mask_do_not_hide_it(draw_pair: DrawPair) -> None:
    mask = cv2.GaussianBlur(draw_pair(3, 512, 512)[1] * np.uint8(255), (9, 9), 0)
    assert is_label_map(np.asarray(mask, np.uint8))


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_images_with_few_levels_are_no_label_maps(bits: int, draw_pair: DrawPair) -> None:
    for image in (draw_pair(4, 256, 256)[0], phantom.draw(4, "montgomery", 256)[0]):
        assert not is_label_map(np.asarray(image >> (8 - bits) << (8 - bits), np.uint8))


def test_image_in_a_large_black_frame_is_no_label_map(draw_pair: DrawPair) -> None:
    assert not is_label_map(np.pad(draw_pair(5, 256, 256)[0], 256))


def test_real_xrays_are_no_label_maps(cxr256: Path) -> None:
    paths = sorted(cxr256.glob("*/images/*.png"))
    assert len(paths) == 688
    assert not [path.name for path in paths if is_label_map(read(path))]


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("size", [256, 1024])
def test_real_xrays_of_few_levels_are_no_label_maps(size: int, bits: int, cxr256: Path) -> None:
    for path in sorted(cxr256.glob("*/images/*.png"))[::40]:
        image = np.asarray(cv2.resize(read(path), (size, size), interpolation=cv2.INTER_NEAREST), np.uint8)
        assert not is_label_map(np.asarray(image >> (8 - bits), np.uint8))


def test_real_masks_are_label_maps(cxr256: Path) -> None:
    paths = sorted(cxr256.glob("*/masks/*.png"))[::20]
    assert all(is_label_map(read(path)) and is_label_map(as_jpeg(read(path), 40)) for path in paths)


def read(path: Path) -> U8:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), np.uint8)


def test_mask_is_rejected_as_an_image(draw_pair: DrawPair) -> None:
    with pytest.raises(ImageError, match="it is a mask, not an X-ray") as caught:
        image_checks.check_pixels(draw_pair(1, 128, 128)[1], "x.png")
    assert caught.value.code == "two_valued"
