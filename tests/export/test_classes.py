"""Exports of predictions with several overlapping classes."""

import io
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
from lungseg.errors import SettingsError, TaskResult
from lungseg.export import nnunet, overlay_file
from lungseg.export.coco_file import to_coco
from lungseg.export.overlay_file import draw_overlay
from lungseg.export.selection import predicted_classes, refuse_invalid_query, select_rows
from lungseg.export.writers import export_part
from lungseg.imaging.overlay import REFERENCE, colours_of
from lungseg.ingest.sources import nnunet_json
from lungseg.predictions.parts import part_path
from tests.export.class_predictions import CLASSES, class_row, draw_masks, write_class_predictions
from tests.export.prediction_files import replace_part


@pytest.fixture
def class_predictions(tmp_path: Path) -> Path:
    return write_class_predictions(tmp_path / "predictions")


def _export(folder: Path, out: Path, *formats: ExportFormat) -> Row:
    path = part_path(str(folder), 0)
    part = {"path": path, "rows": None, "nnunet_folders": nnunet.dataset_folders([path])}
    settings = ExportSettings(formats=formats)
    result: Row = TaskResult.from_json(export_part({"part": json.dumps(part)}, settings, str(out))["result"]).unwrap()
    return result


def _read(path: Path) -> U8:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image.astype(np.uint8)


def test_each_class_has_a_mask_of_its_own(class_predictions: Path, tmp_path: Path) -> None:
    _export(class_predictions, tmp_path / "out", "masks", "lung-masks", "class-masks")
    folder, drawn = tmp_path / "out" / "class-masks" / "north", draw_masks()
    for name, mask in drawn.items():
        np.testing.assert_array_equal(_read(folder / f"radiograph.{name}.png"), mask * 255)
    assert not _read(folder / "png.opacity.png").any()
    assert len(list(folder.iterdir())) == 2 * len(CLASSES)
    lungs = _read(tmp_path / "out" / "masks" / "north" / "radiograph.png")
    np.testing.assert_array_equal(lungs, (drawn["right_lung"] | drawn["left_lung"]) * 255)
    for side in ("right", "left"):  # as the model says, not divided by the midline
        lung = _read(tmp_path / "out" / "lung-masks" / "north" / f"radiograph.{side}.png")
        np.testing.assert_array_equal(lung, drawn[f"{side}_lung"] * 255)


def test_model_of_lungs_has_one_class_mask(predictions: Path, tmp_path: Path) -> None:
    _export(predictions, tmp_path / "out", "masks", "class-masks")
    for name in ("png_0", "png_1"):
        contents = [
            (tmp_path / "out" / path).read_bytes()
            for path in (f"masks/north/{name}.png", f"class-masks/north/{name}.lung.png")
        ]
        assert contents[0] == contents[1]


def test_coco_has_a_category_a_class_and_overlaps(class_predictions: Path, tmp_path: Path) -> None:
    rows = _export(class_predictions, tmp_path / "out", "coco")["coco"]
    storage.write_json(str(tmp_path / "annotations.json"), to_coco(rows, "predictions"))
    coco = COCO(str(tmp_path / "annotations.json"))
    names = {number: category["name"] for number, category in coco.cats.items()}
    assert names == {1: "right lung", 2: "left lung", 3: "heart", 4: "opacity"}
    (number,) = [image_id for image_id, image in coco.imgs.items() if image["lungseg_id"] == "north/radiograph"]
    annotated = {names[entry["category_id"]].replace(" ", "_"): entry for entry in coco.imgToAnns[number]}
    for name, mask in draw_masks().items():
        np.testing.assert_array_equal(coco.annToMask(annotated[name]), mask)
        assert annotated[name]["score"] == pytest.approx(0.95 if name.endswith("lung") else 0.8)
    assert len(coco.anns) == 2 * len(CLASSES) - 1  # an empty mask has no annotation


def test_coco_numbers_of_known_classes_are_fixed() -> None:
    masks = {name: np.ones((4, 4), np.uint8) for name in ("trachea", "heart", "clavicle", "lung")}
    row = class_row("a", "a.png", masks)
    described = {**row, "classes": list(masks), "masks": {}}
    numbers = {category["name"]: category["id"] for category in to_coco([described], "x")["categories"]}
    assert numbers == {"heart": 3, "lung": 5, "clavicle": 101, "trachea": 102}


def test_dicom_segmentation_has_a_segment_a_class(class_predictions: Path, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
    result = _export(class_predictions, tmp_path / "out", "dicom-seg")
    assert (result["counts"]["dicom-seg"], result["refused"]) == (1, {"dicom-seg": {"not_dicom": 1}})
    content = (tmp_path / "out" / "dicom-seg" / "north" / "radiograph.dcm").read_bytes()
    segmentation = highdicom.seg.segread(io.BytesIO(content))
    source = pydicom.dcmread(tmp_path / "x.dcm").SOPInstanceUID
    pixels = segmentation.get_pixels_by_source_instance([source])[0]
    for number, mask in enumerate(draw_masks().values()):
        np.testing.assert_array_equal(pixels[..., number], mask)


def test_nnunet_regions_keep_every_overlap(class_predictions: Path, tmp_path: Path) -> None:
    _export(class_predictions, tmp_path / "out", "nnunet")
    nnunet.write_dataset_files(
        str(tmp_path / "out" / "nnunet"), predicted_classes([part_path(str(class_predictions), 0)])
    )
    folder = tmp_path / "out" / "nnunet" / "Dataset501_north"
    content = json.loads((folder / "dataset.json").read_text())
    assert list(content["labels"]) == ["background", *CLASSES]
    assert content["regions_class_order"] == [1, 2, 4, 8]
    labels = _read(folder / "labelsTr" / "radiograph.png")
    for name, mask in draw_masks().items():
        np.testing.assert_array_equal(np.isin(labels, content["labels"][name]), mask)
    values = sorted({value for region in list(content["labels"].values())[1:] for value in region})
    assert values == list(range(1, 16))  # nnU-Net wants consecutive numbers
    read = nnunet_json.read_labels(str(folder / "dataset.json"), ("heart", "opacity"))
    assert {"heart", "lung"} <= {label.kind for label in read}


def test_too_many_classes_for_nnunet_are_refused(class_predictions: Path) -> None:
    masks = {f"class_{number}": np.ones((4, 4), np.uint8) for number in range(9)}
    path = replace_part(class_predictions, 0, [class_row("a", "a.png", masks)])
    with pytest.raises(SettingsError, match="9 classes, expected up to 8"):
        nnunet.require_label_map(predicted_classes([path]))


def test_overlay_has_a_colour_for_each_class() -> None:
    masks = draw_masks()
    overlay = draw_overlay(np.zeros((96, 80), np.uint8), masks, {}, 768)
    colours = colours_of(masks)
    assert len(set(colours.values())) == len(masks)
    for colour in colours.values():
        assert (overlay == colour).all(axis=-1).sum() > 20


def test_references_of_classes_are_dashed_in_their_colours() -> None:
    image, masks = np.zeros((96, 80), np.uint8), draw_masks()
    empty = {name: np.zeros_like(mask) for name, mask in masks.items()}
    assert not draw_overlay(image, empty, empty, 768).any()
    for name, colour in colours_of(masks).items():
        dashed = (draw_overlay(image, empty, {name: masks[name]}, 768) == colour).all(axis=-1).sum()
        solid = (draw_overlay(image, {**empty, name: masks[name]}, {}, 768) == colour).all(axis=-1).sum()
        assert 0.3 < dashed / solid < 0.7
    blue = (draw_overlay(image, empty, {"lung": masks["right_lung"]}, 768) == REFERENCE).all(axis=-1)
    assert blue.sum() > 20


def test_caption_says_of_what_the_dice_is(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = []
    monkeypatch.setattr(overlay_file, "add_caption", lambda _, texts, legend: captions.append((texts, legend)))
    row = class_row("a", "a.png", draw_masks(), dice=0.844)
    for classes in (row["classes"], None):
        overlay_file.caption_overlay({**row, "classes": classes}, np.zeros((9, 9, 3), np.uint8), list(CLASSES), True)
    (texts, legend), (plain, plain_legend) = captions
    assert texts[1].startswith("lungs: Dice 0.844; ")
    assert plain[1].startswith("Dice 0.844; ")
    assert (legend[-1][0], plain_legend[-1][0]) == ("dashed: reference", "reference")


def test_overlays_are_written_with_classes(class_predictions: Path, tmp_path: Path) -> None:
    assert _export(class_predictions, tmp_path / "out", "overlays")["counts"]["overlays"] == 2


def test_model_without_lungs_exports_its_classes(class_predictions: Path, tmp_path: Path) -> None:
    masks = {name: mask for name, mask in draw_masks().items() if name == "heart"}
    replace_part(class_predictions, 0, [class_row("a", str(tmp_path / "0.png"), masks, doubt=None)])
    result = _export(class_predictions, tmp_path / "out", "masks", "lung-masks", "class-masks", "overlays", "coco")
    assert result["refused"] == {"masks": {"no_lungs": 1}, "lung-masks": {"no_lungs": 1}}
    np.testing.assert_array_equal(
        _read(tmp_path / "out" / "class-masks" / "north" / "a.heart.png"), masks["heart"] * 255
    )
    assert list(result["coco"][0]["masks"]) == ["heart"]


@pytest.mark.parametrize(
    "where", ["image_id == 'png'", "opacity_px == 0", "heart_px > 0 and opacity_components < 1", "opacity_cm2 == 0"]
)
def test_rows_of_classes_can_be_selected(where: str, class_predictions: Path) -> None:
    rows = [class_row("radiograph", "x.dcm", draw_masks()), class_row("png", "0.png", draw_masks(with_opacity=False))]
    no_opacity = {**rows[1]["classes"][-1], "components": 0}
    rows[1] = {**rows[1], "classes": [*rows[1]["classes"][:-1], no_opacity]}
    path = str(replace_part(class_predictions, 0, [{**row, "spacing_mm": 0.5} for row in rows]))
    classes = predicted_classes([path])
    refuse_invalid_query(where, classes)
    (part,) = select_rows([path], ExportSettings(where=where), classes)
    assert part["rows"] == [1]
    with pytest.raises(SettingsError, match=r"spine_px.* the columns are image_id, .*heart_px"):
        refuse_invalid_query("spine_px > 0", classes)
