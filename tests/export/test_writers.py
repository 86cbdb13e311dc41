import json
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pycocotools.coco import COCO

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config import ExportSettings
from lungseg.config.export import ExportFormat
from lungseg.errors import TaskResult
from lungseg.export.coco_file import to_coco
from lungseg.export.overlay_file import caption_overlay, draw_overlay
from lungseg.export.writers import export_part
from lungseg.imaging import codecs
from lungseg.imaging.lung_sides import split_sides
from lungseg.predictions.parts import part_path
from tests.export.prediction_files import DrawPair, prediction_row, replace_part


def _export(folder: Path, part: int, out: Path, *formats: ExportFormat) -> Row:
    item = {"part": json.dumps({"path": part_path(str(folder), part), "rows": None})}
    result: Row = TaskResult.from_json(export_part(item, ExportSettings(formats=formats), str(out))["result"]).unwrap()
    return result


def _lungs(mask: U8) -> dict[str, U8]:
    return dict(zip(("right_lung", "left_lung"), split_sides(mask), strict=True))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_masks_are_exported_at_full_size(predictions: Path, tmp_path: Path) -> None:
    result = _export(predictions, 1, tmp_path / "out", "masks")
    assert result["counts"] == {"rows": 3, "selected": 2, "masks": 2}
    rows = {row["image_id"]: row for row in storage.read_table(part_path(str(predictions), 1)).to_pylist()}
    assert _names(tmp_path / "out" / "masks" / "north") == {"radiograph.png", "empty.png"}
    for path in (tmp_path / "out" / "masks" / "north").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert (mask == 255 * codecs.decode_rle(rows[path.stem]["mask"], *mask.shape)).all()


def test_only_dicom_images_become_dicom_segmentations(predictions: Path, tmp_path: Path) -> None:
    result = _export(predictions, 1, tmp_path / "out", "dicom-seg")
    assert _names(tmp_path / "out" / "dicom-seg" / "north") == {"radiograph.dcm"}
    (note,) = result["notes"]
    assert result["refused"] == {"dicom-seg": {"not_dicom": 1}}
    assert "no dicom-seg of empty" in note
    assert "is not a DICOM file" in note


@pytest.mark.parametrize("kind", ["coco", "lung-masks", "overlays"])
def test_a_damaged_geometry_refuses_one_row_only(kind: ExportFormat, predictions: Path, tmp_path: Path) -> None:
    rows = storage.read_table(part_path(str(predictions), 1)).to_pylist()
    damaged = next(row for row in rows if row["image_id"] == "empty")
    damaged["geometry"] = "{"
    replace_part(predictions, 1, rows)
    result = _export(predictions, 1, tmp_path / "out", kind)
    assert result["counts"][kind] == 1
    assert result["refused"] == {kind: {"unreadable": 1}}


@pytest.mark.parametrize(
    ("flag", "include", "written"),
    [
        ("not_chest_like", False, False),
        ("rotated", False, False),
        ("lungs_implausible", False, False),
        ("lungs_one_side", True, True),
        ("mask_uneven", False, True),
    ],
)
def test_doubtful_rows_become_no_dicom_segmentations_unasked(
    predictions: Path, tmp_path: Path, flag: str, include: bool, written: bool
) -> None:
    (row,) = [row for row in storage.read_table(part_path(str(predictions), 1)).to_pylist() if row["dice"] == 0.95]
    replace_part(predictions, 1, [{**row, "flags": [flag]}])
    item = {"part": json.dumps({"path": part_path(str(predictions), 1), "rows": None})}
    settings = ExportSettings(formats=("masks", "dicom-seg"), include_doubtful=include)
    result = TaskResult.from_json(export_part(item, settings, str(tmp_path / "out"))["result"]).unwrap()
    assert result["counts"]["masks"] == 1
    assert (tmp_path / "out" / "dicom-seg").exists() == written
    assert result["refused"] == ({} if written else {"dicom-seg": {"flagged": 1}})
    assert written or f"({flag}): look at it" in result["notes"][0]


@pytest.mark.parametrize(("doubt", "include", "written"), [(0.09, False, True), (0.2, False, False), (0.2, True, True)])
def test_unusual_doubt_holds_a_dicom_segmentation_back(
    predictions: Path, tmp_path: Path, doubt: float, include: bool, written: bool
) -> None:
    (row,) = [row for row in storage.read_table(part_path(str(predictions), 1)).to_pylist() if row["dice"] == 0.95]
    replace_part(predictions, 1, [{**row, "doubt": doubt}])
    item = {"part": json.dumps({"path": part_path(str(predictions), 1), "rows": None, "max_doubt": 0.1})}
    settings = ExportSettings(formats=("dicom-seg",), include_doubtful=include)
    result = TaskResult.from_json(export_part(item, settings, str(tmp_path / "out"))["result"]).unwrap()
    assert result["counts"].get("dicom-seg", 0) == int(written)
    assert result["refused"] == ({} if written else {"dicom-seg": {"doubtful": 1}})


def test_coco_file_has_an_annotation_for_each_lung(predictions: Path, tmp_path: Path) -> None:
    rows = [row for part in (0, 1) for row in _export(predictions, part, tmp_path / "out", "coco")["coco"]]
    storage.write_json(str(tmp_path / "annotations.json"), to_coco(rows, str(predictions)))
    coco = COCO(str(tmp_path / "annotations.json"))
    assert [coco.cats[number]["name"] for number in (1, 2)] == ["right lung", "left lung"]
    assert (len(coco.imgs), len(coco.anns)) == (4, 6)  # an empty mask has no annotation
    tables = [storage.read_table(part_path(str(predictions), part)) for part in (0, 1)]
    masks = {row["image_id"]: row for table in tables for row in table.to_pylist() if row["mask"]}
    for image_id, image in coco.imgs.items():
        row = masks[image["lungseg_id"].removeprefix("north/")]
        lungs = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]]
        assert [lung.sum() for lung in lungs] == [annotation["area"] for annotation in coco.imgToAnns[image_id]]
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        assert (sum(lungs, np.zeros_like(mask)) == mask).all()
    for right, left in (annotations for annotations in coco.imgToAnns.values() if annotations):
        assert (right["category_id"], left["category_id"]) == (1, 2)
        assert right["bbox"][0] < left["bbox"][0]


def test_each_lung_has_a_mask_of_its_own(predictions: Path, tmp_path: Path) -> None:
    _export(predictions, 0, tmp_path / "out", "masks", "lung-masks")
    names = {f"png_{number}.{side}.png" for number in (0, 1) for side in ("right", "left")}
    assert _names(tmp_path / "out" / "lung-masks" / "north") == names
    for name in ("png_0", "png_1"):
        right, left = (tmp_path / "out" / "lung-masks" / "north" / f"{name}.{side}.png" for side in ("right", "left"))
        joined = cv2.imread(str(tmp_path / "out" / "masks" / "north" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        lungs = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (right, left)]
        assert lungs[0] is not None
        assert lungs[1] is not None
        np.testing.assert_array_equal(cv2.add(lungs[0], lungs[1]), joined)
        assert np.nonzero(lungs[0])[1].mean() < np.nonzero(lungs[1])[1].mean()


def test_missing_image_is_noted_and_others_are_written(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").unlink()
    result = _export(predictions, 0, tmp_path / "out", "overlays")
    assert _names(tmp_path / "out" / "overlays" / "north") == {"png_0.png"}
    assert any(note.startswith("no overlays of png_1: ") for note in result["notes"])


def test_row_that_fails_does_not_stop_the_others(predictions: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    mask = draw_pair(1, 40, 40)[1]
    good, broken = (prediction_row(name, str(tmp_path / "0.png"), mask) for name in ("good", "broken"))
    replace_part(predictions, 0, [{**broken, "mask": "no run lengths"}, good])
    result = _export(predictions, 0, tmp_path / "out", "masks", "coco")
    assert _names(tmp_path / "out" / "masks" / "north") == {"good.png"}
    assert [row["image_id"] for row in result["coco"]] == ["good"]
    assert result["counts"] == {"rows": 2, "selected": 2, "masks": 1, "coco": 1, "refused": 2}
    assert result["refused"] == {"masks": {"mask_damaged": 1}, "coco": {"mask_damaged": 1}}
    assert all("the mask of broken cannot be decoded" in note for note in result["notes"])


def test_file_is_not_written_outside_its_folder(predictions: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    row = prediction_row("../../../escaped", str(tmp_path / "0.png"), draw_pair(1, 40, 40)[1])
    replace_part(predictions, 0, [row])
    before = set(tmp_path.rglob("*"))
    result = _export(predictions, 0, tmp_path / "deep" / "out", "masks")
    assert result["refused"] == {"masks": {"unsafe_target": 1}}
    assert "leaves its folder" in result["notes"][0]
    assert not [path for path in set(tmp_path.rglob("*")) - before if path.is_file()]


def test_reference_mask_is_not_overwritten(predictions: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    reference = tmp_path / "masks" / "north" / "mine.png"
    reference.parent.mkdir(parents=True)
    reference.write_bytes(b"drawn by hand")
    row = prediction_row("mine", str(tmp_path / "0.png"), draw_pair(1, 40, 40)[1], mask_uris=[str(reference)])
    replace_part(predictions, 0, [row])
    result = _export(predictions, 0, tmp_path, "masks")
    assert result["refused"] == {"masks": {"unsafe_target": 1}}
    assert "mine.png is an input image or reference mask" in result["notes"][0]
    assert reference.read_bytes() == b"drawn by hand"


def test_invalid_elements_are_named_without_their_values(predictions: Path, tmp_path: Path) -> None:
    dicom = pydicom.dcmread(tmp_path / "x.dcm")
    dicom.add_new("PatientBirthDate", "LO", "12/03/61")  # not DA, which pydicom would check
    dicom["PatientBirthDate"].VR = "DA"
    dicom.save_as(tmp_path / "x.dcm")
    result = _export(predictions, 1, tmp_path / "out", "dicom-seg")
    assert result["counts"]["dicom-seg"] == 1
    assert result["emptied"] == {"PatientBirthDate": 1}
    assert any("PatientBirthDate" in note for note in result["notes"])
    assert "12/03/61" not in json.dumps(result)


def test_overlay_has_a_colour_for_each_side(draw_pair: DrawPair) -> None:
    image, mask = draw_pair(3, 1500, 1000)
    overlay = draw_overlay(image, _lungs(mask), {}, 900).astype(int)
    assert overlay.shape == (900, 600, 3)
    is_orange = overlay[..., 0] - overlay[..., 2] > 60
    is_green = overlay[..., 1] - overlay[..., 0] > 60
    for side in (is_orange, is_green):
        assert 0 < side.sum() < 0.05 * side.size
    assert np.nonzero(is_orange)[1].max() < np.nonzero(is_green)[1].min()
    assert (np.ptp(overlay, axis=2) == 0).mean() > 0.9  # the rest is grey


@pytest.mark.parametrize(
    ("shape", "limit", "expected"),
    [((300, 200), 1024, (768, 512)), ((300, 200), 500, (500, 333)), ((900, 600), 1024, (900, 600))],
)
def test_overlay_is_large_enough_to_look_at(
    shape: tuple[int, int], limit: int, expected: tuple[int, int], draw_pair: DrawPair
) -> None:
    image, mask = draw_pair(3, *shape)
    assert draw_overlay(image, _lungs(mask), {"lung": mask}, limit).shape == (*expected, 3)


@pytest.mark.parametrize("width", [40, 320, 1024])
def test_caption_is_above_the_overlay(width: int, draw_pair: DrawPair) -> None:
    _, mask = draw_pair(3, 100, 100)
    row = prediction_row("a", f"/x/{'very long name ' * 20}Ünal.png", mask, doubt=0.031, doubt_reason="blurred border")
    overlay = np.full((50, width, 3), 77, np.uint8)
    captioned = caption_overlay(row, overlay, ["right_lung", "left_lung"], True)
    bar = captioned[:-50]
    assert (captioned[-50:] == 77).all()
    assert bar.shape[1] == width
    assert 30 < bar.shape[0] < 400
    assert bar.max() > 200
