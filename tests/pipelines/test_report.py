import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import ReportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.pipelines import report
from lungseg.result_columns import STUDY_ROWS, TEST_ROWS
from lungseg.schema import SCHEMA, table
from lungseg.study.tested_images import study_rows
from tests.report.result_files import (
    DICE,
    DrawPair,
    dice_row,
    write_archive,
    write_predictions,
    write_run,
    write_study,
    write_study_rows,
)

RUNS = ["pooled-fold0", "pooled-fold1"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "runs" / "trial")


def _run(study: Path, **values: Any) -> tuple[Row, str]:
    report.run(ReportSettings(study=str(study), **values))
    out = Path(values.get("out") or study)
    return json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_json_page_and_terminal_agree(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, page = _run(study)
    (table,) = numbers["study"]["tables"]
    first = {row["run"]: row for row in table["rows"]}["pooled-fold0"]
    dice = [dice_row("pooled-fold0", 0, value)["dice"] for value in DICE["pooled-fold0"]]
    assert first["images"] == 4
    assert first["dice"] == pytest.approx(np.mean(dice))
    assert first["dice_p5"] == pytest.approx(np.percentile(dice, 5))
    assert first["dice_min"] == pytest.approx(0.5)
    assert first["dice_low"] < first["dice"] < first["dice_high"]
    (all_runs,) = table["all_runs"]
    assert all_runs["images"] == 6
    assert all_runs["dice"] == pytest.approx(np.mean([*dice, 0.95, 0.85]))
    assert (table["resolution"], table["threshold"], table["aggregation"]) == ("64 px", 0.5, "mean over images")
    assert numbers["schema"] == SCHEMA
    assert numbers["predictions"] is None
    for text in (capsys.readouterr().out, page):
        assert f"{all_runs['dice']:.4f}" in text
        assert "at 64 px, reference: prepared mask enlarged to native size, threshold 0.5" in " ".join(text.split())


def test_unfinished_run_is_a_row(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, page = _run(study)
    assert numbers["study"]["unfinished"] == [{"run": "pooled-fold2", "state": "not finished", "epochs": 1}]
    assert numbers["notes"] == ["1 of 3 runs is unfinished: its results are missing."]
    assert numbers["notes"][0] in page
    assert re.search(r"pooled-fold2 +1 +not finished", capsys.readouterr().out)


def test_cross_dataset_matrix_comes_first(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study_rows(study, "source-to-source", "north", RUNS, cross=0.5)
    numbers, page = _run(study)
    results = numbers["study"]["results"]
    own, other = results["cells"]
    assert (own["role"], own["images"], other["role"], other["images"]) == ("held-out", 6, "cross", 2)
    assert own["dice"] == pytest.approx(np.mean([value for values in DICE.values() for value in values]))
    (gap,) = results["gaps"]
    assert gap["gap"] == pytest.approx(own["dice"] - other["dice"])
    terminal = capsys.readouterr().out
    for text in (page, terminal):
        assert f"{own['dice']:.3f} [" in text
        assert "south" in text
    assert f"{gap['gap']:.4f}" in page
    assert page.index("Generalisation gap") < page.index("<h3>Trained on north")
    assert f"gap {gap['gap']:.3f}" in terminal


def test_studies_are_compared_image_by_image(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(study, tmp_path / "runs" / "other")
    content = json.loads((other / "study.json").read_text())
    (other / "study.json").write_text(json.dumps({**content, "study": "other"}))
    write_study_rows(study, "source-to-source", "north", RUNS, cross=0.5)
    write_study_rows(other, "source-to-source", "north", RUNS, cross=0.6)
    for summary in other.glob("*/run.json"):
        settings = {**json.loads(summary.read_text())["settings"], "epochs": 77}
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "settings": settings}))
    numbers, page = _run(study, compare_with=(str(other),))
    (difference,) = numbers["study"]["study_differences"]
    assert (difference["name"], difference["other_study"], difference["other"]) == ("--epochs", "other", "77")
    held_out, cross = numbers["study"]["study_comparisons"]
    assert (held_out["images"], held_out["difference"]) == (6, 0.0)
    assert cross["difference"] == pytest.approx(cross["dice"] - cross["other_dice"]) == pytest.approx(-0.1, abs=0.01)
    for text in (page, capsys.readouterr().out):
        assert f"{cross['difference']:.4f}" in text
        assert "Comparison with other studies" in text
        assert "What differs between the studies" in text


def test_study_that_cannot_be_compared_is_refused(study: Path, tmp_path: Path) -> None:
    other = shutil.copytree(study, tmp_path / "runs" / "other")
    write_study_rows(other, "pooled", "south", ["pooled-fold0"])
    with pytest.raises(InputError, match=r"other: no run of this study was trained on the same datasets"):
        _run(study, compare_with=(str(other),))
    content = json.loads((other / "study.json").read_text())
    (other / "study.json").write_text(json.dumps({**content, "settings": {"folds": 5, "split_seed": 1}}))
    write_run(other / "pooled-fold0", "pooled-fold0", [dice_row("pooled-fold0", 9, 0.5)], ["north"])
    write_study_rows(other, "pooled", "north", ["pooled-fold0"])
    with pytest.raises(InputError, match=r"other: --folds, --split-seed and --folds-from are \(5, 1, ''\), ex"):
        _run(study, compare_with=(str(other),))


def test_predictions_of_an_interrupted_inference_are_noted(study: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    rows = write_archive(tmp_path / "archive", draw_pair)
    write_predictions(tmp_path / "predictions", rows[:4], planned=9)
    content = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**content, "runs": ["pooled-fold1"]}))
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"), out=str(tmp_path / "out"), overlays=3)
    interrupted, other_run = numbers["notes"]
    assert "The inference was interrupted: the results cover 4 of 9 inputs" in interrupted
    assert other_run == "The predictions are by pooled-fold0, not a run of this study."
    assert [overlay["rank"] for overlay in numbers["overlays"]] == ["worst", "median", "best"]
    assert page.count("<img ") == 3


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"nothing to report: pass --study FOLDER .* --predictions FOLDER"):
        report.run(ReportSettings())
    with pytest.raises(SettingsError, match="--compare-with needs a study"):
        report.run(ReportSettings(predictions="/x", compare_with=("/y",)))


def test_predictions_are_reported_without_a_study(
    tmp_path: Path, draw_pair: DrawPair, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_archive(tmp_path / "archive", draw_pair)
    doubtful = [{**row, "doubt": number / 100, "doubt_reason": "why"} for number, row in enumerate(rows[:7])]
    write_predictions(tmp_path / "predictions", doubtful)
    report.run(ReportSettings(predictions=str(tmp_path / "predictions"), overlays=3))
    numbers = json.loads((tmp_path / "predictions" / "report.json").read_text())
    assert [overlay["image_id"] for overlay in numbers["overlays"]] == ["image_6", "image_5", "image_4"]
    assert "3 of 7 images with a mask are shown" in (tmp_path / "predictions" / "report.html").read_text()
    terminal = capsys.readouterr().out
    assert "Look at these images first: 5 of 7 with a mask" in terminal
    assert re.search(r"1 +0\.060 +6\.png +why", terminal)
    assert "tudy" not in terminal


def test_worst_replaces_the_choice_by_dice(study: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    rows = write_archive(tmp_path / "archive", draw_pair)
    doubtful = [{**row, "doubt": number / 100} for number, row in enumerate(rows[:7])]
    write_predictions(tmp_path / "predictions", doubtful)
    numbers, page = _run(study, predictions=str(tmp_path / "predictions"), out=str(tmp_path / "out"), worst=2)
    assert [(overlay["rank"], overlay["dice"] is None) for overlay in numbers["overlays"]] == [
        ("1", True),
        ("2", False),
    ]
    assert "2 of 7 images with a mask are shown" in page


def test_report_imports_neither_torch_nor_ray(study: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    write_predictions(tmp_path / "predictions", write_archive(tmp_path / "archive", draw_pair))
    script = (
        "import sys\n"
        "from lungseg.config import ReportSettings\n"
        "from lungseg.pipelines import report\n"
        "report.run(ReportSettings(study=sys.argv[1], predictions=sys.argv[2]))\n"
        "assert not {'torch', 'ray', 'wandb'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(study), str(tmp_path / "predictions")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100


def _write_seeds(folder: Path, seeds: Sequence[int], better: float) -> Path:
    """Write a study of two folds, each trained with these seeds."""
    rows, names = [], []
    for fold, seed in product(range(2), seeds):
        name = f"pooled-seed{seed}-fold{fold}"
        noise = np.random.default_rng([fold, seed]).normal(better, 0.01, 8)
        own = [dice_row(name, number, 0.8 + float(noise[number])) for number in range(8)]
        cross = [dice_row(name, number, 0.7 + float(noise[number]), "south", "cross") for number in range(8)]
        run = [
            {**dict.fromkeys(TEST_ROWS.names), **row, "patient_id": f"{row['dataset']}{row['image_id']}"}
            for row in (*own, *cross)
        ]
        write_run(folder / name, name, run, ["north"], seed=seed)
        rows += study_rows(run, "pooled", ["north"], fold, seed)
        names.append(name)
    storage.write_json(str(folder / "study.json"), {"study": folder.name, "runs": names, "settings": {}})
    storage.write_table(str(folder / "study.parquet"), table(rows, STUDY_ROWS))
    return folder


def test_report_shows_seeds_and_what_intervals_account_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = _write_seeds(tmp_path / "a", (0, 1, 2), 0.0), _write_seeds(tmp_path / "b", (3, 4, 5), 0.05)
    numbers, page = _run(first, compare_with=(str(second),))
    terminal, plain_page = capsys.readouterr().out, " ".join(page.split())
    for text in (terminal, plain_page):
        assert "over patients and trainings" in text
        assert "over patients only" not in text
        assert text.count("Change of the generalisation gap") == 1
        assert "Mean Dice of single seeds" in text
        assert "3 seeds: " in text
    assert "2 of 2 folds, 3 seeds, 6 runs" in plain_page
    pair, gap = numbers["study"]["study_comparisons"][0], numbers["study"]["gap_comparisons"][0]
    assert (pair["basis"], pair["dice_seeds"], pair["other_dice_seeds"]) == ("patients and trainings", 3, 3)
    assert pair["p"] < 1e-3 < gap["p"]
    assert pair["p_holm"] >= pair["p"]
    (all_runs, _) = numbers["study"]["tables"][0]["all_runs"]
    cell = numbers["study"]["results"]["cells"][0]
    assert (all_runs["dice_low"], all_runs["dice_basis"]) == (cell["dice_low"], "patients and trainings")
    assert numbers["study"]["tables"][0]["rows"][0]["dice_basis"] == "patients"


def test_one_seed_on_a_side_leaves_trainings_out(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = _write_seeds(tmp_path / "b", (3,), 0.05)
    _, page = _run(_write_seeds(tmp_path / "a", (0, 1), 0.0), compare_with=(str(other),))
    heading = page[page.index("<h3>Comparison with other studies") :].split("</p>")[0]
    assert "over patients, not over trainings" in heading
    assert "2 seeds: " in page
    assert "1 seed" in page
    terminal = capsys.readouterr().out
    heading = terminal[terminal.index("Comparison with other studies") :].splitlines()[2]
    assert heading.startswith("95 % interval and p over patients, not over trainings; Holm")
