"""What headers promise, against what decoders find; and headers that are cut, hostile or of nothing."""

import io
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lungseg.data.headers import picture_size


def saved(form: str, height: int, width: int, mode: str = "L", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, form, **options)
    return stream.getvalue()


def big_tiff(height: int, width: int, order: str = "<") -> bytes:
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 16)
    tags = [(256, 4, width), (257, 16, height)]
    entries = b"".join(
        struct.pack(order + "HHQ", tag, kind, 1)
        + (struct.pack(order + "I4x", value) if kind == 4 else struct.pack(order + "Q", value))
        for tag, kind, value in tags
    )
    return head + struct.pack(order + "Q", len(tags)) + entries


FORMS = {
    "png": ("PNG", "L", {}),
    "png of 16 bits": ("PNG", "I;16", {}),
    "jpeg": ("JPEG", "L", {}),
    "jpeg, progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg with exif": ("JPEG", "RGB", {"exif": b"Exif\0\0" + b"\xff\xc0" * 500}),
    "tiff": ("TIFF", "L", {}),
    "tiff, lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff, big endian": ("TIFF", "I;16B", {}),
    "gif": ("GIF", "L", {}),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 1000), (300, 2)])
def test_the_size_is_that_of_the_picture(name: str, height: int, width: int) -> None:
    form, mode, options = FORMS[name]
    assert picture_size(saved(form, height, width, mode, **options)) == (height, width)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_64_bits_tells_its_size(order: str) -> None:
    assert picture_size(big_tiff(123_456, 78_901, order)) == (123_456, 78_901)


@pytest.mark.parametrize("name", FORMS)
def test_a_header_that_is_cut_anywhere_tells_its_size_or_none(name: str) -> None:
    form, mode, options = FORMS[name]
    whole = saved(form, 20, 30, mode, **options)
    assert {picture_size(whole[:cut]) for cut in range(len(whole) + 1)} == {None, (20, 30)}


@pytest.mark.parametrize("content", [b"", b"GIF87a", b"BM" + bytes(60), b"<html>", b"\xff\xd8\xff" + b"\xff" * 9])
def test_what_is_no_picture_has_no_size(content: bytes) -> None:
    assert picture_size(content) is None


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0"]), st.binary())
def test_any_bytes_after_a_magic_number_are_survived(magic: bytes, rest: bytes) -> None:
    size = picture_size(magic + rest)
    assert size is None or min(size) >= 0


def test_a_directory_of_countless_entries_and_a_jpeg_of_fill_bytes_take_no_time() -> None:
    countless = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(4 << 20)
    filled = b"\xff\xd8" + b"\xff" * (1 << 20)
    started = time.perf_counter()
    assert picture_size(countless) is None
    assert picture_size(filled) is None
    assert time.perf_counter() - started < 1.0


def test_a_picture_of_no_pixels_has_the_size_that_it_says() -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 0, 9, 8, 0, 0, 0, 0)
    assert picture_size(header) == (9, 0)
