import json
import logging
from pathlib import Path

import pytest

from lungseg.config import ExportSettings
from lungseg.config.export import ExportFormat
from lungseg.errors import InputError, SettingsError
from lungseg.pipelines import export
from tests.export.class_predictions import CLASSES, write_class_predictions
from tests.export.prediction_files import DrawPair, prediction_row, replace_part, write_predictions


@pytest.fixture
def predictions(tmp_path: Path, draw_pair: DrawPair) -> Path:
    return write_predictions(tmp_path / "predictions", draw_pair)


def _run(predictions: Path, out: Path, *formats: ExportFormat, where: str = "") -> None:
    export.run(ExportSettings(predictions=str(predictions), out=str(out), formats=formats, where=where))


def test_every_format_is_written(ray_cluster: None, predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(predictions, out, "masks", "overlays", "coco", "dicom-seg", "nnunet")
    names = {"png_0", "png_1", "radiograph", "empty"}
    assert {path.name for path in (out / "masks" / "north").iterdir()} == {f"{name}.png" for name in names}
    assert {path.name for path in (out / "overlays" / "north").iterdir()} == {f"{name}.png" for name in names}
    assert {path.name for path in (out / "dicom-seg" / "north").iterdir()} == {"radiograph.dcm"}
    nnunet = out / "nnunet" / "Dataset501_north"
    assert {path.name for path in (nnunet / "labelsTr").iterdir()} == {f"{name}.png" for name in names}
    assert json.loads((nnunet / "dataset.json").read_text())["numTraining"] == len(names)
    coco = json.loads((out / "annotations.json").read_text())
    assert [image["lungseg_id"] for image in coco["images"]] == sorted(f"north/{name}" for name in names)


def test_classes_are_named_in_the_files_of_datasets(ray_cluster: None, tmp_path: Path) -> None:
    predictions, out = write_class_predictions(tmp_path / "predictions"), tmp_path / "out"
    _run(predictions, out, "class-masks", "coco", "nnunet")
    labels = json.loads((out / "nnunet" / "Dataset501_north" / "dataset.json").read_text())["labels"]
    assert tuple(labels) == ("background", *CLASSES)
    categories = json.loads((out / "annotations.json").read_text())["categories"]
    assert [category["name"].replace(" ", "_") for category in categories] == list(CLASSES)
    assert len(list((out / "class-masks" / "north").iterdir())) == 2 * len(CLASSES)


def test_query_selects_rows(
    ray_cluster: None, predictions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _run(predictions, tmp_path / "out", "masks", where="dice < 0.92 and dataset == 'north'")
    assert {path.stem for path in (tmp_path / "out" / "masks" / "north").iterdir()} == {"png_0", "png_1"}
    assert "2 of 5 rows selected" in caplog.text
    assert not (tmp_path / "out" / "annotations.json").exists()
    _run(predictions, tmp_path / "none", "coco", where="dice > 2")
    assert "no row was selected" in caplog.text
    coco = json.loads((tmp_path / "none" / "annotations.json").read_text())
    assert (coco["images"], coco["annotations"]) == ([], [])


def test_format_without_any_file_is_an_error(ray_cluster: None, predictions: Path, tmp_path: Path) -> None:
    message = r"^none of 2 rows could be exported as dicom-seg: no dicom-seg of png_[01]: .*is not a DICOM file"
    with pytest.raises(InputError, match=message):
        _run(predictions, tmp_path / "out", "masks", "dicom-seg", where="image_id in ('png_0', 'png_1')")
    assert len(list((tmp_path / "out" / "masks" / "north").iterdir())) == 2


def test_rows_that_fail_are_counted_and_others_written(
    ray_cluster: None, predictions: Path, tmp_path: Path, draw_pair: DrawPair, caplog: pytest.LogCaptureFixture
) -> None:
    row = prediction_row("broken", str(tmp_path / "0.png"), draw_pair(1, 40, 40)[1])
    replace_part(predictions, 0, [{**row, "mask": "no run lengths"}])
    _run(predictions, tmp_path / "out", "masks")
    assert {path.stem for path in (tmp_path / "out" / "masks" / "north").iterdir()} == {"radiograph", "empty"}
    assert "not exported as masks: 1 of 3 rows (1 mask_damaged)" in caplog.text
    assert json.loads((tmp_path / "out" / "export.json").read_text())["refused"] == {"masks": {"mask_damaged": 1}}


def test_wrong_settings_are_refused_before_work(predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--predictions"):
        export.run(ExportSettings())
    with pytest.raises(InputError, match="no such folder"):
        _run(tmp_path / "none", tmp_path / "out", "masks")
    for query in ("dicee < 1", "area_px"):
        with pytest.raises(SettingsError, match=f"--where '{query}'"):
            _run(predictions, tmp_path / "out", "masks", where=query)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is inside the archive"):
        _run(predictions, tmp_path / "films" / "deep", "masks")
    (predictions / "predictions.json").unlink()
    with pytest.raises(InputError, match=r"no predictions\.json, expected a finished inference"):
        _run(predictions, tmp_path / "out", "masks")
