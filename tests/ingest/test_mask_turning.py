"""Masks and images with orientation tags: both are made upright before they are compared."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lungseg.imaging import phantom
from lungseg.imaging.codecs import DecodedMask
from lungseg.imaging.orientation import to_stored
from lungseg.ingest import record_checks
from lungseg.ingest.mask_turning import turn_with_image
from lungseg.schema import Record

U8 = NDArray[np.uint8]
IMAGE, LUNGS = (array[:, 8:-8] for array in phantom.draw(4, "shenzhen", 256))  # not square
SQUARE, SQUARE_LUNGS = phantom.draw(4, "shenzhen", 256)
TAGGED = range(2, 9)


def write(path: Path, array: U8, orientation: int = 1) -> str:
    block = Image.Exif()
    block[274] = orientation
    stream = io.BytesIO()
    options: dict[str, Any] = {"exif": block} if orientation != 1 else {}
    Image.fromarray(array).save(stream, "PNG", **options)
    path.write_bytes(stream.getvalue())
    return str(path)


def opened(folder: Path, image: U8, image_tag: int, *masks: tuple[U8, int]) -> record_checks.OpenedRecord:
    image_uri = write(folder / "x.png", to_stored(image, image_tag), image_tag)
    uris = tuple(
        write(folder / f"m{number}.png", mask * np.uint8(255), tag) for number, (mask, tag) in enumerate(masks)
    )
    return record_checks.open_record(Record("x", "d", image_uri, uris, ("lung",) * len(uris)))


@pytest.mark.parametrize("tag", TAGGED)
@pytest.mark.parametrize(("image", "lungs"), [(IMAGE, LUNGS), (SQUARE, SQUARE_LUNGS)])
def test_masks_without_a_tag_fit_a_tagged_image(tmp_path: Path, image: U8, lungs: U8, tag: int) -> None:
    for number, (drawn, is_turned) in enumerate(((lungs, False), (to_stored(lungs, tag), True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        record, upright, mask = opened(folder, image, tag, (drawn, 1))
        assert ("mask_turned" in record.codes) == is_turned
        assert "orientation_tag" in record.codes
        assert (record.status, record.orientation) == ("repaired", tag)
        assert (record.height, record.width) == to_stored(image, tag).shape
        assert upright is not None
        np.testing.assert_array_equal(upright, image)
        np.testing.assert_array_equal(mask, [lungs])


@pytest.mark.parametrize("image_tag", [1, 3, 6])
@pytest.mark.parametrize("mask_tag", TAGGED)
def test_a_tag_of_the_mask_is_obeyed(tmp_path: Path, image_tag: int, mask_tag: int) -> None:
    record, _, mask = opened(tmp_path, IMAGE, image_tag, (to_stored(LUNGS, mask_tag), mask_tag))
    assert record.codes.count("mask_turned") == 1
    np.testing.assert_array_equal(mask, [LUNGS])


@pytest.mark.parametrize("tag", [2, 6])
def test_masks_of_each_lung_are_turned_together(tmp_path: Path, tag: int) -> None:
    right, left = LUNGS.copy(), LUNGS.copy()
    right[:, 120:] = 0
    left[:, :120] = 0
    record, _, mask = opened(tmp_path, IMAGE, tag, *((to_stored(lung, tag), 1) for lung in (right, left)))
    assert record.codes.count("mask_turned") == 2
    np.testing.assert_array_equal(mask, [LUNGS])


def test_smaller_mask_on_stored_pixels_is_turned_and_resized(tmp_path: Path) -> None:
    record, _, mask = opened(tmp_path, IMAGE, 6, (to_stored(LUNGS[::2, ::2], 6), 1))
    assert {"orientation_tag", "mask_turned", "mask_resized"} <= set(record.codes)
    assert mask is not None
    assert (mask[0] != LUNGS).mean() < 0.02


def test_upside_down_mask_of_a_tagged_image_is_refused(tmp_path: Path) -> None:
    record, _, mask = opened(tmp_path, IMAGE, 6, (LUNGS[::-1], 1))
    assert mask is None
    assert record.codes == ("mask_orientation", "orientation_tag")


def test_mask_that_fits_both_ways_is_refused(tmp_path: Path) -> None:
    square = np.zeros((256, 256), np.uint8)
    square[64:192, 64:192] = 1  # identical in every orientation
    record, _, mask = opened(tmp_path, SQUARE, 6, (square, 1))
    assert mask is None
    assert record.codes[0] == "mask_orientation"
    assert "as well as the stored pixels" in record.message


def test_mask_of_another_aspect_stays_refused(tmp_path: Path) -> None:
    record, _, _ = opened(tmp_path, IMAGE, 6, (LUNGS[:200], 1))
    assert record.codes[0] == "mask_size"


def test_masks_of_upright_images_are_returned_unchanged() -> None:
    decoded = [DecodedMask(LUNGS, 1, False)]
    masks, notes = turn_with_image(decoded, ["m"], IMAGE, 1)
    assert masks[0] is LUNGS
    assert notes == ()
