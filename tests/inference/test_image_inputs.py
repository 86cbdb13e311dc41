"""Arrays, Pillow images, bytes and paths become files with the same pixels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lungseg.errors import SettingsError
from lungseg.imaging import codecs
from lungseg.inference.image_inputs import Polarity, open_input

GREY = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
DEEP = GREY.astype(np.uint16) * 257


def pixels_of(image: Any, polarity: Polarity = "bone-white") -> tuple[NDArray[Any], int]:
    """Return the pixels of the file that an image becomes, and its orientation."""
    _, content = open_input(image, polarity, "image")
    assert content is not None
    pixels, tags = codecs.read_image(content, "image")
    return pixels, tags.orientation


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY),
        (GREY[:, :, None], GREY),
        (GREY[::-1, ::2], GREY[::-1, ::2]),
        (GREY.astype(np.int64), GREY),
        (DEEP, DEEP),
        (DEEP.astype(">u2"), DEEP),
        (DEEP.astype(np.int32), DEEP),
        (GREY / 255, DEEP),
        (GREY.astype(np.float32), DEEP),
        (GREY * 3.0 - 500, DEEP),
        (np.dstack([GREY, GREY, GREY[::-1]]), np.dstack([GREY, GREY, GREY[::-1]])),
    ],
)
def test_arrays_keep_their_grey_values(array: NDArray[Any], expected: NDArray[Any]) -> None:
    pixels, _ = pixels_of(array)
    assert pixels.dtype == expected.dtype
    assert (pixels == expected).all()


@pytest.mark.parametrize("array", [GREY, DEEP, np.dstack([GREY] * 3)])
def test_dark_bones_are_inverted(array: NDArray[Any]) -> None:
    assert (pixels_of(array, "bone-black")[0] == np.iinfo(array.dtype).max - array).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "F", "I"])
def test_pillow_images_keep_their_grey_values(mode: str) -> None:
    pixels = codecs.to_grey(pixels_of(Image.fromarray(GREY).convert(mode))[0])
    expected = GREY if pixels.dtype == np.uint8 or mode == "I" else DEEP
    assert (pixels == expected).all()
    inverted = codecs.to_grey(pixels_of(Image.fromarray(GREY).convert(mode), "bone-black")[0])
    assert (inverted == np.iinfo(expected.dtype).max - expected).all()


def test_pillow_images_of_16_bits_stay_deep() -> None:
    pixels, _ = pixels_of(Image.fromarray(DEEP))
    assert pixels.dtype == np.uint16
    assert (pixels == DEEP).all()


@pytest.mark.parametrize("polarity", ["bone-white", "bone-black"])
def test_orientation_of_a_pillow_image_is_kept(polarity: Polarity) -> None:
    image = Image.fromarray(GREY)
    image.getexif()[0x0112] = 6
    pixels, orientation = pixels_of(image, polarity)
    assert (orientation, pixels.shape) == (6, GREY.shape[::-1])


def test_bytes_and_paths_stay_as_they_are(tmp_path: Path) -> None:
    assert open_input(b"content", "bone-white", "image")[1] == b"content"
    for path in (tmp_path / "ab.png", str(tmp_path / "ab.png")):
        item, content = open_input(path, "bone-white", "image")
        assert content is None
        assert (item.record.image_uri, item.record.image_id) == (str(tmp_path / "ab.png"), "ab")


def test_folder_is_refused_with_advice(tmp_path: Path) -> None:
    item, _ = open_input(tmp_path, "bone-white", "image")
    assert (item.record.status, item.record.codes) == ("failed", ("unreadable",))
    assert "is a folder: pass a list of its files" in item.record.message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"uint8\[2x3x4x3\]: pass a grey array \[H,W\]"),
        (np.zeros((40, 50, 3), np.uint16), r"uint16\[40x50x3\]"),
        (np.zeros((0, 50), np.uint8), r"uint8\[0x50\]"),
        (np.zeros((40, 50), bool), "values of type bool"),
        (np.full((40, 50), 70000), "values from 70000 to 70000"),
        (np.full((40, 50), -5, np.int16), "values from -5 to -5"),
        (np.full((40, 50), np.nan), "not finite"),
        (np.full((40, 50), np.inf, np.float32), "not finite"),
        (np.broadcast_to(np.uint8(1), (1 << 15, 1 << 14)), "no radiograph is as large"),
    ],
)
def test_arrays_that_are_no_xray_are_rejected(array: NDArray[Any], message: str) -> None:
    item, content = open_input(array, "bone-white", "image")
    assert content is None
    assert item.record.status == "rejected"
    assert re.search(message, item.record.message)


def test_polarity_is_of_pixels_only() -> None:
    with pytest.raises(SettingsError, match="a file states its own"):
        open_input("x.png", "bone-black", "image")
    with pytest.raises(SettingsError, match="expected bone-white or bone-black"):
        open_input(GREY, "white", "image")  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [3, None, {"a": 1}, iter([GREY])])
def test_other_types_are_refused(image: Any) -> None:
    with pytest.raises(TypeError, match="is no image: pass a path"):
        open_input(image, "bone-white", "image")
