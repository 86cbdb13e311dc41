"""Orientation tags of every format are obeyed in one way; damaged and invalid ones are ignored."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from lungseg.imaging import codecs
from lungseg.imaging.orientation import describe_orientation, other_shape, read_orientation, to_stored, to_upright
from lungseg.imaging.tiff_directory import as_stored
from tests.imaging.dicom.dicom_files import write_dicom

U8 = NDArray[np.uint8]
STORED: U8 = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (40, 64), dtype=np.uint8), (0, 0), 3.0)  # type: ignore[assignment]
ALL = range(1, 9)


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block with one tag."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], orientation).ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "HHHI", 1, 274, kind, 1) + value + struct.pack(order + "I", 0)


def save(kind: str, array: NDArray[Any] = STORED, block: bytes = b"", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **({"exif": b"Exif\0\0" + block} if block else {}), **options)
    return stream.getvalue()


def tiff(orientation: int, array: NDArray[Any] = STORED, **options: Any) -> bytes:
    return save("TIFF", array, tiffinfo={274: orientation}, **options)


def late_exif(orientation: int) -> bytes:
    """A PNG whose eXIf chunk follows the pixels."""
    content, body = save("PNG"), b"eXIf" + exif(orientation)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:-12] + chunk + content[-12:]


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"


def text_exif(orientation: int, compressed: bool, name: str = "exif") -> bytes:
    """A PNG with the EXIF block as text, as older versions of ImageMagick wrote it; after XMP, which is APP1 too."""
    block = b"Exif\0\0" + exif(orientation)
    info = PngInfo()
    for content in ([XMP] if name == "APP1" else []) + [block]:
        info.add_text(f"Raw profile type {name}", f"\n{name}\n{len(content):8}\n{content.hex()}\n", zip=compressed)
    return save("PNG", pnginfo=info)


LOSSLESS: dict[str, Callable[[int], bytes]] = {
    "png": lambda number: save("PNG", block=exif(number)),
    "png, big-endian": lambda number: save("PNG", block=exif(number, ">")),
    "png, after the pixels": late_exif,
    "png, as text": lambda number: text_exif(number, compressed=False),
    "png, as text of APP1": lambda number: text_exif(number, compressed=False, name="APP1"),
    "png, as compressed text": lambda number: text_exif(number, compressed=True),
    "png of 16 bits": lambda number: save("PNG", STORED.astype(np.uint16) * 257, block=exif(number)),
    "webp": lambda number: save("WEBP", np.dstack([STORED] * 3), block=exif(number), lossless=True),
    "tiff": tiff,
    "tiff of 16 bits": lambda number: tiff(number, STORED.astype(np.uint16) * 257),
    "tiff of colours": lambda number: tiff(number, np.dstack([STORED] * 3), compression="tiff_lzw"),
    "tiff with alpha": lambda number: tiff(number, np.dstack([STORED] * 4)),
}


def viewed(orientation: int) -> U8:
    """The upright picture according to Pillow."""
    with Image.open(io.BytesIO(save("PNG", block=exif(orientation)))) as image:
        return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("name", LOSSLESS)
def test_tagged_images_are_decoded_upright(name: str, orientation: int) -> None:
    pixels, tags = codecs.read_image(LOSSLESS[name](orientation), name)
    grey = codecs.to_grey(pixels)
    expected = viewed(orientation)
    np.testing.assert_array_equal(grey // 257 if grey.dtype == np.uint16 else grey, expected)
    assert tags.orientation == orientation
    assert grey.flags.c_contiguous


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("order", "<>")
def test_tagged_jpegs_are_decoded_upright(orientation: int, order: str) -> None:
    content = save("JPEG", block=exif(orientation, order), quality=98)
    decoded = codecs.decode(content, "x.jpg").astype(int)
    expected = viewed(orientation)
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 4


@pytest.mark.parametrize("orientation", ALL)
def test_masks_are_decoded_upright_like_images(orientation: int) -> None:
    drawn = np.greater(STORED, 128).astype(np.uint8)
    decoded = codecs.read_mask(save("PNG", drawn * np.uint8(255), block=exif(orientation)), "mask.png")
    np.testing.assert_array_equal(decoded.mask, to_upright(drawn, orientation))
    assert decoded.orientation == orientation


@pytest.mark.parametrize("orientation", ALL)
def test_turning_upright_and_back_changes_nothing(orientation: int) -> None:
    for pixels in (STORED, np.dstack([STORED, STORED // 2, STORED // 3])):
        upright = to_upright(pixels, orientation)
        np.testing.assert_array_equal(to_stored(upright, orientation), pixels)
        assert other_shape(pixels.shape, orientation) == upright.shape[:2]


@pytest.mark.parametrize("number", [0, 9, 255, 65535])
def test_invalid_orientations_are_ignored(number: int) -> None:
    for content in (save("JPEG", block=exif(number)), save("PNG", block=exif(number)), tiff(number)):
        assert read_orientation(content) == 1
        assert codecs.decode(content, "x").shape == STORED.shape


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"JUNK" * 8,
        exif(6)[:14],
        exif(6).replace(b"\1\0", b"\0\0", 1),
        b"MM\0*" + exif(6)[4:],
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_exif_is_ignored(kind: str, block: bytes) -> None:
    content = save(kind, block=block or b"\0")
    assert read_orientation(content) == 1
    assert codecs.decode(content, "x").shape == STORED.shape


@pytest.mark.parametrize("make", [*LOSSLESS.values(), lambda number: save("JPEG", block=exif(number))])
def test_truncated_files_never_raise(make: Callable[[int], bytes]) -> None:
    content = make(6)
    for cut in range(0, min(len(content), 400)):
        assert 1 <= read_orientation(content[:cut]) <= 8


@given(st.sampled_from(sorted(LOSSLESS)), st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=6))
def test_damaged_headers_never_raise(name: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(LOSSLESS[name](6))
    for position, value in changes:
        content[min(position, len(content) - 1)] = value
    assert 1 <= read_orientation(bytes(content)) <= 8
    assert len(as_stored(bytes(content))) == len(content)


@pytest.mark.parametrize("text", ["", "\nexif\n 8\n", "\nexif\n 8\nnot hex", "\nexif\n 8\n4d4d002a"])
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_text_exif_is_ignored(text: str, compressed: bool) -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", text, zip=compressed)
    content = save("PNG", pnginfo=info)
    for damaged in (content, content.replace(b"exif\0\0x", b"exif\0\0y")):
        assert read_orientation(damaged) == 1


def test_integer_types_other_than_short_count() -> None:
    assert [read_orientation(save("JPEG", block=exif(6, ">", kind))) for kind in (1, 3, 4)] == [6, 6, 6]


def test_first_of_repeated_tags_counts() -> None:
    entry = struct.pack("<HHII", 274, 3, 1, 6)
    block = b"II*\0" + struct.pack("<IH", 8, 2) + entry + entry.replace(b"\6", b"\3") + bytes(4)
    assert read_orientation(save("JPEG", block=block)) == 6


def test_exif_of_an_image_inside_another_segment_is_ignored() -> None:
    content = save("JPEG")
    segment = b"\xff\xed" + struct.pack(">H", 2 + len(exif(6)) + 6) + b"Exif\0\0" + exif(6)
    assert read_orientation(content[:2] + segment + content[2:]) == 1


def test_alpha_of_a_tiff_does_not_change_its_colours() -> None:
    content = save("TIFF", np.dstack([STORED, STORED, STORED, np.full_like(STORED, 100)]))
    np.testing.assert_array_equal(codecs.decode(content, "x.tif"), STORED)


# DICOM


DIRECTIONS = {
    r"L\F": 1,
    r"R\F": 2,
    r"R\H": 3,
    r"L\H": 4,
    r"F\L": 5,
    r"F\R": 6,
    r"H\R": 7,
    r"H\L": 8,
}


@pytest.mark.parametrize(("directions", "orientation"), DIRECTIONS.items())
def test_dicom_images_are_turned_by_patient_orientation(directions: str, orientation: int) -> None:
    content = write_dicom(STORED.astype(np.uint16), PatientOrientation=directions.split("\\"))
    pixels, tags = codecs.read_image(content, "x.dcm")
    upright = codecs.decode(write_dicom(STORED.astype(np.uint16)), "x.dcm")
    np.testing.assert_array_equal(pixels, to_upright(upright, orientation))
    assert tags.orientation == orientation


@pytest.mark.parametrize("directions", [["LA", "F"], ["L", "FP"], ["LF", "FR"]])
def test_first_letters_of_patient_orientation_count(directions: list[str]) -> None:
    content = write_dicom(STORED.astype(np.uint16), PatientOrientation=directions)
    assert codecs.read_image(content, "x.dcm")[1].orientation == 1


@pytest.mark.parametrize("directions", ["", "L", ["L", "L"], ["X", "Y"], ["", "F"], ["L", "F", "F"]])
def test_meaningless_patient_orientation_is_ignored(directions: str | list[str]) -> None:
    content = write_dicom(STORED.astype(np.uint16), PatientOrientation=directions)
    assert codecs.read_image(content, "x.dcm")[1].orientation == 1


@pytest.mark.parametrize("orientation", ALL[1:])
def test_words_of_an_orientation_describe_the_stored_picture(orientation: int) -> None:
    stored = STORED
    for words in describe_orientation(orientation).split(" and "):
        stored = {
            "mirrored left to right": np.fliplr,
            "mirrored top to bottom": np.flipud,
            "upside down, rotated by 180 degrees": lambda pixels: np.rot90(pixels, 2),
            "rotated by 90 degrees counterclockwise": np.rot90,
            "rotated by 90 degrees clockwise": lambda pixels: np.rot90(pixels, -1),
        }[words](stored)
    np.testing.assert_array_equal(stored, to_stored(STORED, orientation))
