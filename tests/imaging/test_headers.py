"""What headers promise, against what decoders find; one picture or several; headers cut, hostile or of nothing."""

import io
import struct
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from lungseg.imaging.headers import has_multiple_frames, image_size


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
    "bmp": ("BMP", "L", {}),
    "bmp of 1 bit": ("BMP", "1", {}),
    "webp, lossy": ("WEBP", "RGB", {}),
    "webp, lossless": ("WEBP", "RGB", {"lossless": True}),
    "webp, extended": ("WEBP", "RGB", {"exif": b"Exif\0\0"}),
    "jpeg 2000": ("JPEG2000", "L", {}),
    "jpeg 2000 of 16 bits": ("JPEG2000", "I;16", {}),
    "jpeg 2000 without boxes": ("JPEG2000", "RGB", {"no_jp2": True}),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 1000), (300, 2)])
def test_the_size_is_that_of_the_picture(name: str, height: int, width: int) -> None:
    form, mode, options = FORMS[name]
    assert image_size(saved(form, height, width, mode, **options)) == (height, width)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_64_bits_tells_its_size(order: str) -> None:
    assert image_size(big_tiff(123_456, 78_901, order)) == (123_456, 78_901)


def test_a_bitmap_may_run_from_the_top_down_and_have_the_oldest_header() -> None:
    downwards = b"BM" + bytes(12) + struct.pack("<Iii", 40, 30, -20)
    oldest = b"BM" + bytes(12) + struct.pack("<IHH", 12, 30, 20)
    assert image_size(downwards) == image_size(oldest) == (20, 30)


def test_the_size_of_a_jpeg_2000_is_that_of_its_codestream() -> None:
    """Its box may promise another; the codestream is decoded. Its area may begin off the grid, its boxes be long."""
    whole = saved("JPEG2000", 20, 30)
    at = whole.index(b"jp2c")
    lying = whole.replace(b"ihdr" + struct.pack(">II", 20, 30), b"ihdr" + struct.pack(">II", 1, 1))
    assert lying != whole
    assert image_size(lying) == (20, 30)
    long = whole[: at - 4] + struct.pack(">I4sQ", 1, b"jp2c", 0) + whole[at + 4 :]
    assert image_size(long) == (20, 30)
    assert image_size(b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 35, 27, 5, 7)) == (20, 30)


@pytest.mark.parametrize("name", FORMS)
def test_a_header_that_is_cut_anywhere_tells_its_size_or_none(name: str) -> None:
    form, mode, options = FORMS[name]
    whole = saved(form, 20, 30, mode, **options)
    assert {image_size(whole[:cut]) for cut in range(len(whole) + 1)} == {None, (20, 30)}


@pytest.mark.parametrize("content", [b"", b"GIF87a", b"BM" + bytes(60), b"<html>", b"\xff\xd8\xff" + b"\xff" * 9])
def test_what_is_no_picture_has_no_size(content: bytes) -> None:
    assert image_size(content) is None


JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
MAGIC = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"BM", JP2]
WEBP = [b"RIFF\0\0\0\0WEBP" + kind for kind in (b"VP8 ", b"VP8L", b"VP8X")]


@given(st.sampled_from([*MAGIC, *WEBP, b"\xff\x4f\xff\x51"]), st.binary())
def test_any_bytes_after_a_magic_number_are_survived(magic: bytes, rest: bytes) -> None:
    size = image_size(magic + rest)
    assert size is None or min(size) >= 0
    assert has_multiple_frames(magic + rest) in (True, False)


def test_a_directory_of_countless_entries_and_a_jpeg_of_fill_bytes_take_no_time() -> None:
    countless = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(4 << 20)
    filled = b"\xff\xd8" + b"\xff" * (1 << 20)
    boxes = JP2 + struct.pack(">I4s", 8, b"free") * (1 << 16)
    started = time.perf_counter()
    assert image_size(countless) is None
    assert image_size(filled) is None
    assert image_size(boxes) is None
    assert not has_multiple_frames(countless)
    assert time.perf_counter() - started < 1.0


# One picture or several


def frames(form: str, count: int, **options: Any) -> bytes:
    """Frames that differ, or a writer joins them."""
    first, *others = [Image.new("L", (30, 20), 40 * number) for number in range(count)]
    stream = io.BytesIO()
    first.save(stream, form, save_all=True, append_images=others, **options)
    return stream.getvalue()


def directories(*kinds: int, order: str = "<", big: bool = False, last: int = 0) -> bytes:
    """A TIFF of directories of one size each, with a NewSubfileType where it is not below 0, and no pixels."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHH" if big else "H"), *([43, 8, 0] if big else [42])
    )
    offset, count, entry = ("Q", "Q", "HHQI4x") if big else ("I", "H", "HHII")
    content = head + struct.pack(order + offset, len(head) + struct.calcsize(order + offset))
    for number, kind in enumerate(kinds, start=1):
        tags = [(254, kind)] * (kind >= 0) + [(256, 30), (257, 20)]
        content += struct.pack(order + count, len(tags))
        content += b"".join(struct.pack(order + entry, tag, 4, 1, value) for tag, value in tags)
        after = len(content) + struct.calcsize(order + offset)
        content += struct.pack(order + offset, last if number == len(kinds) else after)
    return content


FORMS_OF_SEVERAL = {"TIFF": {}, "GIF": {}, "PNG": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS_OF_SEVERAL)
def test_several_pages_or_frames_are_told_from_one(form: str, count: int) -> None:
    content = frames(form, count, **FORMS_OF_SEVERAL[form])
    assert has_multiple_frames(content) == (count > 1)
    assert image_size(content) == (20, 30)


@pytest.mark.parametrize("form", FORMS_OF_SEVERAL)
def test_a_file_cut_before_its_second_picture_is_survived(form: str) -> None:
    content = frames(form, 2, **FORMS_OF_SEVERAL[form])
    assert {has_multiple_frames(content[:cut]) for cut in range(len(content))} <= {True, False}


@pytest.mark.parametrize("name", FORMS)
def test_one_picture_is_one(name: str) -> None:
    form, mode, options = FORMS[name]
    assert not has_multiple_frames(saved(form, 20, 30, mode, **options))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kinds", "several"),
    [
        ((-1,), False),
        ((0,), False),
        ((-1, -1), True),
        ((0, 0), True),
        ((2, 2), True),  # said to be pages
        ((0, 1), False),  # a thumbnail
        ((0, 4), False),  # a transparency mask
        ((0, 1, 5, 1), False),
        ((0, 1, 0), True),
        ((1, 0), True),  # the thumbnail first: OpenCV would decode it
    ],
)
def test_thumbnails_and_masks_are_no_pages(kinds: tuple[int, ...], several: bool, order: str, big: bool) -> None:
    content = directories(*kinds, order=order, big=big)
    assert image_size(content) == (20, 30)
    assert has_multiple_frames(content) == several


@pytest.mark.parametrize("last", [8, 1 << 30, 20])
def test_a_directory_that_leads_back_out_of_the_file_or_into_nothing_leads_to_no_page(last: int) -> None:
    assert not has_multiple_frames(directories(0, last=last))
    assert not has_multiple_frames(directories(0, 1, last=last))


def test_an_animation_of_one_frame_is_one_picture() -> None:
    content = frames("PNG", 2)
    at = content.index(b"acTL") + 4
    assert not has_multiple_frames(content[:at] + struct.pack(">I", 1) + content[at + 4 :])


def test_a_gif_with_a_table_and_words_is_one_picture() -> None:
    picture = Image.new("P", (30, 20))
    picture.putpalette(bytes(range(256)) * 3)
    stream = io.BytesIO()
    picture.save(stream, "GIF", comment=b"," * 600, transparency=0)
    assert not has_multiple_frames(stream.getvalue())
    # A second picture with a table of its own, behind the first one.
    body = stream.getvalue()[:-1]
    local = struct.pack("<BHHHHB", 0x2C, 0, 0, 30, 20, 0x80) + bytes(6) + b"\x02\x01\x00\x00"
    assert has_multiple_frames(body + local + b";")
    assert has_multiple_frames(body[: 13 + 768] + local + local + b";")


def test_a_picture_of_no_pixels_has_the_size_that_it_says() -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 0, 9, 8, 0, 0, 0, 0)
    assert image_size(header) == (9, 0)
