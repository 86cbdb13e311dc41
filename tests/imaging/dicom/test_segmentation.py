"""DICOM segmentations: content, validity and reproducible bytes."""

import io
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from lungseg.errors import InputError
from lungseg.imaging.dicom.segment_codes import property_of
from lungseg.imaging.dicom.segmentation import encode_segmentation, invalid_elements
from tests.imaging.dicom.dicom_files import write_dicom

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed; it has no wheels for Python 3.14")

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
    for side, centre in (("right_lung", 480), ("left_lung", 1300)):
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
    for number, side in enumerate(("right_lung", "left_lung"), start=1):
        assert result.get_segment_description(number).SegmentLabel == side.replace("_", " ").capitalize()
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


CODES = {
    "right_lung": ("91723000", "3341006", "SCT", "Right lung"),
    "left_lung": ("91723000", "44029006", "SCT", "Left lung"),
    "heart": ("91723000", "80891009", "SCT", "Heart"),
    "opacity": ("49755003", "112001", "DCM", "Opacity"),
    "aortic_arch_and_more": ("91723000", "aortic_ar_6c7195", "99LUNGSEG", "Aortic arch and more"),
}


@pytest.fixture(scope="module")
def classes(lungs: dict[str, U8]) -> dict[str, U8]:
    """Five masks; the heart covers a part of both lungs, and the opacity is inside the right one."""
    others = ("heart", "opacity", "aortic_arch_and_more")
    drawn = {**lungs, **{name: np.zeros(SHAPE, np.uint8) for name in others}}
    cv2.ellipse(drawn["heart"], (900, 1000), (420, 260), 20, 0, 360, 1, -1)
    cv2.ellipse(drawn["opacity"], (450, 700), (90, 120), 0, 0, 360, 1, -1)
    drawn["aortic_arch_and_more"][500:600, 900:1000] = 1
    return drawn


@pytest.fixture(scope="module")
def encoded_classes(radiograph: bytes, classes: dict[str, U8]) -> bytes:
    return encode_segmentation(radiograph, classes, "feed", "RG1")


def test_each_class_is_a_segment_with_its_codes(
    radiograph: bytes, classes: dict[str, U8], encoded_classes: bytes
) -> None:
    source = pydicom.dcmread(io.BytesIO(radiograph), stop_before_pixels=True)
    result = highdicom.seg.segread(io.BytesIO(encoded_classes))
    pixels = result.get_pixels_by_source_instance([source.SOPInstanceUID])
    assert (result.number_of_segments, result.SegmentsOverlap) == (len(classes), "YES")
    assert (result.ContentLabel, result.SeriesDescription) == ("CHEST", "Structures by lungseg, not for diagnosis")
    for number, (name, mask) in enumerate(classes.items(), start=1):
        assert (pixels[0, :, :, number - 1] == mask).all()
        segment = result.get_segment_description(number)
        kind = segment.segmented_property_type
        codes = (segment.segmented_property_category.value, kind.value, kind.scheme_designator, kind.meaning)
        assert codes == CODES[name]
        assert segment.SegmentLabel == kind.meaning
    assert (pixels.sum(axis=-1) > 1).any()


def test_long_names_with_one_beginning_have_different_codes() -> None:
    codes = {property_of(f"pleural_effusion_{side}")[1][0] for side in ("right", "left")}
    assert len(codes) == 2
    assert {len(code) for code in codes} == {16}
    assert property_of("pleural_effusion")[1][0] == "pleural_effusion"


def test_uids_depend_on_the_names_of_classes(radiograph: bytes, lungs: dict[str, U8]) -> None:
    one, other = (
        encode_segmentation(radiograph, {name: lungs["left_lung"]}, "feed", "RG1") for name in ("heart", "aorta")
    )
    uids = [pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID for content in (one, other)]
    assert uids[0] != uids[1]


@pytest.mark.parametrize("fixture", ["encoded", "encoded_classes"])
def test_dciodvfy_reports_no_error(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    encoded: bytes = request.getfixturevalue(fixture)
    checker = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if checker is None:
        pytest.skip("dciodvfy is not installed: make test fetches it on Debian and Ubuntu")
    (tmp_path / "seg.dcm").write_bytes(encoded)
    report = subprocess.run([checker, tmp_path / "seg.dcm"], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in report
    assert not [line for line in report.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"PixelSpacing": [0.15, 0.15], "ImagerPixelSpacing": [0.2, 0.2]}, 0.15),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.2]}, 0.2),
        ({"PixelSpacing": [0, 0]}, 1.0),
    ],
)
def test_spacing_is_that_of_the_areas(
    given: dict[str, list[float]], expected: float, radiograph: bytes, lungs: dict[str, U8]
) -> None:
    dataset, stream = pydicom.dcmread(io.BytesIO(radiograph)), io.BytesIO()
    for name, value in given.items():
        setattr(dataset, name, value)
    dataset.save_as(stream)
    result = highdicom.seg.segread(io.BytesIO(encode_segmentation(stream.getvalue(), lungs, "feed", "RG1")))
    (measures,) = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert list(measures.PixelSpacing) == [expected, expected]


def test_empty_lungs_are_skipped(radiograph: bytes, lungs: dict[str, U8]) -> None:
    one = {**lungs, "right_lung": np.zeros(SHAPE, np.uint8)}
    result = highdicom.seg.segread(io.BytesIO(encode_segmentation(radiograph, one, "feed", "RG1")))
    assert [segment.SegmentLabel for segment in result.SegmentSequence] == ["Left lung"]


def test_invalid_inputs_are_refused(radiograph: bytes, lungs: dict[str, U8]) -> None:
    with pytest.raises(InputError, match=r"x\.png is not a DICOM file"):
        encode_segmentation(b"\x89PNG" + bytes(200), lungs, "feed", "x.png")
    with pytest.raises(InputError, match="empty mask"):
        encode_segmentation(radiograph, {side: mask * np.uint8(0) for side, mask in lungs.items()}, "feed", "RG1")
    with pytest.raises(InputError, match="RG1 is 1955x1841 px, but its mask has another size"):
        encode_segmentation(radiograph, {"left_lung": np.ones((9, 9), np.uint8)}, "feed", "RG1")
    with pytest.raises(InputError, match="truncated lacks Rows"):
        encode_segmentation(radiograph[:400], lungs, "feed", "truncated")


SMALL = (64, 72)
UIDS = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
SMALL_LUNGS = {side: np.zeros(SMALL, np.uint8) for side in ("right_lung", "left_lung")}
SMALL_LUNGS["right_lung"][9:50, 5:30] = SMALL_LUNGS["left_lung"][9:50, 40:65] = 1


def exported(**tags: Any) -> tuple[pydicom.Dataset, list[str]]:
    """Export the masks of a small file with these tags; return the segmentation and the elements left empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom writes invalid values with a warning
        content = write_dicom(np.zeros(SMALL, np.uint16), **{**UIDS, **tags})
    encoded = encode_segmentation(content, SMALL_LUNGS, "feed", "x.dcm")
    return pydicom.dcmread(io.BytesIO(encoded)), invalid_elements(content, "x.dcm")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "12/03/61"),
        ("PatientBirthDate", "19610230"),
        ("StudyDate", "2024-01-31"),
        ("StudyTime", "25:61"),
        ("PatientSex", "U"),
        ("PatientSex", "FEMALE"),
        ("PatientName", "A" * 65),
        ("AccessionNumber", "A" * 17),
        ("PatientID", "one\\two"),
        ("StudyID", "line\nbreak"),
    ],
)
def test_invalid_values_are_left_empty_and_named(name: str, value: str) -> None:
    result, left_empty = exported(**{name: value})
    assert (result.get(name), left_empty) == ("", [name])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PatientBirthDate", "19610312", "19610312"),
        ("StudyTime", "10", "10"),
        ("StudyTime", "235959.123456", "235959.123456"),
        ("PatientSex", "f", "F"),
        ("PatientName", "Doe", "Doe"),
        ("IssuerOfPatientID", "North", "North"),
        ("IssuerOfPatientID", None, None),
        ("PatientAge", "045Y", None),
        ("AccessionNumber", None, ""),
    ],
)
def test_valid_values_are_kept(name: str, value: str | None, expected: str | None) -> None:
    result, left_empty = exported(**{name: value})
    assert (result.get(name), left_empty) == (expected, [])


def test_sequences_about_patient_and_study_are_left_out() -> None:
    names = (
        "OtherPatientIDsSequence",
        "IssuerOfPatientIDQualifiersSequence",
        "ReferringPhysicianIdentificationSequence",
    )
    names += ("ReferencedStudySequence", "ProcedureCodeSequence", "ReferencedPatientSequence")
    names += ("PatientSpeciesCodeSequence", "AdmittingDiagnosesCodeSequence", "RequestAttributesSequence")
    item = pydicom.Dataset()
    item.PatientID = item.CodeMeaning = "canary"
    result, _ = exported(**{name: [item] for name in names}, ReferringPhysicianName="canary", Manufacturer="canary")
    assert "canary" not in str(result)
    assert {name for name in names if name in result} == set()
    assert result.ReferringPhysicianName == ""


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "M\u00fcller^J\u00fcrgen"),
        ("ISO_IR 144", "\u041b\u044e\u043a"),
        ("ISO_IR 192", "Wang^XiaoDong=\u738b^\u5c0f\u4e1c"),
        ("GB18030", "Wang=\u738b^\u5c0f\u4e1c"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"),
        (["", "ISO 2022 IR 149"], "Hong=\u6d2a^\u5409\u6d1e=\ud64d^\uae38\ub3d9"),
    ],
)
def test_names_in_any_character_set_are_read_back(declared: str | list[str] | None, name: str) -> None:
    result, left_empty = exported(SpecificCharacterSet=declared, PatientName=name)
    assert (str(result.PatientName), result.SpecificCharacterSet, left_empty) == (name, "ISO_IR 192", [])


@pytest.mark.parametrize(("codec", "name"), [("utf_8", "\u738b^\u5c0f\u4e1c"), ("latin_1", "M\u00fcller")])
def test_undeclared_character_sets_are_recognised(codec: str, name: str) -> None:
    placeholder = "X" * len(name.encode(codec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = write_dicom(np.zeros(SMALL, np.uint16), **UIDS, PatientName=placeholder)
    content = content.replace(placeholder.encode(), name.encode(codec))
    result = pydicom.dcmread(io.BytesIO(encode_segmentation(content, SMALL_LUNGS, "feed", "x.dcm")))
    assert str(result.PatientName) == name


def test_missing_or_invalid_references_are_refused_without_their_values() -> None:
    for name, value in (("SOPInstanceUID", "canary"), ("SeriesInstanceUID", None)):
        with pytest.raises(InputError, match=name) as caught:
            exported(**{name: value})
        assert "canary" not in str(caught.value)


def test_case_files_keep_their_names(pytestconfig: pytest.Config) -> None:
    folder = pytestconfig.rootpath / ".." / "shared" / "cases" / "character-sets"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    mask = np.zeros((256, 256), np.uint8)
    mask[60:200, 20:110] = 1
    names = {}
    for path in folder.glob("*.dcm"):
        encoded = encode_segmentation(path.read_bytes(), {"right_lung": mask}, "feed", path.name)
        names[path.stem] = str(pydicom.dcmread(io.BytesIO(encoded)).PatientName)
        if path.stem != "undeclared-utf8":  # pydicom takes its name for Latin-1
            assert names[path.stem] == str(pydicom.dcmread(path).PatientName)
    assert (len(names), names["undeclared-utf8"]) == (7, "\u738b^\u5c0f\u4e1c")
