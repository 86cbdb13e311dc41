"""DICOM segmentations: content, validity and reproducible bytes."""

import io
import shutil
import subprocess
import warnings
from pathlib import Path

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from lungseg.errors import InputError
from lungseg.imaging.dicom.segmentation import encode_segmentation

U8 = NDArray[np.uint8]
SHAPE = (1955, 1841)


@pytest.fixture(scope="module")
def radiograph() -> bytes:
    """RG1, a real MONOCHROME1 radiograph of 1955 x 1841 px."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = get_testdata_file("RG1_UNCR.dcm", download=False)
    if result is None:
        pytest.skip("pydicom-data is not installed")
    return Path(str(result)).read_bytes()


@pytest.fixture(scope="module")
def lungs() -> dict[str, U8]:
    drawn = {}
    for side, centre in (("right", 480), ("left", 1300)):
        drawn[side] = np.zeros(SHAPE, np.uint8)
        cv2.ellipse(drawn[side], (centre, 800), (250, 560), 4, 0, 360, 1, -1)
    return drawn


@pytest.fixture(scope="module")
def encoded(radiograph: bytes, lungs: dict[str, U8]) -> bytes:
    return encode_segmentation(radiograph, lungs, "feed", "RG1")


def test_segments_equal_the_masks_and_join_the_study(radiograph: bytes, lungs: dict[str, U8], encoded: bytes) -> None:
    source = pydicom.dcmread(io.BytesIO(radiograph), stop_before_pixels=True)
    result = highdicom.seg.segread(io.BytesIO(encoded))
    pixels = result.get_pixels_by_source_instance([source.SOPInstanceUID])
    for number, side in enumerate(("right", "left"), start=1):
        assert result.get_segment_description(number).SegmentLabel == f"{side.capitalize()} lung"
        assert (pixels[0, :, :, number - 1] == lungs[side]).all()
    assert result.StudyInstanceUID == source.StudyInstanceUID
    assert result.PatientID == source.PatientID
    assert result.SOPInstanceUID != source.SOPInstanceUID
    assert result.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion.endswith(" feed")


def test_bytes_are_reproducible_and_uids_depend_on_the_inputs(
    radiograph: bytes, lungs: dict[str, U8], encoded: bytes
) -> None:
    assert encode_segmentation(radiograph, lungs, "feed", "RG1") == encoded
    other = pydicom.dcmread(io.BytesIO(encode_segmentation(radiograph, lungs, "beef", "RG1")))
    first = pydicom.dcmread(io.BytesIO(encoded))
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    smaller = {side: cv2.erode(mask, np.ones((9, 9), np.uint8)) for side, mask in lungs.items()}
    again = pydicom.dcmread(io.BytesIO(encode_segmentation(radiograph, smaller, "feed", "RG1")))
    assert again.SOPInstanceUID != first.SOPInstanceUID
    assert again.SeriesInstanceUID == first.SeriesInstanceUID


def test_dciodvfy_reports_no_error(encoded: bytes, tmp_path: Path) -> None:
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    (tmp_path / "seg.dcm").write_bytes(encoded)
    report = subprocess.run([checker, tmp_path / "seg.dcm"], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in report
    assert not [line for line in report.splitlines() if line.startswith("Error")]


def test_empty_lungs_are_skipped(radiograph: bytes, lungs: dict[str, U8]) -> None:
    one = {**lungs, "right": np.zeros(SHAPE, np.uint8)}
    result = highdicom.seg.segread(io.BytesIO(encode_segmentation(radiograph, one, "feed", "RG1")))
    assert [segment.SegmentLabel for segment in result.SegmentSequence] == ["Left lung"]


def test_invalid_inputs_are_refused(radiograph: bytes, lungs: dict[str, U8]) -> None:
    with pytest.raises(InputError, match=r"x\.png is not a DICOM file"):
        encode_segmentation(b"\x89PNG" + bytes(200), lungs, "feed", "x.png")
    with pytest.raises(InputError, match="empty mask"):
        encode_segmentation(radiograph, {side: mask * np.uint8(0) for side, mask in lungs.items()}, "feed", "RG1")
    with pytest.raises(InputError, match="RG1 is 1955x1841 px, but its mask has another size"):
        encode_segmentation(radiograph, {"left": np.ones((9, 9), np.uint8)}, "feed", "RG1")
    with pytest.raises(InputError, match="truncated lacks Rows"):
        encode_segmentation(radiograph[:400], lungs, "feed", "truncated")
