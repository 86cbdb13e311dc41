import re

import pytest

from lungseg.report import console
from lungseg.report.prediction_results import Predictions
from lungseg.report.result_table import ResultLine
from lungseg.report.study_results import RunTable, Study
from lungseg.result_columns import STUDY_ROWS
from lungseg.study.cross_dataset import CrossDatasetResults, summarise
from lungseg.study.study_comparison import StudyComparisons

METRICS = ("dice", "dice_p5", "dice_min", "iou", "pixel_accuracy")
HOW = {"aggregation": "mean over images", "resolution": "64 px", "threshold": 0.5, "model_name": "lungs"}


def _show(
    capsys: pytest.CaptureFixture[str],
    run: str,
    dataset: str,
    matrix: CrossDatasetResults | None = None,
    predictions: Predictions | None = None,
) -> str:
    fold = {"run": run, "fold": 0, "class": "lung", "role": "held-out", "dataset": dataset}
    line = ResultLine(fold, {"images": 138, **dict.fromkeys(METRICS, 0.98765)}, ())
    about = {"runs": 1, "train_on": ["a", "b"], "protocol": "pooled", **HOW}
    unfinished = ({"run": run, "state": "failed: " + 30 * "reason ", "epochs": 3},)
    table = RunTable(about, (line,), ())
    study = Study("trial", "/trial", (run,), (table,), {}, unfinished, matrix or summarise([]))
    console.print_report(study, StudyComparisons(), predictions, ["one"])
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("dataset", ["montgomery", "ChinaSet_AllFiles_of_a_long_name"])
def test_no_number_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, dataset: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = _show(capsys, "from-montgomery-fold0-1a2b3c4d", dataset)
    assert max(map(len, text.splitlines())) <= max(100, int(columns))
    assert re.search(r"held-out .*138( +0\.9877){5}", text)
    assert "trained on a + b" in text
    assert "mean over images, at 64 px, threshold 0.5" in text
    assert "Note: one" in text


def test_names_of_20_characters_are_not_split(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    datasets = [f"archive_of_hospital{number}" for number in range(5)]
    assert {len(name) for name in datasets} == {20}
    rows = [
        {
            **dict.fromkeys(STUDY_ROWS.names, 0.9),
            "run": f"from-{source}-fold0-1a2b3c4d",
            "protocol": "source-to-source",
            "train_on": source,
            "class": "lung",
            "role": "held-out" if source == target else "cross",
            "dataset": target,
            "image_id": f"{target}_{number}",
            "patient_id": f"p{number}",
            "group": None,
        }
        for source in datasets
        for target in datasets
        for number in range(2)
    ]
    metrics = {**dict.fromkeys(METRICS, 0.98765), "images": 10000, "hd95_px": 123.45, "assd_px": 12.34}
    line = ResultLine({"dataset": datasets[0], "training": "unseen"}, {**metrics, "without_reference": 10}, ())
    codes = ({"dataset": datasets[0], "status": "rejected", "code": "outside_image", "images": 3},)
    about = {"runs": [rows[0]["run"]], "inputs": 3, "counts": {"rejected": 3}, **HOW}
    predictions = Predictions(about, (line,), codes, ())
    text = _show(capsys, rows[0]["run"], datasets[0], summarise(rows), predictions)
    assert max(map(len, text.splitlines())) <= 100
    words = set(text.split())
    assert {*datasets, rows[0]["run"], "(source-to-source)"} <= words
    names = re.compile(r"archive_|hospital|1a2b3c4d|from-")
    assert {word for word in words if names.search(word)} == {*datasets, rows[0]["run"]}


def test_names_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = _show(capsys, "[red]run[/red]", "\x1b[31mred:smile:")
    assert "[red]run[/red]" in text
    assert "?[31mred:smile:" in text
    assert "\x1b" not in text


def test_numbers_and_counts_as_text() -> None:
    assert console.format_number(0.98765, 4) == "0.9877"
    assert console.format_number(None, 4) == "-"
    assert console.format_number("north", None) == "north"
    assert console.format_counts({}) == "none"


def test_comparisons_of_long_names_are_not_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        {
            **dict.fromkeys(STUDY_ROWS.names, 0.9),
            "run": f"{train_on}{image}",
            "protocol": "leave-one-dataset-out",
            "train_on": train_on,
            "class": "lung",
            "role": "cross",
            "dataset": "archive_of_hospital0",
            "image_id": f"i{image}",
            "patient_id": f"p{image}",
            "group": None,
            "dice": 0.8 + shift + image / 100,
        }
        for train_on, shift in (("archive_of_hospital1+archive_of_hospital2", 0.05), ("archive_of_hospital3", 0.0))
        for image in range(8)
    ]
    text = " ".join(_show(capsys, "run", "archive_of_hospital0", summarise(rows)).split())
    figures = "Dice difference 0.0500 [0.0500, 0.0500], p = 0.0078 (Holm 0.0078)"
    assert f"{figures}, on 8 images of archive_of_hospital0 for archive" in text
    assert "minus archive_of_hospital3 (leave-one-dataset-out), 1 seed each" in text


def test_zero_has_no_minus() -> None:
    assert [console.format_number(value, 4) for value in (-0.00001, 0.0, -0.00006)] == ["0.0000", "0.0000", "-0.0001"]
