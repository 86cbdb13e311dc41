"""Files with one image or several, including truncated and hostile ones."""

import io
import struct
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from lungseg.imaging.frames import has_multiple_frames


def save(image_format: str, mode: str = "L", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (30, 20)).save(stream, image_format, **options)
    return stream.getvalue()


def save_frames(image_format: str, count: int, **options: Any) -> bytes:
    """The frames differ, because writers merge equal ones."""
    first, *others = [Image.new("L", (30, 20), 40 * number) for number in range(count)]
    stream = io.BytesIO()
    first.save(stream, image_format, save_all=True, append_images=others, **options)
    return stream.getvalue()


def write_directories(*subfile_types: int, order: str = "<", big: bool = False, last: int = 0) -> bytes:
    """A TIFF without pixels: one directory for each type, -1 for a directory without NewSubfileType."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHH" if big else "H"), *([43, 8, 0] if big else [42])
    )
    offset, count, entry = ("Q", "Q", "HHQI4x") if big else ("I", "H", "HHII")
    content = head + struct.pack(order + offset, len(head) + struct.calcsize(order + offset))
    for number, subfile_type in enumerate(subfile_types, start=1):
        tags = [(254, subfile_type)] * (subfile_type >= 0) + [(256, 30), (257, 20)]
        content += struct.pack(order + count, len(tags))
        content += b"".join(struct.pack(order + entry, tag, 4, 1, value) for tag, value in tags)
        after = len(content) + struct.calcsize(order + offset)
        content += struct.pack(order + offset, last if number == len(subfile_types) else after)
    return content


SINGLE_IMAGES = {
    "png": save("PNG"),
    "jpeg": save("JPEG"),
    "tiff": save("TIFF"),
    "tiff, lzw": save("TIFF", "RGB", compression="tiff_lzw"),
    "tiff, big endian": save("TIFF", "I;16B"),
    "gif": save("GIF"),
    "bmp": save("BMP"),
    "webp, lossy": save("WEBP", "RGB"),
    "webp, extended": save("WEBP", "RGB", exif=b"Exif\0\0"),
    "jpeg 2000": save("JPEG2000"),
}
MULTI_FRAME_FORMATS: dict[str, dict[str, Any]] = {"TIFF": {}, "GIF": {}, "PNG": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("image_format", MULTI_FRAME_FORMATS)
def test_several_pages_or_frames_are_detected(image_format: str, count: int) -> None:
    content = save_frames(image_format, count, **MULTI_FRAME_FORMATS[image_format])
    assert has_multiple_frames(content) == (count > 1)


@pytest.mark.parametrize("image_format", MULTI_FRAME_FORMATS)
def test_truncated_files_do_not_raise(image_format: str) -> None:
    content = save_frames(image_format, 2, **MULTI_FRAME_FORMATS[image_format])
    assert {has_multiple_frames(content[:cut]) for cut in range(len(content))} <= {True, False}


@pytest.mark.parametrize("name", SINGLE_IMAGES)
def test_a_single_image_has_one_frame(name: str) -> None:
    assert not has_multiple_frames(SINGLE_IMAGES[name])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("subfile_types", "expected"),
    [
        ((-1,), False),
        ((0,), False),
        ((-1, -1), True),
        ((0, 0), True),
        ((2, 2), True),  # declared as pages
        ((0, 1), False),  # a thumbnail
        ((0, 4), False),  # a transparency mask
        ((0, 1, 5, 1), False),
        ((0, 1, 0), True),
        ((1, 0), True),  # thumbnail first: OpenCV would decode the thumbnail
    ],
)
def test_tiff_thumbnails_and_masks_are_not_pages(
    subfile_types: tuple[int, ...], expected: bool, order: str, big: bool
) -> None:
    assert has_multiple_frames(write_directories(*subfile_types, order=order, big=big)) == expected


@pytest.mark.parametrize("last", [8, 1 << 30, 20])
def test_tiff_offsets_in_a_loop_or_outside_are_ignored(last: int) -> None:
    assert not has_multiple_frames(write_directories(0, last=last))
    assert not has_multiple_frames(write_directories(0, 1, last=last))


def test_an_animated_png_of_one_frame_is_single() -> None:
    content = save_frames("PNG", 2)
    start = content.index(b"acTL") + 4
    assert not has_multiple_frames(content[:start] + struct.pack(">I", 1) + content[start + 4 :])


def test_a_gif_with_colour_table_and_comment_is_single() -> None:
    image = Image.new("P", (30, 20))
    image.putpalette(bytes(range(256)) * 3)
    stream = io.BytesIO()
    image.save(stream, "GIF", comment=b"," * 600, transparency=0)
    assert not has_multiple_frames(stream.getvalue())
    # Append frames that have a colour table of their own.
    body = stream.getvalue()[:-1]
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 30, 20, 0x80) + bytes(6) + b"\x02\x01\x00\x00"
    assert has_multiple_frames(body + frame + b";")
    assert has_multiple_frames(body[: 13 + 768] + frame + frame + b";")


SIGNATURES = [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"RIFF\0\0\0\0WEBPVP8X"]


@given(st.sampled_from(SIGNATURES), st.binary())
def test_random_bytes_do_not_raise(signature: bytes, rest: bytes) -> None:
    assert has_multiple_frames(signature + rest) in (True, False)


def test_hostile_counts_and_chains_take_no_time() -> None:
    many_entries = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(4 << 20)
    gif = save("GIF")
    many_blocks = gif[:-1] + b"\x21\xfe" + b"\x01x" * (1 << 16) + b"\0;"
    started = time.perf_counter()
    assert not has_multiple_frames(many_entries)
    assert not has_multiple_frames(many_blocks)
    assert time.perf_counter() - started < 1.0
