"""Masks of several classes in folders, listings and label maps."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungseg.config import ListingColumns, PreprocessSettings
from lungseg.ingest import record_checks, sources
from lungseg.schema import Record

CLASSES = ("right_lung", "left_lung", "heart", "opacity")


def write(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / path), np.eye(64, dtype=np.uint8) * 255)
    return folder


def masks_of(record: Record) -> dict[str, str]:
    return dict(zip(record.mask_classes, (Path(uri).parent.name for uri in record.mask_uris), strict=True))


@pytest.mark.parametrize("root", ["", "hospital/", "hospital/masks/"])
def test_folders_named_after_classes_hold_their_masks(tmp_path: Path, root: str) -> None:
    images = root.removesuffix("masks/") + "images/a.png"
    folder = write(tmp_path, images, f"{root}Right Lung/a.png", f"{root}left_lung/a.png", f"{root}heart masks/a.png")
    (record,) = sources.discover(str(folder), classes=CLASSES)
    assert masks_of(record) == {"right_lung": "Right Lung", "left_lung": "left_lung", "heart": "heart masks"}


def test_folders_of_classes_that_are_not_requested_are_no_images(tmp_path: Path) -> None:
    folder = write(tmp_path, "images/a.png", "lung masks/a.png", "heart/a.png", "opacity/a.png")
    used, *others = sorted(
        sources.discover(str(folder), classes=("lung", "heart")), key=lambda record: not record.usable
    )
    assert masks_of(used) == {"heart": "heart", "lung": "lung masks"}
    assert [record.codes for record in others] == [("other_mask",)]


def test_one_side_alone_is_rejected(tmp_path: Path) -> None:
    (record,) = sources.discover(str(write(tmp_path, "images/a.png", "right_lung/a.png")), classes=CLASSES)
    assert record.codes == ("one_sided_mask",)


def test_lungs_alone_are_found_as_before(tmp_path: Path) -> None:
    folder = write(tmp_path, "images/a.png", "masks/a.png", "heart masks/a.png")
    assert sources.discover(str(folder)) == sources.discover(str(folder), classes=("lung",))
    assert masks_of(next(record for record in sources.discover(str(folder)) if record.usable)) == {"lung": "masks"}


def listing(tmp_path: Path, header: str, row: str) -> str:
    (tmp_path / "list.csv").write_text(f"{header}\n{row}\n")
    return str(tmp_path / "list.csv")


def test_columns_named_after_classes_hold_their_masks(tmp_path: Path) -> None:
    path = listing(tmp_path, "image,Right Lung,left_lung,opacity mask,heart,finding", "i.png,r.png,l.png,o.png,,x")
    (record,) = sources.read_listing(path, ListingColumns(), classes=CLASSES)
    assert record.mask_classes == ("right_lung", "left_lung", "opacity")  # an empty cell is not annotated


def test_named_columns_come_before_those_of_the_same_name(tmp_path: Path) -> None:
    path = listing(tmp_path, "image,heart,other,both", "i.png,h.png,o.png,b.png")
    columns = ListingColumns(masks=("heart=other", "both"))
    (record,) = sources.read_listing(path, columns, classes=("lung", "heart"))
    assert dict(zip(record.mask_classes, record.mask_uris, strict=True)) == {
        "heart": str(tmp_path / "o.png"),
        "lung": str(tmp_path / "b.png"),
    }


def test_labels_named_after_classes_are_these_classes(tmp_path: Path) -> None:
    folder = write(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    labels = {"background": 0, "Right Lung": 1, "left lung": 2, "heart": 3, "catheter": 4, "mystery": 5}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    (record,) = sources.discover(str(folder), classes=(*CLASSES, "catheter"))
    values = dict(zip(record.mask_classes, record.mask_values, strict=True))
    assert values == {"lung": "1,2", "right_lung": "1", "left_lung": "2", "catheter": "4", "heart": "3", "ignored": "5"}


def test_sides_come_from_joined_lungs_where_labels_mark_lesions(tmp_path: Path) -> None:
    folder = write(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    labels = {"background": 0, "right_lung": 1, "left_lung": 2, "opacity": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    (record,) = sources.discover(str(folder), classes=CLASSES)
    values = dict(zip(record.mask_classes, record.mask_values, strict=True))
    assert values == {"lung": "1,2,3", "opacity": "3", "lesion": "3"}


def test_labels_without_lungs_are_used_if_requested(tmp_path: Path) -> None:
    folder = write(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "heart": 1, "catheter": 2}}))
    (record,) = sources.discover(str(folder), classes=("heart", "catheter"))
    assert dict(zip(record.mask_classes, record.mask_values, strict=True)) == {"catheter": "2", "heart": "1"}


def test_images_that_lack_a_class_are_flagged() -> None:
    records = [
        Record("a", "d", "a.png", ("m", "h"), ("lung", "heart")),
        Record("b", "d", "b.png", ("m",), ("lung",)),
        Record("c", "d", "c.png"),
        Record("d", "other", "d.png", ("m",), ("lung",)),
    ]
    flagged = [*record_checks.flag_missing_masks(records, CLASSES)]
    assert [record.flags for record in flagged] == [(), ("missing_class",), ("no_mask",), ()]


def test_real_classes_are_prepared(pytestconfig: pytest.Config) -> None:
    folder = (pytestconfig.rootpath / ".." / "shared" / "data" / "covid44").resolve()
    if not folder.is_dir():
        pytest.skip(f"the real X-rays are not at hand: no folder {folder}")
    listed = sources.read_listing(str(folder / "listing.csv"), ListingColumns(), "covid", CLASSES)
    found = sources.discover(str(folder), "covid", CLASSES)
    assert [record.image_id for record in listed] == [record.image_id for record in found]
    assert {record.mask_classes for record in (*listed, *found)} == {("heart", "left_lung", "opacity", "right_lung")}
    checked, _, masks = record_checks.open_record(listed[0], PreprocessSettings(classes=CLASSES))
    assert masks is not None
    right, left, heart, opacity = masks
    assert checked.status == "ok"
    assert (left & heart).any()
    assert ((right | left) & opacity).sum() > 0.9 * opacity.sum()
