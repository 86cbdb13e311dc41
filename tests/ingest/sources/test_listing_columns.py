"""Columns of a listing are found whatever the spelling of their names, and none is ignored silently."""

import logging

import pytest

from lungseg.config import ListingColumns
from lungseg.errors import InputError
from lungseg.ingest.sources.listing_columns import find_columns

DEFAULT = ListingColumns()


def found(header: str, columns: ListingColumns = DEFAULT) -> dict[str, str]:
    roles, masks = find_columns(columns, header.split(","), "list.csv")
    return roles | {f"mask {kind}": column for kind, column in masks}


@pytest.mark.parametrize(
    ("header", "mask", "patient", "view"),
    [
        ("image,Mask,Patient_ID,View", "Mask", "Patient_ID", "View"),
        ("IMAGE,MASKS,PATIENT,VIEW_POSITION", "MASKS", "PATIENT", "VIEW_POSITION"),
        ("Images,lung-mask,patientId,viewPosition", "lung-mask", "patientId", "viewPosition"),
        (" image ,mask path,Patient ID,View Position", "mask path", "Patient ID", "View Position"),
        ("image_path,mask_file,Subject-ID,Projection", "mask_file", "Subject-ID", "Projection"),
        ("image,mask,patient,patient_id,view,views", "mask", "patient_id", "view"),
    ],
)
def test_spelling_of_column_names_does_not_matter(header: str, mask: str, patient: str, view: str) -> None:
    columns = found(header)
    assert (columns["mask lung"], columns["patient_id"], columns["view"]) == (mask, patient, view)


@pytest.mark.parametrize(
    ("header", "masks"),
    [
        ("image,left_lung,right_lung,heart", [("lung", "right_lung"), ("lung", "left_lung")]),
        ("image,Right Lung mask,Left lungs", [("lung", "Right Lung mask"), ("lung", "Left lungs")]),
        ("image,mask,left_lung,right_lung", [("lung", "mask")]),
        ("image,left_lung", []),
    ],
)
def test_columns_of_both_lungs_are_their_masks(header: str, masks: list[tuple[str, str]]) -> None:
    assert find_columns(DEFAULT, header.split(","), "list.csv")[1] == masks
    of_heart = find_columns(DEFAULT, header.split(","), "list.csv", ("heart",))[1]
    assert not any("left" in column.lower() for _, column in of_heart)


def test_columns_of_both_lungs_are_used_beside_other_classes() -> None:
    header = ["image", "left_lung", "right_lung", "heart"]
    masks = find_columns(DEFAULT, header, "list.csv", ("lung", "heart"))[1]
    assert masks == [("heart", "heart"), ("lung", "right_lung"), ("lung", "left_lung")]


def test_class_names_of_columns_may_be_spelt_freely() -> None:
    columns = ListingColumns(masks=("Heart=cor", "right lung=r", "left lung=l"))
    masks = find_columns(columns, ["image", "cor", "r", "l"], "list.csv", ("right_lung", "left_lung", "heart"))[1]
    assert masks == [("heart", "cor"), ("right_lung", "r"), ("left_lung", "l")]


def test_age_and_sex_are_found_by_near_names() -> None:
    columns = found("Image,Patient Age,Patient Gender,Findings,DataSet")
    assert {role: columns[role] for role in ("age", "sex", "finding", "dataset")} == {
        "age": "Patient Age",
        "sex": "Patient Gender",
        "finding": "Findings",
        "dataset": "DataSet",
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,mask,mask,view", "2 columns are called mask: rename all but one"),
        ("image,mask,Mask", "2 columns are called mask or Mask: rename all but one"),
        ("image,Patient ID,patient_id", "2 columns are called Patient ID or patient_id"),
        ("image,IMAGE", "2 columns are called image or IMAGE"),
        ("image,views,view-position", "views and view-position may both be the view: name one with --columns.view"),
        ("image,masks,lung_mask", "masks and lung_mask may both be the mask: name one with --columns.masks"),
        ("image,patient,subject", "name one with --columns.patient-id"),
        ("image,right lung,Left lungs,left lung", "Left lungs and left lung may both be the mask of one lung"),
    ],
)
def test_several_columns_of_one_role_are_refused(header: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        found(header)


def test_named_column_decides_between_spellings() -> None:
    columns = ListingColumns(masks=("Mask",), patient_id="PATIENT")
    assert found("image,mask,Mask,patient", columns) == {"image": "image", "mask lung": "Mask", "patient_id": "patient"}


@pytest.mark.parametrize(
    ("column", "option"),
    [
        ("mask_left", "masks"),
        ("leftMask", "masks"),
        ("maks", "masks"),
        ("patient_nr", "patient-id"),
        ("pateint_id", "patient-id"),
        ("Label", "finding"),
        ("viev", "view"),
        ("position", "view"),
    ],
)
def test_unused_column_with_a_near_name_is_warned_of(
    column: str, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    found(f"image,{column}")
    assert caplog.messages == [
        f"list.csv: column {column} is not used; if it is the {caplog.records[0].args[2]}, pass --columns.{option}"  # type: ignore[index]
    ]


@pytest.mark.parametrize(("column", "kind"), [("opactiy", "opacity"), ("hart", "heart"), ("Left lnug", "left_lung")])
def test_a_misspelled_class_is_warned_of(column: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    classes = ("right_lung", "left_lung", "heart", "opacity")
    others = [name for name in classes if name != kind]
    find_columns(DEFAULT, ["image", column, *others], "list.csv", classes)
    advice = f"if it is the class {kind}, pass --columns.masks {kind}={column}"
    assert caplog.messages == [f"list.csv: column {column} is not used; {advice}"]


@pytest.mark.parametrize("classes", [("lung", "heart"), ("right_lung", "left_lung", "heart")])
def test_the_usual_mask_shows_the_lungs_beside_other_classes(classes: tuple[str, ...]) -> None:
    _, masks = find_columns(DEFAULT, ["image", "mask", "heart"], "list.csv", classes)
    assert sorted(masks) == [("heart", "heart"), ("lung", "mask")]


def test_the_other_lung_is_no_misspelled_class(caplog: pytest.LogCaptureFixture) -> None:
    find_columns(DEFAULT, ["image", "left_lung", "right_lung", "capacity"], "list.csv", ("left_lung", "opacity"))
    assert caplog.messages == []


@pytest.mark.parametrize("column", ["image_id", "stage", "page", "comment", "width", "review", "message", "sextant"])
def test_unrelated_columns_are_ignored_quietly(column: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert found(f"image,{column}") == {"image": "image"}
    assert caplog.messages == []
