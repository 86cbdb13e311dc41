"""Decoding of every supported format and depth; refusal of everything else."""

import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from lungseg.errors import ImageError, InputError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.imaging.dicom.reader import Tags
from tests.imaging.dicom.dicom_files import write_dicom
from tests.imaging.image_files import BILEVEL, COLOUR, DEEP, GREY, MASK, TURNED, U8, opencv, palette, pil


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_header(height: int, width: int, content: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def refused(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        codecs.decode(content, "x.png")
    assert "x.png" in caught.value.message
    return caught.value.code


# Images

EXACT = {
    "png": (pil(GREY, "PNG"), GREY),
    "png of 16 bits": (pil(DEEP, "PNG"), DEEP),
    "png of 1 bit": (pil(BILEVEL.astype(bool), "PNG"), BILEVEL * np.uint8(255)),
    "png of 2 bits": (pil(GREY // 64 * 85, "PNG", bits=2), GREY // 64 * 85),
    "png of colours": (pil(np.dstack([GREY] * 3), "PNG"), GREY),
    "png with alpha": (pil(np.dstack([GREY] * 3 + [np.full_like(GREY, 7)]), "PNG"), GREY),
    "png of grey and alpha": (pil(np.dstack([GREY] * 3 + [np.full_like(GREY, 7)]), "PNG", "LA"), GREY),
    "png of colours, 16 bits": (opencv(np.dstack([DEEP] * 3), ".png"), DEEP),
    "png with alpha, 16 bits": (opencv(np.dstack([DEEP] * 3 + [DEEP // 2]), ".png"), DEEP),
    "png of a palette": (palette(GREY), GREY),
    "png turned by exif": (pil(np.rot90(GREY), "PNG", exif=TURNED), GREY),
    "tiff": (pil(GREY, "TIFF"), GREY),
    "tiff of 16 bits": (pil(DEEP, "TIFF"), DEEP),
    "tiff, lzw": (pil(GREY, "TIFF", compression="tiff_lzw"), GREY),
    "tiff, deflate": (pil(GREY, "TIFF", compression="tiff_adobe_deflate"), GREY),
    "tiff of 1 bit, fax": (pil(BILEVEL.astype(bool), "TIFF", compression="group4"), BILEVEL * np.uint8(255)),
    "tiff of colours": (pil(np.dstack([GREY] * 3), "TIFF"), GREY),
    "gif": (pil(GREY, "GIF"), GREY),
    "gif of 1 bit": (pil(BILEVEL.astype(bool), "GIF"), BILEVEL * np.uint8(255)),
    "bmp": (pil(GREY, "BMP"), GREY),
    "bmp of 1 bit": (pil(BILEVEL.astype(bool), "BMP"), BILEVEL * np.uint8(255)),
    "bmp of colours": (pil(np.dstack([GREY] * 3), "BMP"), GREY),
    "webp, lossless": (pil(np.dstack([GREY] * 3), "WEBP", lossless=True), GREY),
    "jpeg 2000": (pil(GREY, "JPEG2000"), GREY),
    "jpeg 2000 of 16 bits": (pil(DEEP, "JPEG2000"), DEEP),
    "jpeg 2000 without boxes": (pil(GREY, "JPEG2000", no_jp2=True), GREY),
}
OTHER = np.uint8(255) - GREY
SEVERAL = {
    suffix: pil(GREY, suffix, save_all=True, append_images=[Image.fromarray(OTHER)])
    for suffix in ("TIFF", "GIF", "PNG", "WEBP")
}
NEAR = {
    "jpeg": pil(GREY, "JPEG", quality=95),
    "jpeg of colours": pil(np.dstack([GREY] * 3), "JPEG", quality=95),
    "jpeg of cmyk": pil(np.dstack([GREY] * 3), "JPEG", "CMYK", quality=95),
    "jpeg, progressive": pil(GREY, "JPEG", quality=95, progressive=True),
    "jpeg turned by exif": pil(np.rot90(GREY), "JPEG", quality=95, exif=TURNED),
    "webp": pil(np.dstack([GREY] * 3), "WEBP", quality=95),
    "webp turned by exif": pil(np.dstack([np.rot90(GREY)] * 3), "WEBP", quality=95, exif=TURNED),
    "jpeg 2000, lossy": pil(GREY, "JPEG2000", quality_mode="dB", quality_layers=[55], irreversible=True),
}


@pytest.mark.parametrize("name", EXACT)
def test_lossless_images_keep_their_depth_and_pixels(name: str) -> None:
    content, expected = EXACT[name]
    result = codecs.decode(content, name)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", NEAR)
def test_lossy_images_are_close_and_upright(name: str) -> None:
    result = codecs.decode(NEAR[name], name)
    assert result.dtype == np.uint8
    assert result.shape == GREY.shape
    assert np.abs(result.astype(int) - GREY).max() <= 4


def test_colours_become_luma() -> None:
    red, green, blue = (np.dstack([GREY * np.uint8(channel == i) for i in range(3)]) for channel in range(3))
    for array, weight in ((red, 0.299), (green, 0.587), (blue, 0.114)):
        result = codecs.decode(pil(array, "PNG"), "colour")
        assert np.abs(result - weight * GREY).max() <= 1.0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "undecodable"),
        (b"\x89", "undecodable"),
        (b"a list of patients\n" * 40, "undecodable"),
        (b"<!DOCTYPE html><title>404</title>", "undecodable"),
        (b"\0" * 4096, "undecodable"),
        (pil(GREY, "PPM"), "undecodable"),
        (pil(GREY.astype(np.float32), "TIFF"), "depth"),
        (pil(GREY.astype(np.int32), "TIFF"), "depth"),
        (opencv(GREY.astype(np.int16), ".tiff"), "depth"),
    ],
)
def test_unsupported_files_are_refused_with_a_reason(content: bytes, reason: str) -> None:
    assert refused(content) == reason


def test_a_header_larger_than_its_data_is_refused() -> None:
    assert refused(png_of_header(16_000, 16_000, b"\0" * 1000)) == "undecodable"


@pytest.mark.parametrize("suffix", SEVERAL)
def test_a_file_of_several_pages_or_frames_is_refused(suffix: str) -> None:
    assert refused(SEVERAL[suffix]) == "multi_frame"
    with pytest.raises(ImageError, match=r"mask m\.x holds several pages or frames, expected one"):
        codecs.decode_mask(SEVERAL[suffix], "mask m.x")


def test_a_tiff_with_a_thumbnail_is_accepted() -> None:
    """NewSubfileType 1 marks the second page as a thumbnail."""
    stream, first = io.BytesIO(), Image.fromarray(GREY)
    first.save(stream, "TIFF", save_all=True, append_images=[Image.fromarray(GREY[::4, ::4])], tiffinfo={254: 1})
    thumbnail, full = (struct.pack("<HHII", 254, 4, 1, value) for value in (1, 0))
    assert stream.getvalue().count(thumbnail) == 2  # one a page
    content = stream.getvalue().replace(thumbnail, full, 1)
    np.testing.assert_array_equal(codecs.decode(content, "x.tif"), GREY)


def huge(suffix: str) -> bytes:
    """A small file whose header states 50,000 x 50,000 px."""
    content = pil(GREY, suffix)
    height, width = GREY.shape
    for order in (">H", "<H", ">I", "<I"):  # JPEG 2000 states the size several times
        for first, second in ((height, width), (width, height)):
            size = struct.pack(order, first), struct.pack(order, second)
            content = content.replace(b"".join(size), struct.pack(order, 50_000) * 2)
    return content


def huge_tiff() -> bytes:
    content = pil(GREY, "TIFF")
    for tag, length in ((256, GREY.shape[1]), (257, GREY.shape[0])):
        content = content.replace(struct.pack("<HHII", tag, 4, 1, length), struct.pack("<HHII", tag, 4, 1, 50_000))
    return content


def huge_bmp(height: int) -> bytes:
    size = struct.pack("<ii", GREY.shape[1], GREY.shape[0])
    return pil(GREY, "BMP").replace(size, struct.pack("<ii", 50_000, height))


BOMBS = {
    "png": png_of_header(50_000, 50_000, b"\0" * 1000),
    "jpeg": huge("JPEG"),
    "gif": huge("GIF"),
    "tiff": huge_tiff(),
    "bmp": huge_bmp(50_000),
    "bmp, rows from the top": huge_bmp(-50_000),
    "jpeg 2000": huge("JPEG2000"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_before_memory_is_taken(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    assert refused(BOMBS[name]) == "too_large"
    assert time.perf_counter() - started < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


@pytest.mark.parametrize(
    "content",
    [
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHII", 2, 256, 4, 1, 50_000, 257, 4, 1, 50_000),
        b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + struct.pack("<HBHB", 50_000, 0, 50_000, 0) + bytes(99),
    ],
    ids=["tiff", "webp"],
)
def test_a_huge_size_without_pixels_is_refused(content: bytes) -> None:
    assert refused(content) == "undecodable"


def test_importing_lungseg_first_sets_the_limit_of_opencv(tmp_path: Path) -> None:
    """In a new process, because OpenCV reads its limit once."""
    (tmp_path / "x.png").write_bytes(png_of_header(1 << 14, (1 << 14) + 1, b""))
    code = "import lungseg, cv2, sys, numpy; cv2.imdecode(numpy.fromfile(sys.argv[1], numpy.uint8), -1)"
    command = [sys.executable, "-c", code, str(tmp_path / "x.png")]
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "CV_IO_MAX_IMAGE_PIXELS" in result.stderr


def test_an_image_of_zero_size_is_refused() -> None:
    assert refused(png_of_header(0, 0, b"")) == "undecodable"


def test_colour_channels_do_not_count_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "MAX_IMAGE_PIXELS", GREY.size)
    np.testing.assert_array_equal(codecs.decode(pil(np.dstack([GREY] * 3), "PNG"), "x"), GREY)
    monkeypatch.setattr(codecs, "MAX_IMAGE_PIXELS", GREY.size - 1)
    assert refused(pil(GREY, "PNG")) == "too_large"


@pytest.mark.parametrize("name", [*EXACT, *NEAR])
def test_a_truncated_file_is_refused_or_has_all_pixels(name: str) -> None:
    """A cut may remove a checksum, but no pixel."""
    complete = EXACT[name][0] if name in EXACT else NEAR[name]
    expected = codecs.decode(complete, name)
    cuts = {*range(1, len(complete), max(1, len(complete) // 40)), *range(len(complete) - 24, len(complete))}
    passed = []
    for cut in sorted(cuts):
        with contextlib.suppress(ImageError):
            result = codecs.decode(complete[:cut], name)
            passed.append(cut)
            np.testing.assert_array_equal(result, expected)
    assert len(passed) < len(cuts) * 0.8


def test_flipped_bytes_in_prepared_images_are_detected() -> None:
    complete = codecs.encode_image(GREY)
    refusals = 0
    for place in range(len(complete)):
        damaged = complete[:place] + bytes([complete[place] ^ 0x10]) + complete[place + 1 :]
        try:
            np.testing.assert_array_equal(codecs.decode(damaged, "x.png"), GREY)
        except ImageError:
            refusals += 1
    assert refusals > len(complete) * 0.98


# Colour, DICOM, JSRT


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_colour_images_are_rgb_without_tags(suffix: str) -> None:
    pixels, tags = codecs.read_image(pil(COLOUR, suffix), "x")
    np.testing.assert_array_equal(pixels, COLOUR)
    assert tags == Tags()
    np.testing.assert_array_equal(codecs.to_grey(pixels), codecs.decode(pil(COLOUR, suffix), "x"))
    assert codecs.to_grey(GREY) is GREY


def test_dicom_is_detected_by_content_not_name() -> None:
    content = write_dicom(DEEP, PatientSex="F")
    pixels, tags = codecs.read_image(content, "IM000001", b"sixteen bytes or more")
    assert (pixels.dtype, pixels.shape) == (np.uint16, DEEP.shape)
    assert tags == Tags(patient_id=pseudonym("P-1", b"sixteen bytes or more"), sex="female")
    np.testing.assert_array_equal(codecs.decode(content, "x.png"), pixels)
    assert codecs.decode(write_dicom(COLOUR), "x").ndim == 2


def test_a_dicom_file_of_two_frames_is_refused() -> None:
    assert refused(write_dicom(GREY, NumberOfFrames=2)) == "multi_frame"


def test_jsrt_films_are_inverted() -> None:
    density = np.zeros((2048, 2048), ">u2")
    density[:, 1024:] = 4095
    density[7, 5] = 258
    pixels, tags = codecs.read_image(density.tobytes(), "JPCLN001.IMG")
    assert (pixels.dtype, pixels.shape, tags) == (np.uint16, (2048, 2048), Tags())
    assert (pixels[0, 0], pixels[0, 2047], pixels[7, 5]) == (4095, 0, 4095 - 258)


@pytest.mark.parametrize(
    "content", [b"\0" * 100, bytes(2 * 2048 * 2048 - 1), b"\x10" + bytes(2 * 2048 * 2048 - 1), pil(GREY, "PNG")]
)
def test_other_img_files_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^a\.IMG"):
        codecs.decode(content, "a.IMG")


def test_truncated_files_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for suffix in ("PNG", "GIF", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000"):
        with contextlib.suppress(ImageError):
            codecs.decode(pil(GREY, suffix)[:-100], "x")
    assert capfd.readouterr() == ("", "")


# Prepared files, run lengths, digests


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)))
def test_images_survive_encoding(array: U8) -> None:
    np.testing.assert_array_equal(codecs.decode(codecs.encode_image(array), "x"), array)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1)))
def test_masks_survive_png_and_run_length_encoding(mask: U8) -> None:
    np.testing.assert_array_equal(codecs.decode_mask(codecs.encode_mask(mask), "x"), mask)
    counts = codecs.encode_rle(mask)
    assert counts.isascii()
    back = codecs.decode_rle(counts, *mask.shape)
    assert back.dtype == np.uint8
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, mask)


def test_mask_files_have_one_bit_per_pixel() -> None:
    content = codecs.encode_mask(MASK)
    depth, colour = content[24], content[25]
    assert (depth, colour) == (1, 0)


def test_run_lengths_follow_coco() -> None:
    """Column by column, background first: 0 1 / 1 1 is one of background, then three of lung."""
    assert codecs.encode_rle(np.array([[0, 1], [1, 1]], np.uint8)) == "13"


@pytest.mark.parametrize("array", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_digests_do_not_depend_on_the_file_format(array: NDArray[Any]) -> None:
    digests = {codecs.pixel_digest(codecs.decode(pil(array, suffix), suffix)) for suffix in ("PNG", "TIFF")}
    assert digests == {codecs.pixel_digest(array)}


def test_digests_depend_on_pixels_size_and_depth() -> None:
    other = GREY.copy()
    other[-1, -1] ^= 1
    arrays = [GREY, other, GREY.reshape(64, 48), GREY.astype(np.uint16)]
    assert len({codecs.pixel_digest(array) for array in arrays}) == len(arrays)


def test_digests_do_not_depend_on_memory_layout() -> None:
    assert codecs.pixel_digest(GREY[:, ::2]) == codecs.pixel_digest(GREY[:, ::2].copy())


@pytest.mark.parametrize(
    ("counts", "height", "width"),
    [
        (None, 4, 4),
        ("", 4, 4),
        ("P", 4, 4),  # a number that goes on after the end
        ("04", -4, -4),
        ("04", 1 << 20, 1 << 20),
        ("04", None, 4),
        ("0" * 9, 4, 4),  # fewer pixels than the image has
        ("é", 4, 4),
    ],
)
def test_run_lengths_that_are_no_mask_are_refused(counts: str | None, height: int | None, width: int | None) -> None:
    with pytest.raises(InputError, match="a mask cannot be decoded"):
        codecs.decode_rle(counts, height, width)
