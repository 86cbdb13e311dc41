import math
from pathlib import Path

import pytest

from lungseg.errors import InputError
from lungseg.report.charts import learning_curves
from lungseg.report.study_results import read_study
from tests.report.result_files import dice_row, write_run


def test_image_of_several_runs_counts_once(study: Path) -> None:
    for name, dice in (("pooled-fold0", 0.9), ("pooled-fold1", 0.7)):
        cross_row = {**dice_row(name, 0, dice, "south", "cross"), "image_id": "same"}
        write_run(study / name, name, [dice_row(name, 0, dice), cross_row], ["north"])
    held_out, cross = read_study(str(study)).tables[0].all_runs
    assert (held_out.about["role"], held_out.metrics["images"]) == ("held-out", 2)
    assert (cross.about["role"], cross.metrics["images"]) == ("cross", 1)
    assert cross.metrics["dice"] == pytest.approx(0.8)


def test_runs_with_other_settings_get_their_own_table(study: Path) -> None:
    write_run(study / "pooled-fold1", "pooled-fold1", [dice_row("pooled-fold1", 0, 0.9)], ["north"], epochs=9)
    tables = read_study(str(study)).tables
    assert [(table.about["epochs"], table.about["runs"]) for table in tables] == [(3, 1), (9, 1)]


def test_repeated_epoch_counts_once(study: Path) -> None:
    path = study / "pooled-fold0" / "metrics.jsonl"
    path.write_text('{"epoch": 1, "loss": 3}\n{"epoch": 2, "loss": 2}\n{"epoch": 2, "loss": 1}\n')
    assert [row["loss"] for row in read_study(str(study)).curves["pooled-fold0"]] == [3, 1]
    path.write_text('{"epoch": 1')
    with pytest.raises(InputError, match="not valid JSON"):
        read_study(str(study))


@pytest.mark.parametrize("line", ["[]", "3", '{"epoch": 1, "loss": "low"}'])
def test_damaged_line_of_a_curve_is_refused(study: Path, line: str) -> None:
    (study / "pooled-fold0" / "metrics.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"metrics\.jsonl: .*: delete it, or train again"):
        read_study(str(study))


def test_a_loss_too_large_for_a_float_is_infinite_and_not_drawn(study: Path) -> None:
    path = study / "pooled-fold0" / "metrics.jsonl"
    path.write_text(f'{{"epoch": 1, "loss": 3, "held_out_dice": 0.5}}\n{{"epoch": 2, "loss": {10**400}}}\n')
    curves = read_study(str(study)).curves
    assert [row["loss"] for row in curves["pooled-fold0"]] == [3, math.inf]
    assert learning_curves(curves)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("trial", "no such folder"), ("trial/study.json", "no study.json"), ("trial/*/run.json", "none of 3 runs")],
)
def test_folder_without_a_study_is_refused(study: Path, missing: str, message: str) -> None:
    for path in study.parent.glob(missing):
        path.unlink() if path.is_file() else path.rename(study.parent / "away")
    with pytest.raises(InputError, match=message):
        read_study(str(study))
