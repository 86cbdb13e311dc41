"""Predictions become a dataset of nnU-Net, which lungseg reads again."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungseg import storage
from lungseg.config import ExportSettings
from lungseg.errors import TaskResult
from lungseg.export import nnunet
from lungseg.export.writers import export_part
from lungseg.imaging import codecs
from lungseg.ingest import record_checks, sources
from lungseg.predictions.parts import part_path
from tests.export.prediction_files import DrawPair, prediction_row, replace_part

FOLDER = "Dataset501_north"


@pytest.fixture
def exported(predictions: Path, tmp_path: Path) -> Path:
    paths = [part_path(str(predictions), number) for number in (0, 1)]
    folders = nnunet.dataset_folders(paths)
    for path in paths:
        item = {"part": json.dumps({"path": path, "rows": None, "nnunet_folders": folders})}
        settings = ExportSettings(formats=("nnunet",))
        TaskResult.from_json(export_part(item, settings, str(tmp_path / "out"))["result"]).unwrap()
    nnunet.write_dataset_files(str(tmp_path / "out" / "nnunet"))
    return tmp_path / "out" / "nnunet"


def test_names_and_values_are_those_of_nnunet(exported: Path) -> None:
    cases = {"png_0", "png_1", "radiograph", "empty"}
    assert {path.name for path in (exported / FOLDER / "imagesTr").iterdir()} == {f"{case}_0000.png" for case in cases}
    assert {path.name for path in (exported / FOLDER / "labelsTr").iterdir()} == {f"{case}.png" for case in cases}
    content = json.loads((exported / FOLDER / "dataset.json").read_text())
    assert content["numTraining"] == 4
    assert (content["file_ending"], content["labels"]) == (".png", {"background": 0, "lung": 1})
    for case in cases:
        image, label = (
            cv2.imread(str(exported / FOLDER / name), cv2.IMREAD_UNCHANGED)
            for name in (f"imagesTr/{case}_0000.png", f"labelsTr/{case}.png")
        )
        assert image is not None
        assert label is not None
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == label.shape
        assert set(np.unique(label)) <= {0, 1}


def test_lungseg_reads_the_dataset_again(exported: Path, predictions: Path) -> None:
    rows = {row["image_id"]: row for row in storage.read_table(part_path(str(predictions), 0)).to_pylist()}
    records = [record for record in sources.discover(str(exported)) if record.image_id in rows]
    assert {record.dataset for record in records} == {"dataset501_north"}
    for record in records:
        opened, _, mask = record_checks.open_record(record)
        row = rows[record.image_id]
        assert opened.usable
        assert mask is not None
        assert (mask[0] == codecs.decode_rle(row["mask"], row["height"], row["width"])).all()


def test_long_ids_are_exported_under_short_names(tmp_path: Path, draw_pair: DrawPair) -> None:
    mask = draw_pair(1, 64, 64)[1]
    rows = [prediction_row(name, "/none.png", mask) for name in ("a" * 300, "b", "../c", "d" * 300)]
    (tmp_path / "predictions").mkdir()
    path = replace_part(tmp_path / "predictions", 0, rows)
    item = {"part": json.dumps({"path": str(path), "rows": None})}
    result = TaskResult.from_json(export_part(item, ExportSettings(), str(tmp_path / "out"))["result"]).unwrap()
    names = sorted(file.name for file in (tmp_path / "out" / "masks" / "north").iterdir())
    assert [len(name) for name in names] == [204, 5, 204]
    assert (result["counts"]["masks"], result["counts"]["refused"]) == (3, 1)
