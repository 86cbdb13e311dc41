"""Pixels, reason codes and privacy of DICOM files with every transfer syntax, depth and fault."""

import hashlib
import io
import logging
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from lungseg.errors import ImageError, SettingsError
from lungseg.imaging.dicom import jpeg_plugin, pseudonym, reader
from lungseg.imaging.dicom.reader import Tags
from lungseg.ingest import pseudonyms
from tests.imaging.dicom.dicom_files import coded, lut, saved, write_dicom

KEY = b"sixteen bytes or more"
LOSSLESS = [RLELossless, JPEGLSLossless, JPEG2000Lossless]
SECRETS = ("Doe", "Jane", "P-1", "19400305", "Hospital of Nowhere", "CompressedSamples", "RG1", "Hamburg", "Philips")


def gradient_image(height: int = 60, width: int = 50, bits: int = 12) -> NDArray[np.uint16]:
    """A smooth image that uses every bit."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.sin(rows / 7.0) + np.cos(columns / 5.0) + rows / height
    return ((waves - waves.min()) / np.ptp(waves) * (2**bits - 1)).astype(np.uint16)


PIXELS = gradient_image()
CHEST = write_dicom(
    PIXELS, BitsStored=12, PatientBirthDate="19400305", StudyDate="20040826", InstitutionName="Hospital of Nowhere"
)


def pixels_of(content: bytes) -> NDArray[Any]:
    return reader.read(content, "x.dcm")[0]


def refused(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        reader.read(content, "x.dcm", KEY)
    assert "x.dcm" in caught.value.message
    assert not any(secret in str(caught.value) for secret in SECRETS)
    return caught.value.code


def stored_file(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    if not path:
        pytest.skip(f"pydicom-data is not installed ({name})")
    return Path(str(path)).read_bytes()


def edited(content: bytes, **tags: Any) -> bytes:
    dataset = dcmread(io.BytesIO(content))
    for name, value in tags.items():
        setattr(dataset, name, value)
    return saved(dataset)


def with_frame(content: bytes, frame: bytes) -> bytes:
    dataset = dcmread(io.BytesIO(content))
    dataset.PixelData = encapsulate([frame])
    return saved(dataset)


def frame_of(content: bytes) -> bytes:
    return next(generate_frames(dcmread(io.BytesIO(content)).PixelData, number_of_frames=1))


# The real radiograph


@pytest.fixture(scope="module")
def radiograph() -> NDArray[Any]:
    return pixels_of(stored_file("RG1_UNCR.dcm"))


def test_lossless_copies_of_the_radiograph_are_equal(radiograph: NDArray[Any]) -> None:
    """UNCR and J2KR hold the same image; UNCI is the decompressed J2KI."""
    assert (radiograph.dtype, radiograph.shape) == (np.uint16, (1955, 1841))
    np.testing.assert_array_equal(pixels_of(stored_file("RG1_J2KR.dcm")), radiograph)
    lossy = pixels_of(stored_file("RG1_J2KI.dcm"))
    np.testing.assert_array_equal(pixels_of(stored_file("RG1_UNCI.dcm")), lossy)
    difference = np.abs(lossy.astype(int) - radiograph)
    assert difference.mean() < 0.002 * 65535
    assert difference.max() < 0.015 * 65535


@pytest.mark.parametrize("coding", [RLELossless, JPEGLSLossless])
def test_recompressed_radiographs_are_equal(radiograph: NDArray[Any], coding: UID) -> None:
    np.testing.assert_array_equal(pixels_of(coded(stored_file("RG1_UNCR.dcm"), coding)), radiograph)


def test_the_radiograph_is_upright_with_dark_lungs(radiograph: NDArray[Any]) -> None:
    lungs = [radiograph[500:900, columns].mean() for columns in (slice(400, 600), slice(1250, 1450))]
    spine, liver, air = (
        radiograph[500:900, 880:980].mean(),
        radiograph[1500:1650, 300:600].mean(),
        radiograph[60:120, :40],
    )
    assert max(lungs) < 0.75 * min(spine, liver)
    assert air.mean() < min(lungs)


def test_only_listed_tags_are_returned() -> None:
    _, tags = reader.read(stored_file("RG1_UNCR.dcm"), "x.dcm", KEY)
    model = "Cassette Holder Type 9840 500 70201"
    assert tags == Tags(pseudonym.pseudonym("9RG1", KEY), "60-69", "female", "PA", None, model, ("spacing_unusable",))
    assert not any(secret in repr(tags) for secret in SECRETS)


def test_an_extremity_is_refused() -> None:
    assert refused(stored_file("RG3_UNCI.dcm")) == "body_part"


# Codings


@pytest.mark.parametrize("coding", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (12, True), (15, False), (16, False)]
)
def test_lossless_syntaxes_give_equal_pixels(coding: UID, bits: int, signed: bool) -> None:
    stored = gradient_image(bits=bits).astype("u1" if bits == 8 else "u2")
    plain = write_dicom((stored.astype(int) - 2 ** (bits - 1)).astype(np.int16) if signed else stored, BitsStored=bits)
    expected = pixels_of(plain)
    assert expected.min() == 0
    assert expected.max() == 65535
    np.testing.assert_array_equal(expected, pixels_of(write_dicom(stored, BitsStored=bits)))
    np.testing.assert_array_equal(pixels_of(coded(plain, coding)), expected)


@pytest.mark.parametrize("colour", [False, True])
def test_baseline_jpeg_is_close(colour: bool) -> None:
    from PIL import Image

    grey = (PIXELS >> 4).astype(np.uint8)
    stored = np.dstack([grey, grey // 2, 255 - grey]) if colour else grey
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, "JPEG", quality=95, subsampling=0)
    dataset = dcmread(io.BytesIO(write_dicom(stored)))
    dataset.PhotometricInterpretation = "YBR_FULL_422" if colour else "MONOCHROME2"
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    result = pixels_of(saved(dataset))
    expected = stored if colour else pixels_of(write_dicom(stored))
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert np.abs(result.astype(int) - expected).max() <= (6 if colour else 4 * 257)


def jpeg_lossless() -> bytes:
    return edited(stored_file("JPEG-LL.dcm"), Modality="CR", BodyPartExamined="CHEST")


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("JPEG-LL.dcm", "a6e9d32143339d3f"),
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", "36e27e4f1e87a7d5"),
        ("bad_sequence.dcm", "ef7120ddfc77c166"),
        ("SC_rgb_jpeg_gdcm.dcm", "169e619557b12114"),
        ("MR_small_jpeg_ls_lossless.dcm", "88617aaa46138fb1"),
        ("JPEGLSNearLossless_16.dcm", "f929318278115ce9"),
    ],
)
def test_pixels_equal_those_of_another_decoder(name: str, digest: str) -> None:
    """The digests are those of pylibjpeg-libjpeg 2.5 and pyjpegls 1.5."""
    content = stored_file(name)
    jpeg_plugin.register()
    pixels = pixel_array(dcmread(io.BytesIO(content)), decoding_plugin=jpeg_plugin.NAME)
    assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith(digest)


@pytest.mark.parametrize(
    ("coding", "bits"),
    [*((coding, bits) for coding in (JPEGLossless, JPEGLosslessSV1) for bits in (9, 12, 16)), (JPEGExtended12Bit, 12)],
)
def test_deep_jpeg_shows_the_same_picture(coding: UID, bits: int) -> None:
    lossless = coding != JPEGExtended12Bit
    stored = (PIXELS.astype(np.float64) / PIXELS.max() * (2**bits - 1)).astype(np.uint16)
    for predictor in (1, 4, 7) if lossless and coding != JPEGLosslessSV1 else (1,):
        options = {"lossless": True, "predictor": predictor} if lossless else {"level": 100}
        frame = imagecodecs.jpeg8_encode(stored, bitspersample=bits, **options)
        dataset = dcmread(io.BytesIO(write_dicom(stored, BitsStored=bits)))
        dataset.PixelData, dataset.file_meta.TransferSyntaxUID = encapsulate([frame]), coding
        difference = pixels_of(saved(dataset)).astype(int) - pixels_of(write_dicom(stored, BitsStored=bits))
        assert np.abs(difference).max() <= (0 if lossless else 64)


def test_shortened_jpeg_lossless_is_refused() -> None:
    dataset = dcmread(io.BytesIO(jpeg_lossless()))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    for share in (0.5, 0.95):
        dataset.PixelData = encapsulate([frame[: int(len(frame) * share)] + b"\xff\xd9"])
        assert refused(saved(dataset)) == "undecodable"


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg_plugin.register()
    monkeypatch.setattr(jpeg_plugin, "register", lambda: None)
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    with pytest.raises(ImageError, match=r"^x\.dcm .*export it again"):
        reader.read(jpeg_lossless(), "x.dcm")


def test_video_is_refused() -> None:
    dataset = dcmread(io.BytesIO(coded(CHEST, RLELossless)))
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    assert refused(saved(dataset)) == "undecodable"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, None])
def test_files_without_preamble_are_read(syntax: UID | None) -> None:
    dataset = Dataset(dcmread(io.BytesIO(CHEST)))
    stream = io.BytesIO()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    if not little:
        dataset.PixelData = PIXELS.astype(">u2").tobytes()
    dataset.save_as(stream, implicit_vr=implicit, little_endian=little)
    assert stream.getvalue()[:2] == (b"\x08\0" if little else b"\0\x08")
    assert reader.is_dicom(stream.getvalue())
    result = pixels_of(stream.getvalue())
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, pixels_of(CHEST))


@pytest.mark.parametrize("content", [b"", b"\x08\0", b"\x89PNG\r\n\x1a\n" + bytes(200), b"GIF89a" + bytes(200)])
def test_other_formats_are_not_dicom(content: bytes) -> None:
    assert not reader.is_dicom(content)
    assert reader.is_dicom(CHEST)


# What is shown


def test_monochrome1_and_2_both_show_black_air() -> None:
    turned = write_dicom(np.uint16(4095) - PIXELS, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(pixels_of(turned), pixels_of(CHEST))


def test_the_first_window_applies_and_a_lut_precedes_it() -> None:
    one = pixels_of(write_dicom(PIXELS, BitsStored=12, WindowCenter=2000, WindowWidth=1500))
    both = write_dicom(PIXELS, BitsStored=12, WindowCenter=[2000, 40], WindowWidth=[1500, 400])
    np.testing.assert_array_equal(pixels_of(both), one)
    assert np.mean(one == 0) > 0.05
    steps = lut(np.arange(4096) // 256 * 4096, 0, 16)
    result = pixels_of(write_dicom(PIXELS, BitsStored=12, WindowCenter=40, WindowWidth=9, VOILUTSequence=[steps]))
    np.testing.assert_array_equal(result, PIXELS // 256 * np.uint16(4369))


def test_rescale_and_modality_lut_precede_the_window() -> None:
    expected = pixels_of(write_dicom(PIXELS, BitsStored=12, WindowCenter=2000, WindowWidth=1500))
    rescaled = write_dicom(
        PIXELS, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=2999.5, WindowWidth=2999
    )
    assert np.abs(pixels_of(rescaled).astype(int) - expected).max() <= 1
    table = lut(np.arange(4096)[::-1], 0, 12)
    turned = write_dicom(
        np.uint16(4095) - PIXELS, BitsStored=12, ModalityLUTSequence=[table], WindowCenter=2000, WindowWidth=1500
    )
    np.testing.assert_array_equal(pixels_of(turned), expected)


@pytest.mark.parametrize("window", [(2000, 0), (2000, -5), (2000, 1), (-9000, 100), ("", ""), (None, 400)])
def test_invalid_windows_are_skipped(window: tuple[Any, Any]) -> None:
    content = write_dicom(PIXELS, BitsStored=12, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_array_equal(pixels_of(content), pixels_of(CHEST))


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black(inverted: bool) -> None:
    padded = PIXELS // 2 + 600
    padded[:, :7] = 4000
    form = "MONOCHROME1" if inverted else "MONOCHROME2"
    result = pixels_of(
        write_dicom(
            padded, BitsStored=12, PhotometricInterpretation=form, PixelPaddingValue=3990, PixelPaddingRangeLimit=4010
        )
    )
    assert not result[:, :7].any()
    assert (result[:, 7:].min(), result[:, 7:].max()) == (0, 65535)


def test_overlays_in_high_bits_are_ignored() -> None:
    drawn = PIXELS | np.where(np.arange(50) % 9 == 0, 0x8000, 0).astype(np.uint16)
    np.testing.assert_array_equal(pixels_of(write_dicom(drawn, BitsStored=12)), pixels_of(CHEST))
    shifted = write_dicom(PIXELS << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(pixels_of(shifted), pixels_of(CHEST))


def test_colours_are_rgb() -> None:
    grey = (PIXELS >> 4).astype(np.uint8)
    colours = np.dstack([grey, grey // 2, 255 - grey])
    np.testing.assert_array_equal(pixels_of(write_dicom(colours)), colours)
    planes = write_dicom(colours, PlanarConfiguration=1, PixelData=np.moveaxis(colours, 2, 0).tobytes())
    np.testing.assert_array_equal(pixels_of(planes), colours)
    neutral = np.dstack([grey, np.full_like(grey, 128), np.full_like(grey, 128)])
    result = pixels_of(write_dicom(neutral, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_array_equal(result, np.dstack([grey] * 3))


def test_palettes_are_applied() -> None:
    grey = (PIXELS >> 4).astype(np.uint8)
    colours = ("Red", "Green", "Blue")
    tables = {f"{colour}PaletteColorLookupTableData": bytes(range(255, -1, -1)) for colour in colours}
    described = {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 8] for colour in colours}
    result = pixels_of(write_dicom(grey, PhotometricInterpretation="PALETTE COLOR", **described, **tables))
    np.testing.assert_array_equal(result, np.dstack([255 - grey] * 3))


# What is refused

REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
PRESENTATION = "1.2.840.10008.5.1.4.1.1.11.1"
DIRECTORY = "1.2.840.10008.1.3.10"
NO_PIXELS: dict[str, Any] = {"PixelData": None, "Rows": None, "Columns": None}

REFUSED = {
    "a report": (write_dicom(PIXELS, SOPClassUID=REPORT, Modality="SR", **NO_PIXELS), "no_pixels"),
    "a presentation state": (write_dicom(PIXELS, SOPClassUID=PRESENTATION, Modality="PR", **NO_PIXELS), "no_pixels"),
    "a directory": (write_dicom(PIXELS, SOPClassUID=DIRECTORY, **NO_PIXELS), "no_pixels"),
    "an image without pixels": (write_dicom(PIXELS, PixelData=None), "undecodable"),
    "a CT": (write_dicom(PIXELS, Modality="CT"), "not_radiograph"),
    "a hand": (write_dicom(PIXELS, BodyPartExamined="HAND"), "body_part"),
    "a lateral view": (write_dicom(PIXELS, ViewPosition="LL"), "lateral_view"),
    "two frames": (
        write_dicom(PIXELS, NumberOfFrames=2, PixelData=np.stack([PIXELS, PIXELS]).tobytes()),
        "multi_frame",
    ),
    "32 bits": (write_dicom(PIXELS.astype(np.uint32)), "depth"),
    "floating point": (
        write_dicom(PIXELS, BitsAllocated=32, PixelData=None, FloatPixelData=PIXELS.astype(np.float32).tobytes()),
        "depth",
    ),
    "one bit": (write_dicom(PIXELS, BitsAllocated=1, BitsStored=1), "depth"),
    "more bits stored than there are": (write_dicom(PIXELS, BitsStored=17), "depth"),
    "no rows": (write_dicom(PIXELS, Rows=0), "undecodable"),
    "no bits": (write_dicom(PIXELS, BitsAllocated=0), "undecodable"),
    "four channels": (write_dicom(PIXELS, SamplesPerPixel=4), "undecodable"),
    "fewer pixels than rows and columns": (write_dicom(PIXELS, Rows=61), "undecodable"),
    "a bomb": (write_dicom(PIXELS, Rows=60000, Columns=60000), "too_large"),
    "noise behind a preamble": (bytes(128) + b"DICM" + bytes(range(256)) * 4, "undecodable"),
    "nothing behind a preamble": (bytes(128) + b"DICM", "undecodable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_dicom_files_are_refused_with_a_reason(name: str) -> None:
    content, reason = REFUSED[name]
    assert reader.is_dicom(content)
    assert refused(content) == reason


@pytest.mark.parametrize("coding", [None, *LOSSLESS], ids=lambda uid: uid.keyword if uid else "uncompressed")
def test_a_truncated_file_is_refused_or_has_all_pixels(coding: UID | None) -> None:
    complete = coded(CHEST, coding) if coding else CHEST
    expected = pixels_of(complete)
    passed = 0
    cuts = [*range(132, len(complete), max(1, len(complete) // 60)), *range(len(complete) - 10, len(complete))]
    for cut in cuts:
        try:
            result = pixels_of(complete[:cut])
        except ImageError:
            continue
        passed += 1
        np.testing.assert_array_equal(result, expected)
    assert passed <= 10


@pytest.mark.parametrize("coding", LOSSLESS, ids=lambda uid: uid.keyword)
def test_a_truncated_frame_in_a_complete_file_is_refused(coding: UID) -> None:
    complete = coded(CHEST, coding)
    frame = frame_of(complete)
    for cut in range(2, len(frame) - 2, max(2, len(frame) // 30)):
        assert refused(with_frame(complete, frame[:cut])) == "undecodable"


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.sampled_from(range(len(LOSSLESS) + 1)), st.floats(0, 1), st.integers(1, 255))
def test_flipped_bytes_neither_crash_nor_leak_patient_data(index: int, position: float, flip: int) -> None:
    complete = FLIPPED[index]
    at = min(int(position * len(complete)), len(complete) - 1)
    damaged = complete[:at] + bytes([complete[at] ^ flip]) + complete[at + 1 :]
    try:
        text = str(reader.read(damaged, "x.dcm", KEY)[0].dtype)
    except ImageError as error:
        text = str(error)
    assert not any(secret in text for secret in SECRETS)


FLIPPED = [CHEST, *(coded(CHEST, coding) for coding in LOSSLESS)]


def test_internal_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(reader, "render", broken)
    with pytest.raises(TypeError, match="a bug"):
        reader.read(CHEST, "x.dcm")


def test_memory_errors_are_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", broken)
    with pytest.raises(MemoryError):
        reader.read(CHEST, "x.dcm")


# Patients

CLASS = "1.2.840.10008.5.1.4.1.1.1"
LEAKY = write_dicom(PIXELS, SOPClassUID=CLASS).replace(CLASS.encode(), b"Doe^Jane" + CLASS[8:].encode())


def test_decoder_warnings_and_logs_are_silenced(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        reader.read(LEAKY, "x.dcm", KEY)
        refused(write_dicom(PIXELS, Rows=61, PatientID="P-1"))
    assert not list(recwarn)
    assert not caplog.text
    assert capfd.readouterr() == ("", "")


def test_pydicom_still_emits_the_silenced_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert dcmread(io.BytesIO(LEAKY)).SOPClassUID
    assert any("Doe" in str(warning.message) for warning in caught)


def test_pseudonyms_are_stable_and_need_the_key() -> None:
    first = pseudonym.pseudonym("P-1", KEY)
    assert first == pseudonym.pseudonym(" P-1 ", KEY)
    assert first != pseudonym.pseudonym("P-2", KEY)
    assert first != pseudonym.pseudonym("P-1", KEY + b"!")
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert reader.read(CHEST, "x.dcm", KEY)[1].patient_id == first
    assert reader.read(CHEST, "x.dcm")[1].patient_id == ""
    assert reader.read(write_dicom(PIXELS, PatientID=""), "x.dcm", KEY)[1].patient_id == ""


def test_tags_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Tags("a", "0-9"))) == Tags("a", "0-9")


def test_the_key_is_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUNGSEG_PATIENT_KEY", raising=False)
    assert pseudonyms.read_key("") is None
    monkeypatch.setenv("LUNGSEG_PATIENT_KEY", KEY.decode() + "\n")
    assert pseudonyms.read_key("") == KEY
    (tmp_path / "key").write_bytes(b"  another key that is long\n")
    assert pseudonyms.read_key(str(tmp_path / "key")) == b"another key that is long"


def test_missing_or_short_keys_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"secret\n")
    with pytest.raises(SettingsError, match=r"6 bytes.*openssl rand -hex 32") as caught:
        pseudonyms.read_key(str(tmp_path / "key"))
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="nowhere"):
        pseudonyms.read_key(str(tmp_path / "nowhere"))
    monkeypatch.setenv("LUNGSEG_PATIENT_KEY", "short")
    with pytest.raises(SettingsError, match="LUNGSEG_PATIENT_KEY has 5 bytes"):
        pseudonyms.read_key("")


def test_pydicom_is_imported_only_when_needed() -> None:
    code = "import sys, lungseg.imaging.dicom.reader; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
