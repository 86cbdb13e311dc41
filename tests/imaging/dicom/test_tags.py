"""Checks of modality, body part and view; extraction of the permitted tags."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydicom.dataset import Dataset

from lungseg.errors import ImageError
from lungseg.imaging.dicom import tags as tags_module
from lungseg.imaging.dicom.tags import Tags

VIEWS = ("PA", "AP", "LLD", "RLD")
pytestmark = pytest.mark.filterwarnings("ignore:(Invalid|The) value:UserWarning")


def dataset(**tags: Any) -> Dataset:
    result = Dataset()
    for name, value in tags.items():
        setattr(result, name, value)
    return result


def described(**tags: Any) -> Tags:
    return tags_module.extract_tags(dataset(**tags), "")


def refusal(**tags: Any) -> str:
    result = dataset(**tags)
    for check in (tags_module.check_chest, tags_module.check_frontal):
        try:
            check(result, "x.dcm")
        except ImageError as error:
            return error.code if "x.dcm" in error.message and ": " in error.message else "incomplete message"
    return ""


def code(meaning: str, value: str = "0") -> list[Dataset]:
    return [dataset(CodeValue=value, CodeMeaning=meaning, CodingSchemeDesignator="SCT")]


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("045Y", "40-49"),
        ("001Y", "0-9"),
        ("000M", "0-9"),
        ("000D", "0-9"),
        ("000Y", None),
        ("000", None),
        ("999Y", None),
        ("-45Y", None),
        ("UNKN", None),
        ("009Y", "0-9"),
        ("010Y", "10-19"),
        ("089Y", "80-89"),
        ("090Y", "90+"),
        ("104Y", "90+"),
        ("006M", "0-9"),
        ("130M", "10-19"),
        ("030W", "0-9"),
        ("003D", "0-9"),
        ("45Y", "40-49"),
        ("045", "40-49"),
        ("200Y", None),
        ("", None),
    ],
)
def test_ages_become_decades(age: str, expected: str | None) -> None:
    assert described(PatientAge=age).age_group == expected


@pytest.mark.parametrize(
    ("born", "seen", "expected"),
    [
        ("19400305", "20040826", "60-69"),
        ("19540827", "20040826", "40-49"),
        ("19540826", "20040826", "50-59"),
        ("20040826", "20040826", "0-9"),
        ("20050101", "20040826", None),
        ("11111111", "20040826", None),
        ("19400305", "", None),
        ("", "20040826", None),
        ("19000101", "20040826", None),
        ("00000000", "20040826", None),
    ],
)
def test_missing_ages_are_computed_from_dates(born: str, seen: str, expected: str | None) -> None:
    assert described(PatientBirthDate=born, StudyDate=seen).age_group == expected
    assert described(PatientAge="000Y", PatientBirthDate=born, StudyDate=seen).age_group == expected
    assert described(PatientAge="013Y", PatientBirthDate=born, StudyDate=seen).age_group == "10-19"


@pytest.mark.parametrize(("sex", "expected"), [("F", "female"), ("M", "male"), ("O", "other"), ("", None)])
def test_sex(sex: str, expected: str | None) -> None:
    assert described(PatientSex=sex).sex == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelSpacing": [0.143, 0.143]}, 0.143),
        ({"PixelSpacing": [0.14, 0.146]}, 0.143),
        ({"PixelSpacing": [0.14, 0.15]}, None),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.2]}, 0.2),
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.2, 0.2]}, 0.1),
        ({"PixelSpacing": None}, None),
        ({"PixelSpacing": [0.2]}, None),
        ({"PixelSpacing": [0.025, 0.025]}, 0.025),
        ({"PixelSpacing": [0.024, 0.024]}, None),
        ({"PixelSpacing": [0.5, 0.5]}, 0.5),
        ({"PixelSpacing": [1, 1]}, None),
        ({}, None),
    ],
)
def test_a_spacing_that_cannot_be_used_is_flagged(tags: dict[str, Any], expected: float | None) -> None:
    result = described(Rows=2000, Columns=1800, **tags)
    assert result.spacing_mm == (None if expected is None else pytest.approx(expected))
    is_stated = any(value is not None for value in tags.values())
    assert result.flags == (("spacing_unusable",) if is_stated and expected is None else ())


@pytest.mark.parametrize(
    ("position", "expected"), [("PA", "PA"), ("ap", "AP"), ("AP_SUPINE", "AP"), ("LLD", "LLD"), ("SMITH", None)]
)
def test_only_known_views_are_returned(position: str, expected: str | None) -> None:
    assert described(ViewPosition=position).view == expected


def test_the_model_name_is_one_line() -> None:
    assert described(ManufacturerModelName=" DR  900\t").manufacturer_model == "DR 900"
    assert described().manufacturer_model is None


@pytest.mark.parametrize("modality", [None, "", "CR", "DX", "DR", "RG", "OT", "SC"])
def test_radiograph_modalities_pass(modality: str | None) -> None:
    assert refusal(Modality=modality) == ""


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "NM", "XA", "RF", "MG", "PX", "SEG", "SR", "RTDOSE"])
def test_other_modalities_are_refused(modality: str) -> None:
    assert refusal(Modality=modality) == "not_radiograph"


CHEST = ["CHEST", "Chest", "THORAX", "LUNG", "PORT CHEST", "CHEST PA", "TORAX", "BRUST", "POUMON", "TORACE", "PECHO"]


@pytest.mark.parametrize("part", [None, "", "UNKNOWN", *CHEST])
def test_chest_in_any_language_and_missing_body_parts_pass(part: str | None) -> None:
    assert refusal(BodyPartExamined=part) == ""
    assert refusal(BodyPartExamined=part, AnatomicRegionSequence=code("Chest")) == ""


@pytest.mark.parametrize("part", ["EXTREMITY", "HAND", "ABDOMEN", "SKULL", "THORACIC SPINE", "CSPINE", "BRUSTWIRBEL"])
def test_other_body_parts_are_refused(part: str) -> None:
    assert refusal(BodyPartExamined=part) == "body_part"
    assert refusal(BodyPartExamined=part, AnatomicRegionSequence=code("Chest")) == "body_part"


@pytest.mark.parametrize("part", ["N/A", "-", "0", "NOT SPECIFIED", "sonstige", "\u4e0d\u660e"])
def test_placeholders_leave_the_decision_to_other_tags(part: str) -> None:
    assert described(BodyPartExamined=part, ViewPosition=part).flags == ()
    assert refusal(BodyPartExamined=part, AnatomicRegionSequence=code("Hand")) == "body_part"
    assert refusal(Modality=part) == ""


def test_unknown_words_are_flagged_and_not_refused() -> None:
    tags: dict[str, Any] = {"BodyPartExamined": "SMITH", "ViewPosition": "VIEW7Q"}
    assert refusal(**tags) == ""
    assert described(**tags).flags == ("body_part_unknown", "view_unknown")
    assert described(**tags, AnatomicRegionSequence=code("Chest")).flags == ("view_unknown",)


def test_chest_beside_other_parts_is_flagged() -> None:
    for part in ("CHESTABDOMEN", "ABDOMEN CHEST", "BABYGRAM", "WHOLEBODY", "THORAX/BECKEN"):
        assert refusal(BodyPartExamined=part) == ""
        assert described(BodyPartExamined=part).flags == ("body_part_several",)
    assert described(AnatomicRegionSequence=code("", "416550000")).flags == ("body_part_several",)


def test_view_in_the_body_part_counts_without_a_view_position() -> None:
    assert refusal(BodyPartExamined="CHEST_LAT") == "lateral_view"
    assert refusal(BodyPartExamined="CHEST LAT", ViewPosition="PA") == ""
    assert described(BodyPartExamined="CHEST PA").view == "PA"


def test_frontal_and_lateral_words_together_are_flagged() -> None:
    assert refusal(ViewPosition="PA/LAT") == ""
    assert described(ViewPosition="PA/LAT").flags == ("view_unknown",)


@pytest.mark.parametrize("view", ["LAO", "RLO", "OBLIQUE", "schr\u00e4g"])
def test_oblique_views_are_refused(view: str) -> None:
    assert refusal(ViewPosition=view) == "oblique_view"
    assert refusal(ViewCodeSequence=code("x", "399182000")) == "oblique_view"


def test_the_region_is_used_if_the_body_part_is_missing() -> None:
    assert refusal(AnatomicRegionSequence=code("Hand")) == "body_part"
    assert refusal(AnatomicRegionSequence=code("Thoracic structure")) == ""
    assert refusal(AnatomicRegionSequence=code("", "T-D3000")) == ""
    assert refusal(AnatomicRegionSequence=[*code("Abdomen"), *code("Chest")]) == ""


@pytest.mark.parametrize(
    "tags",
    [
        {"ViewPosition": "LL"},
        {"ViewPosition": "RL"},
        {"ViewPosition": "LATERAL"},
        {"ViewPosition": "LEFT_LATERAL"},
        {"ViewCodeSequence": code("left lateral")},
        {"ViewCodeSequence": code("seitlich", "399198007")},
        {"PatientOrientation": ["A", "F"]},
        {"PatientOrientation": ["P", "F"]},
        {"ViewPosition": "PA", "PatientOrientation": ["AL", "F"]},
    ],
)
def test_lateral_views_are_refused(tags: dict[str, Any]) -> None:
    assert refusal(**tags) == "lateral_view"


@pytest.mark.parametrize(
    "tags",
    [
        {"ViewPosition": "PA", "PatientOrientation": ["L", "F"]},
        {"ViewPosition": "LLD"},
        {"ViewPosition": "RLD", "PatientOrientation": ["H", "L"]},
        {"ViewPosition": "LAT DECUBITUS"},
        {"ViewCodeSequence": code("antero-posterior")},
        {"ViewCodeSequence": code("left lateral decubitus")},
        {"ViewPosition": "", "PatientOrientation": ""},
    ],
)
def test_frontal_views_pass(tags: dict[str, Any]) -> None:
    assert refusal(**tags) == ""


@given(
    st.sampled_from(["PatientAge", "PatientBirthDate", "StudyDate", "PatientSex", "ViewPosition", "BodyPartExamined"]),
    st.text(max_size=20),
)
def test_free_text_in_coded_tags_is_not_returned(name: str, words: str) -> None:
    known = {None, "", 1, (), "female", "male", "other", *VIEWS, "90+"} | {f"{n}-{n + 9}" for n in range(0, 90, 10)}
    values = asdict(described(**{name: words}))
    assert set(values.pop("flags")) <= {"body_part_unknown", "body_part_several", "view_unknown"}
    assert set(values.values()) <= known


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (tags_module.check_chest, "BodyPartExamined"),
        (tags_module.check_chest, "Modality"),
        (tags_module.check_frontal, "ViewPosition"),
    ],
)
def test_errors_do_not_quote_tags(check: Callable[[Dataset, str], None], name: str) -> None:
    """Any tag may contain a patient name."""
    with pytest.raises(ImageError) as caught:
        check(dataset(**{name: "LATERAL KNEE DOE"}), "x.dcm")
    assert "DOE" not in str(caught.value)


def test_unparsable_tags_count_as_missing() -> None:
    broken = Dataset()
    broken.add_new("PatientAge", "AS", "045Y")
    broken._dict[broken["PatientAge"].tag] = object()  # type: ignore[assignment]
    assert tags_module.element_text(broken, "PatientAge") == ""
    assert tags_module.element_numbers(dataset(PatientID="1e400"), "PatientID") == []
    assert tags_module.element_int(dataset(PatientID="twelve"), "PatientID", 3) == 3
    unknown = Dataset()
    unknown.add_new("PixelPaddingValue", "UN", b"\x0f\xa0")
    assert tags_module.element_numbers(unknown, "PixelPaddingValue") == []


def test_an_element_of_another_type_is_no_sequence() -> None:
    dataset = Dataset()
    for vr, value in (("US", 3), ("FD", 1.5), ("DS", "2"), ("AT", 0x00080060), ("UI", ["1.2", "1.3"])):
        dataset.add_new("ViewCodeSequence", vr, value)
        assert tags_module.sequence_items(dataset, "ViewCodeSequence") == []


def test_an_empty_list_of_values_has_no_text() -> None:
    dataset = Dataset()
    dataset.add_new("VOILUTFunction", "CS", [])
    assert tags_module.element_text(dataset, "VOILUTFunction") == ""
