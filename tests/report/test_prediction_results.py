from pathlib import Path

import numpy as np
import pytest

from lungseg.arrays import Row
from lungseg.errors import InputError
from lungseg.report.prediction_results import read_predictions
from tests.report.result_files import write_predictions


def test_metrics_are_split_by_seen_in_training(rows: list[Row], tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", rows)
    predictions = read_predictions(str(tmp_path / "predictions"))
    unseen, seen = (line.as_json() for line in predictions.lines)
    assert (unseen["training"], unseen["images"], unseen["without_reference"]) == ("unseen", 5, 1)
    assert (seen["training"], seen["images"], seen["without_reference"]) == ("seen", 2, 0)
    for line, group in ((unseen, rows[:4]), (seen, rows[4:6])):
        for name in ("dice", "iou", "pixel_accuracy", "hd95_px", "assd_px"):
            assert line[name] == pytest.approx(np.mean([row[name] for row in group])), name


def test_every_input_is_counted(rows: list[Row], tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", rows)
    predictions = read_predictions(str(tmp_path / "predictions"))
    assert predictions.about["counts"] == {"failed": 1, "ok": 7, "rejected": 1}
    assert predictions.about["inputs"] == len(rows)
    codes = {(row["status"], row["code"]): row["images"] for row in predictions.codes}
    assert codes == {("ok", "mask_size"): 1, ("failed", "unreadable"): 1, ("rejected", "undecodable"): 1}


def test_interrupted_inference_is_incomplete(rows: list[Row], tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", rows[:4], planned=9)
    about = read_predictions(str(tmp_path / "predictions")).about
    assert (about["complete"], about["inputs"], about["planned"]) == (False, 4, 9)


def test_folder_without_predictions_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_predictions(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no plan\.json"):
        read_predictions(str(study))
