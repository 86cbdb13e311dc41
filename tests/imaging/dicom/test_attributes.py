"""Missing and contradictory attributes of the pixels, from the bytes of a file to its picture and its repairs."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from lungseg.errors import ImageError
from lungseg.imaging import phantom
from lungseg.imaging.dicom import codestream, reader
from lungseg.imaging.dicom.attributes import assume_missing
from lungseg.imaging.dicom.pixel_layout import TAGS
from lungseg.imaging.dicom.tags import Repair
from tests.imaging.dicom.dicom_files import coded, saved, write_dicom

GREY = phantom.draw(3, "montgomery", 250)[0][:, :221]
PIXELS = GREY.astype(np.uint16) << 4 | 7
FILE = write_dicom(PIXELS, BitsStored=12)
STREAMS = [JPEG2000Lossless, JPEGLSLossless]
LOSSLESS = [*STREAMS, RLELossless]


def edited(content: bytes, *without: str, **tags: Any) -> bytes:
    dataset = dcmread(io.BytesIO(content))
    for name in without:
        delattr(dataset, name)
    for name, value in tags.items():
        setattr(dataset, name, value)
    return saved(dataset)


def read(content: bytes) -> tuple[NDArray[Any], tuple[Repair, ...]]:
    pixels, tags = reader.read(content, "x.dcm")
    return pixels, tags.repairs


def refusal(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        reader.read(content, "x.dcm")
    assert "Error" not in caught.value.message
    return caught.value


GOOD, _ = read(FILE)


def assert_assumed(content: bytes, *names: str) -> None:
    """Check that the picture is the same, and that exactly these attributes are recorded."""
    pixels, repairs = read(content)
    np.testing.assert_array_equal(pixels, GOOD)
    assert [repair.code for repair in repairs] == ["attribute_assumed"]
    assert {name for name in TAGS if f"{name} (" in repairs[0].message} == set(names)


def assert_corrected(content: bytes, expected: NDArray[Any] = GOOD) -> str:
    pixels, repairs = read(content)
    np.testing.assert_array_equal(pixels, expected)
    assert [repair.code for repair in repairs] == ["stored_bits"]
    return repairs[0].message


# Missing


def test_complete_files_need_no_repair() -> None:
    for coding in LOSSLESS:
        pixels, repairs = read(coded(FILE, coding))
        np.testing.assert_array_equal(pixels, GOOD)
        assert not repairs


@pytest.mark.parametrize("name", [name for name in TAGS if name != "PlanarConfiguration"])
@pytest.mark.parametrize("coding", [None, *STREAMS], ids=lambda uid: uid.keyword if uid else "uncompressed")
def test_one_missing_or_empty_attribute_is_assumed(name: str, coding: UID | None) -> None:
    content = coded(FILE, coding) if coding else FILE
    assert_assumed(edited(content, name), name)
    assert_assumed(edited(content, **{name: ""}), name)


@pytest.mark.parametrize("coding", STREAMS, ids=lambda uid: uid.keyword)
def test_a_stream_replaces_all_attributes_but_photometric(coding: UID) -> None:
    names = [name for name in TAGS if name != "PlanarConfiguration"]
    assert_assumed(edited(coded(FILE, coding), *names), *names)


def test_missing_bits_are_found_in_the_pixels() -> None:
    names = ("BitsAllocated", "BitsStored", "HighBit")
    assert_assumed(edited(FILE, *names), *names)
    message = read(edited(FILE, *names))[1][0].message
    assert "BitsStored (0028,0101) = 12, HighBit (0028,0102) = 11" in message
    shifted = write_dicom(PIXELS << 4, BitsStored=12, HighBit=15)
    assert_assumed(edited(shifted, "BitsStored"), "BitsStored")


def test_a_pad_byte_does_not_hide_the_size() -> None:
    odd = write_dicom(GREY[:, :201])
    assert len(dcmread(io.BytesIO(odd)).PixelData) == 250 * 201
    assert read(edited(write_dicom(GREY[:249, :201]), "Rows"))[0].shape == (249, 201)
    assert read(edited(write_dicom(GREY[:249, :201]), "BitsAllocated"))[0].shape == (249, 201)


@pytest.mark.parametrize("coding", [None, *LOSSLESS], ids=lambda uid: uid.keyword if uid else "uncompressed")
@pytest.mark.parametrize("extended", [True, False])
def test_the_pixels_show_a_missing_sign(coding: UID | None, extended: bool) -> None:
    signed = (PIXELS.astype(int) - 2048).astype(np.int16)
    content = write_dicom(signed, BitsStored=12)
    if not extended:
        content = edited(content, PixelData=(signed.view(np.uint16) & 0x0FFF).tobytes())
    content = coded(content, coding) if coding and extended else content
    assert_assumed(edited(content, "PixelRepresentation"), "PixelRepresentation")


def test_padding_of_missing_sign_stays_black() -> None:
    padded = PIXELS.copy()
    padded[:20] = 0
    pixels, repairs = read(edited(write_dicom(padded, BitsStored=12), "PixelRepresentation"))
    assert not pixels[:20].any()
    assert np.corrcoef(pixels[20:].ravel(), PIXELS[20:].ravel())[0, 1] > 0.9999
    assert "PixelRepresentation (0028,0103) = 0" in repairs[0].message


def test_a_missing_photometric_follows_from_other_attributes() -> None:
    negative = write_dicom(np.uint16(4095) - PIXELS, BitsStored=12, PresentationLUTShape="INVERSE")
    pixels, repairs = read(edited(negative, "PhotometricInterpretation"))
    assert np.abs(pixels.astype(int) - GOOD).max() <= 1
    assert repairs[0].message.endswith("= MONOCHROME1")


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("tint", [1.0, 0.9])
def test_the_order_of_channels_is_found(planar: int, tint: float) -> None:
    colours = np.dstack([GREY, GREY * tint, GREY * tint]).astype(np.uint8)
    planes = np.moveaxis(colours, 2, 0)
    content = write_dicom(colours, PixelData=(planes if planar else colours).tobytes() + b"\0" * (colours.size % 2))
    pixels, repairs = read(edited(content, "PlanarConfiguration"))
    np.testing.assert_array_equal(pixels, colours)
    assert repairs[0].message.endswith(f"PlanarConfiguration (0028,0006) = {planar}")


REFUSED: dict[str, tuple[bytes, list[str]]] = {
    "no size": (edited(FILE, "Rows", "Columns"), ["Rows", "Columns"]),
    "no size of a run-length code": (edited(coded(FILE, RLELossless), "Rows"), ["Rows"]),
    "no bits of a run-length code": (
        edited(coded(FILE, RLELossless), "BitsAllocated", "BitsStored", "HighBit"),
        ["BitsAllocated"],
    ),
    "rows that do not divide the pixels": (edited(FILE, "Rows", Columns=220), ["Rows"]),
    "no colour space": (
        edited(write_dicom(np.dstack([GREY] * 3)), "PhotometricInterpretation"),
        ["PhotometricInterpretation"],
    ),
    "no order of unlike channels": (
        edited(write_dicom(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), "PlanarConfiguration"),
        ["PlanarConfiguration"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attributes_with_several_values_are_named(name: str) -> None:
    content, missing = REFUSED[name]
    error = refusal(content)
    assert error.code == "pixel_attributes"
    assert [name for name in TAGS if f"{name} ({TAGS[name]})" in error.message] == missing


# Contradictory


@pytest.mark.parametrize("coding", [None, *LOSSLESS], ids=lambda uid: uid.keyword if uid else "uncompressed")
@pytest.mark.parametrize("stated", [8, 10, 11])
def test_more_bits_than_stated_are_used(coding: UID | None, stated: int) -> None:
    content = coded(FILE, coding) if coding else FILE
    message = assert_corrected(edited(content, BitsStored=stated, HighBit=stated - 1))
    assert f"BitsStored (0028,0101) = 12, stated {stated}" in message


@pytest.mark.parametrize("coding", STREAMS, ids=lambda uid: uid.keyword)
def test_streams_of_other_precision_are_read(coding: UID) -> None:
    content = coded(FILE, coding)
    pixels, repairs = read(edited(content, BitsStored=14, HighBit=13))
    np.testing.assert_array_equal(pixels, GOOD)
    assert not repairs
    assert "BitsAllocated (0028,0100) = 16" in assert_corrected(
        edited(content, BitsAllocated=8, BitsStored=8, HighBit=7)
    )


def test_lossless_jpeg_of_higher_precision_is_read() -> None:
    from tests.imaging.dicom.test_reader import jpeg_lossless

    content = jpeg_lossless()
    expected = reader.read(content, "x.dcm")[0]
    used = int(dcmread(io.BytesIO(content)).pixel_array.max()).bit_length()
    pixels, repairs = read(edited(content, BitsStored=used - 2, HighBit=used - 3))
    np.testing.assert_array_equal(pixels, expected)
    assert [repair.code for repair in repairs] == ["stored_bits"]


def test_inverted_pictures_use_the_range_that_they_have() -> None:
    negative = np.uint16(4095) - PIXELS
    right = write_dicom(negative, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert_corrected(edited(right, BitsStored=10, HighBit=9), read(right)[0])


def test_windows_of_the_stated_range_are_skipped() -> None:
    assert_corrected(write_dicom(PIXELS, BitsStored=10, WindowCenter=512, WindowWidth=1024))
    right = write_dicom(PIXELS, BitsStored=12, WindowCenter=2000, WindowWidth=3000)
    assert_corrected(edited(right, BitsStored=10, HighBit=9), read(right)[0])


def test_a_modality_lut_of_the_stated_range_is_refused() -> None:
    from tests.imaging.dicom.dicom_files import lut

    table = lut(np.arange(1024), 0, 10)
    assert refusal(write_dicom(PIXELS, BitsStored=10, ModalityLUTSequence=[table])).code == "stored_bits_unclear"


@pytest.mark.parametrize("value", [63536, 0x8000, 0xFFFF])
def test_padding_beyond_the_stated_bits_is_black(value: int) -> None:
    padded = PIXELS.copy()
    padded[:, :30] = value
    pixels, repairs = read(write_dicom(padded, BitsStored=12, PixelPaddingValue=value))
    assert not pixels[:, :30].any()
    assert not repairs
    expected = read(write_dicom(np.ascontiguousarray(PIXELS[:, 30:]), BitsStored=12))[0]
    np.testing.assert_array_equal(pixels[:, 30:], expected)


def test_junk_above_the_stated_bits_is_no_repair() -> None:
    pixels, repairs = read(write_dicom(PIXELS | 0xC000, BitsStored=12))
    np.testing.assert_array_equal(pixels, GOOD)
    assert not repairs


def test_pixels_of_another_size_are_refused() -> None:
    error = refusal(edited(FILE, BitsAllocated=8, BitsStored=8, HighBit=7))
    assert (error.code, "it holds 110500 bytes" in error.message) == ("pixel_attributes", True)
    for coding in STREAMS:
        assert refusal(edited(coded(FILE, coding), Rows=249)).code == "pixel_attributes"


@pytest.mark.parametrize("tags", [{"Rows": 249}, {"Rows": 190}, {"Columns": 220}, {"Columns": 200}])
@pytest.mark.parametrize("black", [False, True])
def test_more_plain_pixels_than_stated_are_refused(tags: dict[str, int], black: bool) -> None:
    pixels = PIXELS.copy()
    if black:
        pixels[180:] = 0
    assert refusal(edited(write_dicom(pixels, BitsStored=12), **tags)).code == "pixel_attributes"


@pytest.mark.parametrize("padding", [b"\0\0", bytes(100)])
def test_a_few_zeros_after_plain_pixels_are_padding(padding: bytes) -> None:
    padded = edited(FILE, PixelData=PIXELS.tobytes() + padding)
    np.testing.assert_array_equal(read(padded)[0], GOOD)


def test_implicit_files_without_sign_keep_their_padding() -> None:
    padded = PIXELS.astype(np.int16) - np.int16(2048)
    padded[:, :30] = -5000
    dataset: FileDataset = dcmread(io.BytesIO(write_dicom(padded, BitsStored=12, PixelPaddingValue=-5000)))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=True, little_endian=True)
    element = bytes([0x28, 0, 3, 1, 2, 0, 0, 0, 1, 0])
    assert element in stream.getvalue()
    pixels, repairs = read(stream.getvalue().replace(element, b""))
    assert not pixels[:, :30].any()
    assert repairs[0].message.endswith("PixelRepresentation (0028,0103) = 1")


# Streams


def test_damaged_streams_have_no_header() -> None:
    frame = codestream.read_frame_header
    assert frame(b"") is None
    assert frame(b"\xff\xd8") is None
    assert frame(b"\xff\xd8" + b"\xff" * 400) is None
    assert frame(b"\xff\x4f\xff\x51\0\0") is None
    assert frame(bytes(64) + b"\xff\x4f\xff\x51" + bytes(64)) is None  # run lengths may contain any bytes


def test_frames_without_stream_are_not_asked() -> None:
    dataset = dcmread(io.BytesIO(coded(FILE, RLELossless)))
    dataset.PixelData = encapsulate([b"\xff\x4f"])
    assert assume_missing(dataset, "x.dcm") == ()
