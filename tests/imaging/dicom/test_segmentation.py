"""Masks as DICOM segmentations: read back, checked by another tool, the same bytes every time."""

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
        found = get_testdata_file("RG1_UNCR.dcm", download=False)
    if found is None:
        pytest.skip("pydicom-data is not installed")
    return Path(str(found)).read_bytes()


@pytest.fixture(scope="module")
def lungs() -> dict[str, U8]:
    drawn = {}
    for side, centre in (("right", 480), ("left", 1300)):
        drawn[side] = np.zeros(SHAPE, np.uint8)
        cv2.ellipse(drawn[side], (centre, 800), (250, 560), 4, 0, 360, 1, -1)
    return drawn


@pytest.fixture(scope="module")
def made(radiograph: bytes, lungs: dict[str, U8]) -> bytes:
    return encode_segmentation(radiograph, lungs, "feed", "RG1")


def test_each_lung_comes_back_to_the_pixel_and_lies_in_the_study(
    radiograph: bytes, lungs: dict[str, U8], made: bytes
) -> None:
    source = pydicom.dcmread(io.BytesIO(radiograph), stop_before_pixels=True)
    found = highdicom.seg.segread(io.BytesIO(made))
    pixels = found.get_pixels_by_source_instance([source.SOPInstanceUID])
    for number, side in enumerate(("right", "left"), start=1):
        assert found.get_segment_description(number).SegmentLabel == f"{side.capitalize()} lung"
        assert (pixels[0, :, :, number - 1] == lungs[side]).all()
    assert found.StudyInstanceUID == source.StudyInstanceUID
    assert found.PatientID == source.PatientID
    assert found.SOPInstanceUID != source.SOPInstanceUID
    assert found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion.endswith(" feed")


def test_the_same_call_makes_the_same_bytes_and_another_model_another_object(
    radiograph: bytes, lungs: dict[str, U8], made: bytes
) -> None:
    assert encode_segmentation(radiograph, lungs, "feed", "RG1") == made
    other = pydicom.dcmread(io.BytesIO(encode_segmentation(radiograph, lungs, "beef", "RG1")))
    first = pydicom.dcmread(io.BytesIO(made))
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    smaller = {side: cv2.erode(mask, np.ones((9, 9), np.uint8)) for side, mask in lungs.items()}
    again = pydicom.dcmread(io.BytesIO(encode_segmentation(radiograph, smaller, "feed", "RG1")))
    assert again.SOPInstanceUID != first.SOPInstanceUID
    assert again.SeriesInstanceUID == first.SeriesInstanceUID


def test_another_tool_finds_no_error(made: bytes, tmp_path: Path) -> None:
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    (tmp_path / "seg.dcm").write_bytes(made)
    said = subprocess.run([checker, tmp_path / "seg.dcm"], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert not [line for line in said.splitlines() if line.startswith("Error")]


def test_an_empty_lung_is_left_out(radiograph: bytes, lungs: dict[str, U8]) -> None:
    one = {**lungs, "right": np.zeros(SHAPE, np.uint8)}
    found = highdicom.seg.segread(io.BytesIO(encode_segmentation(radiograph, one, "feed", "RG1")))
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["Left lung"]


def test_what_cannot_be_a_segmentation_is_refused(radiograph: bytes, lungs: dict[str, U8]) -> None:
    with pytest.raises(InputError, match=r"x\.png is no DICOM file"):
        encode_segmentation(b"\x89PNG" + bytes(200), lungs, "feed", "x.png")
    with pytest.raises(InputError, match="empty mask"):
        encode_segmentation(radiograph, {side: mask * np.uint8(0) for side, mask in lungs.items()}, "feed", "RG1")
    with pytest.raises(InputError, match="RG1 is 1955x1841, its mask is of another size"):
        encode_segmentation(radiograph, {"left": np.ones((9, 9), np.uint8)}, "feed", "RG1")
    with pytest.raises(InputError, match="torn lacks Rows"):
        encode_segmentation(radiograph[:400], lungs, "feed", "torn")
