"""Reports of predictions of several classes: metrics of each, measures and detection."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import PreprocessSettings, ReportSettings
from lungseg.errors import SettingsError
from lungseg.imaging.derived_measures import MEASURES
from lungseg.imaging.overlay import colours_of, to_hex
from lungseg.ingest import sources
from lungseg.metrics import segmentation
from lungseg.pipelines import report
from lungseg.predictions.overlays import describe_measures
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.report.detection_results import (
    detect_in_predictions,
    detect_in_tests,
    explain_unused_normals,
    normal_images,
)
from lungseg.report.prediction_results import read_predictions
from tests.export.class_predictions import CLASSES, class_row, draw_masks
from tests.report.result_files import write_predictions

MIN_AREA = 0.01


def measured_row(folder: Path, number: int, **changes: object) -> Row:
    """Write an image and its reference masks; return a prediction. Even images show an opacity; 1 and 2 are wrong."""
    truth = draw_masks(with_opacity=number % 2 == 0)
    predicted = draw_masks(with_opacity=number in (0, 1, 4))
    folder.mkdir(exist_ok=True)
    source = folder / f"image_{number}.png"
    cv2.imwrite(str(source), np.linspace(40, 200, 96 * 80).reshape(96, 80).astype(np.uint8))
    for name, mask in truth.items():
        cv2.imwrite(str(folder / f"{name}_{number}.png"), mask * np.uint8(255))
    row = class_row(f"image_{number}", str(source), predicted, patient_id=f"p{number}", seen_in_training=False)
    for entry in row["classes"]:
        counts = segmentation.count_pixels(predicted[entry["class"]], truth[entry["class"]])
        hd95, assd = segmentation.surface_distances(predicted[entry["class"]], truth[entry["class"]])
        entry |= {name: getattr(segmentation, name)(counts) for name in ("iou", "dice", "pixel_accuracy")}
        entry |= {"hd95_px": hd95, "assd_px": assd}
    row |= dict(zip(MEASURES, (0.4 + number / 100, 0.2, 0.0, None), strict=True))
    row |= {"mask_uris": [str(folder / f"{name}_{number}.png") for name in truth], "mask_classes": list(truth)}
    return {**row, "dice": 1.0, "iou": 1.0, "pixel_accuracy": 1.0, "hd95_px": 0.0, "assd_px": 0.0, **changes}


@pytest.fixture
def class_rows(tmp_path: Path) -> list[Row]:
    return [measured_row(tmp_path / "archive", number) for number in range(6)]


@pytest.fixture
def predictions(class_rows: list[Row], tmp_path: Path) -> Path:
    folder = tmp_path / "predictions"
    write_predictions(folder, class_rows)
    plan = json.loads((folder / "plan.json").read_text())
    plan["thresholds"] = dict.fromkeys(CLASSES, plan.pop("threshold"))
    storage.write_json(str(folder / "plan.json"), plan)
    return folder


def test_each_class_has_a_line_of_metrics(predictions: Path) -> None:
    lines = {line.about["class"]: line for line in read_predictions(str(predictions)).class_lines}
    assert tuple(lines) == CLASSES
    assert lines["heart"].dice == (1.0,) * 6
    assert lines["opacity"].dice == (1.0, 0.0, 0.0, 1.0, 1.0, 1.0)  # two empty masks are equal
    assert lines["opacity"].metrics["without_distance"] == 4


def test_model_of_lungs_has_no_lines_of_classes(rows: list[Row], tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", rows)
    result = read_predictions(str(tmp_path / "predictions"), MIN_AREA)
    assert (result.class_lines, result.measures, result.detection) == ((), (), ())


def test_measures_are_summarised(predictions: Path) -> None:
    measures = {line["measure"]: line for line in read_predictions(str(predictions)).measures}
    assert set(measures) == set(MEASURES[:3])  # no line where no image has a value
    assert measures["cardiothoracic_ratio"]["median"] == pytest.approx(0.425)
    assert measures["cardiothoracic_ratio"]["images"] == 6


def test_opacities_are_detected_by_area(class_rows: list[Row]) -> None:
    (line,) = detect_in_predictions(class_rows, MIN_AREA)  # every image has lungs and a heart
    about = {"class": "opacity", "group": "unseen", "datasets": ["north"], "share_of": "lungs"}
    assert (line.about, line.absent_in) == (about, ("north",))
    found = line.detection
    assert (found.present, found.absent) == (3, 3)
    assert (found.sensitivity.value, found.specificity.value) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found.auroc.value == pytest.approx((2 * 2 + 2 * 0.5 + 2 * 0.5) / 9)
    (strict,) = detect_in_predictions(class_rows, 0.5)
    assert (strict.detection.sensitivity.value, strict.detection.specificity.value) == (0.0, 1.0)


def test_score_does_not_depend_on_the_framing(class_rows: list[Row]) -> None:
    entries = [entry for row in class_rows for entry in row["classes"]]
    for number, entry in enumerate(entries):  # the same share of lungs that grow from image to image
        entry["area_px"] = (1000 + number // 4 * 100) * (3 if entry["class"] == "opacity" else 2)
    for row in class_rows:
        of_opacity = row["classes"][3]
        of_opacity |= {"dice": 0.5, "hd95_px": 9.0 if row["image_id"] > "image_2" else None}
    (line,) = detect_in_predictions(class_rows, 0.75)
    assert (line.detection.present, line.detection.auroc.value) == (3, 0.5)
    assert line.detection.sensitivity.value == 1.0
    for row in class_rows:
        row["classes"] = row["classes"][2:]
    (line,) = detect_in_predictions(class_rows, 0.75)
    assert (line.about["share_of"], line.detection.auroc.value) == ("image", 1.0)


def test_opacity_without_predicted_lungs_has_the_full_share(class_rows: list[Row]) -> None:
    for entry in class_rows[0]["classes"][:2]:
        entry["area_px"] = 0
    *_, line = detect_in_predictions(class_rows, 1.0)
    assert line.detection.sensitivity.value == pytest.approx(1 / 3)


def test_normal_images_count_as_images_without_opacity(class_rows: list[Row]) -> None:
    shown = [row for row in class_rows if row["image_id"] in ("image_0", "image_2", "image_4")]
    assert detect_in_predictions(shown, MIN_AREA) == []  # all show opacities
    names = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")
    normal = [
        {**row, "dataset": "south", "classes": [{**entry, **dict.fromkeys(names)} for entry in row["classes"]]}
        for row in class_rows
        if row not in shown
    ]
    assert detect_in_predictions([*shown, *normal], MIN_AREA, {("north", "image_1")}) == []
    keys = {("south", row["image_id"]) for row in normal}
    (line,) = detect_in_predictions([*shown, *normal], MIN_AREA, keys)
    assert (line.is_mixed, line.about["datasets"], line.absent_in) == (True, ["north"], ("south",))
    assert (line.detection.present, line.detection.absent) == (3, 3)
    seen = [{**row, "seen_in_training": True} for row in normal]
    assert detect_in_predictions([*shown, *seen], MIN_AREA, keys) == []


def test_unused_normals_are_explained(class_rows: list[Row], rows: list[Row]) -> None:
    keys = {("south", "image_1")}
    assert "the model has no class opacity" in explain_unused_normals(rows, [], keys)[0]
    assert "none of 1 image with the finding normal is among" in explain_unused_normals(class_rows, [], keys)[0]
    assert "trained on, have reference" in explain_unused_normals(class_rows, [], {("north", "image_1")})[0]
    lines = detect_in_predictions(class_rows, MIN_AREA)
    assert explain_unused_normals(class_rows, [replace(line, is_mixed=True) for line in lines], keys) == []


def test_images_with_a_normal_finding_are_found(archive: Path, tmp_path: Path) -> None:
    records = [
        replace(
            record, finding={"north_00": "normal", "north_01": " Normal", "north_02": "pneumonia"}.get(record.image_id)
        )
        for record in sources.discover(str(archive / "north"))
    ]
    plan = plan_shards(records, str(tmp_path / "data"), PreprocessSettings(size=64), images_per_shard=9)
    dataset_writer.write_datasets(plan)
    assert normal_images([str(tmp_path / "data")]) == {("north", "north_00"), ("north", "north_01")}


def _tested(image: str, tp: int, fp: int, fn: int, name: str = "opacity", run: str = "1") -> Row:
    ids = {"run": run, "dataset": "north", "patient_id": image, "image_id": image, "class": name, "role": "held-out"}
    return {**ids, "tp": tp, "fp": fp, "fn": fn, "tn": 1000 - tp - fp - fn}


def test_tested_images_are_detected_once_over_runs() -> None:
    rows = [
        _tested("a", 40, 0, 0),
        _tested("a", 0, 0, 40, run="2"),
        _tested("b", 0, 0, 9),
        _tested("c", 0, 30, 0),
        _tested("d", 0, 0, 0),
    ]
    (line,) = detect_in_tests(rows, 0.02)
    assert (line.detection.present, line.detection.absent) == (2, 2)
    assert (line.detection.sensitivity.value, line.detection.specificity.value) == (0.5, 0.5)
    assert line.detection.auroc.value == pytest.approx((0 + 1 + 0 + 0.5) / 4)


def test_tested_images_are_scored_by_their_lungs() -> None:
    opacities = [_tested("a", 40, 0, 0), _tested("b", 40, 0, 0), _tested("c", 0, 40, 0), _tested("d", 0, 40, 0)]
    sides = ("right_lung", "left_lung")
    areas = {"a": 50, "b": 100, "c": 200, "d": 400}
    lungs = [_tested(image, area, 0, 0, name) for image, area in areas.items() for name in sides]
    (line,) = detect_in_tests([*opacities, *lungs], 0.2)
    assert (line.about["share_of"], line.detection.auroc.value) == ("lungs", 1.0)
    assert (line.detection.sensitivity.value, line.detection.specificity.value) == (1.0, 1.0)
    (line,) = detect_in_tests([*opacities, *lungs[1:]], 0.02)  # one lung has no reference
    assert (line.about["share_of"], line.detection.auroc.value) == ("image", 0.5)


def test_report_shows_classes_measures_and_detection(predictions: Path, tmp_path: Path) -> None:
    report.run(ReportSettings(predictions=str(predictions), out=str(tmp_path / "out")))
    content = json.loads((tmp_path / "out" / "report.json").read_text())["predictions"]
    assert {line["class"] for line in content["classes"]} == set(CLASSES)
    assert content["detection"][0]["sensitivity"]["value"] == pytest.approx(2 / 3)
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    for text in (
        "<h3>Detection</h3>",
        "<h3>Measures</h3>",
        "at least 1 % as large as the predicted lungs",
        "heart / thorax 0.40",
    ):
        assert text in page
    assert 'class="reference"' not in page
    assert 'd=""' not in page
    assert page.count('class="dashed" stroke="#fff"') == 1  # in the legend
    for kind, pictures in {"right_lung": 6, "left_lung": 6, "heart": 6, "opacity": 3}.items():
        assert page.count(f'class="dashed" stroke="{to_hex(colours_of([kind])[kind])}" d="M') == pictures, kind
    assert page.count('class="mask"') == 4 + 6 * 4 - 3  # likewise, without empty masks
    assert "not what a radiologist measures" in page


def test_report_of_a_model_without_lungs_has_its_metrics(
    class_rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("mask", "doubt", "dice", "iou", "pixel_accuracy", "hd95_px", "assd_px", *MEASURES)
    rows = [{**row, **dict.fromkeys(names), "classes": row["classes"][2:]} for row in class_rows]
    write_predictions(tmp_path / "predictions", rows)
    report.run(ReportSettings(predictions=str(tmp_path / "predictions"), out=str(tmp_path / "out")))
    text = capsys.readouterr().out
    assert "no reference masks" not in text
    assert "heart" in text
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "no image has a reference mask of both lungs" in page
    assert "of both lungs together" not in text + page
    assert page.count('class="mask"') == 2 + 6 + 3  # the legend, six hearts and three opacities
    assert "not shown" not in page


def test_normals_need_predictions(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--normals needs predictions"):
        report.run(ReportSettings(study=str(tmp_path), normals=("data",)))


def test_unknown_measures_are_left_out() -> None:
    row = {"cardiothoracic_ratio": 0.456, "right_lung_opaque_share": None, "left_lung_opaque_share": 0.125}
    assert describe_measures(row) == ("heart / thorax 0.46", "left lung opaque 12%")
