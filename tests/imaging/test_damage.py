"""Test that damaged compressed data is noticed, although the decoder returns all pixels."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from lungseg.errors import ImageError
from lungseg.imaging import codecs
from tests.imaging.dicom.dicom_files import saved, write_dicom


def picture(border: int = 0) -> NDArray[np.uint8]:
    """Draw a smooth picture with noise, u8[256,256], in a frame of one grey value."""
    y, x = np.meshgrid(np.linspace(-1, 1, 256), np.linspace(-1, 1, 256), indexing="ij")
    drawn = 120 + 80 * np.cos(3 * x) * np.sin(2 * y) + np.random.default_rng(1).normal(0, 4, x.shape)
    grey = np.clip(drawn, 0, 255).astype(np.uint8)
    if border:
        grey[:60] = grey[-60:] = border - 1
    return grey


def encode(grey: NDArray[np.uint8], kind: str, colour: bool = False, **options: Any) -> bytes:
    """Encode a picture with Pillow."""
    target = io.BytesIO()
    image = Image.fromarray(grey)
    (image.convert("RGB") if colour else image).save(target, kind, **options)
    return target.getvalue()


def overwritten(content: bytes, start: float, end: float, value: int = 0) -> bytes:
    """Overwrite a part of the file, given in shares of its length, with one value."""
    first, last = int(len(content) * start), int(len(content) * end)
    return content[:first] + bytes([value]) * (last - first) + content[last:]


def is_refused(content: bytes) -> bool:
    """Return whether the file cannot be decoded."""
    try:
        codecs.read_image(content, "x")
    except ImageError as error:
        return error.code == "undecodable"
    return False


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"colour": True}, {"optimize": True}])
@pytest.mark.parametrize("share", [0.55, 0.75, 0.95])
def test_refuses_a_shortened_jpeg_with_an_end_marker(options: dict[str, Any], share: float) -> None:
    content = encode(picture(), "JPEG", quality=90, **options)
    assert is_refused(content[: int(len(content) * share)] + b"\xff\xd9")


@pytest.mark.parametrize("options", [{}, {"colour": True}, {"quality": 60}, {"restart_marker_rows": 2}])
@pytest.mark.parametrize(("start", "end"), [(0.3, 0.45), (0.5, 0.55), (0.8, 0.9)])
def test_refuses_a_jpeg_with_a_zeroed_block(options: dict[str, Any], start: float, end: float) -> None:
    assert is_refused(overwritten(encode(picture(), "JPEG", **options), start, end))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize(("start", "end"), [(0.2, 0.3), (0.6, 0.7), (0.7, 0.95)])
def test_refuses_a_compressed_tiff_with_a_zeroed_block(compression: str, start: float, end: float) -> None:
    assert is_refused(overwritten(encode(picture(), "TIFF", compression=compression), start, end))


@pytest.mark.parametrize("damage", ["none", "zeroed", "shortened"])
def test_refuses_damaged_jpeg_in_dicom(damage: str) -> None:
    content = encode(picture(129), "JPEG", quality=90)
    if damage == "zeroed":
        content = overwritten(content, 0.6, 1)
    if damage == "shortened":
        content = content[: int(len(content) * 0.7)] + b"\xff\xd9"
    dataset = dcmread(io.BytesIO(write_dicom(picture())))
    dataset.PixelData = encapsulate([content + b"\0" * (len(content) % 2)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert is_refused(saved(dataset)) == (damage != "none")


@pytest.mark.parametrize(("kind", "share"), [("WEBP", 0.2), ("JPEG2000", 0.2)])
def test_refuses_webp_and_jpeg_2000_with_a_zeroed_block(kind: str, share: float) -> None:
    assert is_refused(overwritten(encode(picture(), kind), 0.5, 0.5 + share))


@pytest.mark.parametrize("border", [0, 1, 129, 256])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"optimize": True, "quality": 50}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG", {"restart_marker_blocks": 5, "optimize": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {}),
        ("JPEG2000", {}),
    ],
)
def test_accepts_whole_pictures_with_flat_borders(
    border: int, colour: bool, kind: str, options: dict[str, Any]
) -> None:
    assert not is_refused(encode(picture(border), kind, colour, **options))


def test_accepts_a_jpeg_with_bytes_after_its_end() -> None:
    assert not is_refused(encode(picture(129), "JPEG", optimize=True) + bytes(500))
