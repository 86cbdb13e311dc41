import json
from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.config import TrainSettings
from lungseg.dataset.folds import RunPlan
from lungseg.errors import InputError
from lungseg.report import study_results
from lungseg.result_columns import STUDY_ROWS, TEST_ROWS
from lungseg.schema import MANIFEST, table
from lungseg.study.study_files import StudyRecord, earlier_seeds

PLANS = {f"pooled-fold{fold}": RunPlan("pooled", ("a", "b"), fold, 2, 0) for fold in (0, 1)}


def _record(folder: Path, matching_runs: frozenset[str] = frozenset(PLANS)) -> StudyRecord:
    return StudyRecord(str(folder), TrainSettings(study="s"), PLANS, matching_runs)


def _finish(folder: Path, name: str, fold: int, dice: float, seed: int = 0) -> None:
    values: dict[str, Any] = dict.fromkeys(TEST_ROWS.names, 1)
    words = {"run": name, "image_id": f"i{fold}", "dataset": "a", "patient_id": "", "group": None}
    words |= {"role": "held-out", "class": "lung"}
    row = {**values, **words, "dice": dice, "hd95_px": None}
    storage.write_table(str(folder / name / "tested.parquet"), table([row], TEST_ROWS))
    plan = {"protocol": "pooled", "train_on": ["a", "b"], "fold": fold, "seed": seed}
    storage.write_json(str(folder / name / "run.json"), plan)


def test_both_files_reflect_the_runs(tmp_path: Path) -> None:
    record = _record(tmp_path)
    assert record.write().cells == ()
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["runs"] == list(PLANS)
    assert [state["state"] for state in study["states"].values()] == ["not finished"] * 2
    assert storage.read_table(str(tmp_path / "study.parquet")).schema.equals(STUDY_ROWS)
    _finish(tmp_path, "pooled-fold1", 1, 0.9)
    record.failures["pooled-fold0"] = "why"
    (cell,) = record.write().cells
    assert cell.dice is not None
    assert cell.dice.mean == 0.9
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["states"]["pooled-fold0"] == {
        "protocol": "pooled",
        "train_on": ["a", "b"],
        "fold": 0,
        "seed": 0,
        "state": "failed",
        "reason": "why",
        "in_results": False,
    }
    assert study["states"]["pooled-fold1"]["state"] == "finished"
    assert study["results"]["cells"][0]["undefined"] == {"hd95_px": 1}
    (row,) = storage.read_table(str(tmp_path / "study.parquet")).to_pylist()
    assert (row["train_on"], row["fold"], row["protocol"]) == ("a+b", 1, "pooled")


def test_finished_earlier_runs_stay_listed(tmp_path: Path) -> None:
    for name in ("of-other-settings", "of-another-fold"):
        _finish(tmp_path, name, 0, 0.5)
    names = ["of-other-settings", "of-another-fold", "never-finished"]
    storage.write_json(str(tmp_path / "study.json"), {"runs": names})
    (cell,) = _record(tmp_path, frozenset([*PLANS, "of-another-fold"])).write().cells
    assert cell.images == 1
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["runs"] == [*names[:2], *PLANS]
    assert [state["in_results"] for state in study["states"].values()] == [False, True, False, False]


def test_run_of_another_command_keeps_its_state(tmp_path: Path) -> None:
    other = {"protocol": "pooled", "train_on": ["a", "b"], "fold": 7, "state": "failed", "reason": "why"}
    states = {name: {**other, "in_results": False} for name in ("of-another-fold", "of-other-settings")}
    storage.write_json(str(tmp_path / "study.json"), {"runs": list(states), "states": states})
    _record(tmp_path, frozenset([*PLANS, "of-another-fold"])).write_states()
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["runs"] == ["of-another-fold", *PLANS]
    assert study["states"]["of-another-fold"] == states["of-another-fold"]


def test_results_of_other_settings_stay_until_new_ones_exist(tmp_path: Path) -> None:
    _finish(tmp_path, "pooled-fold0", 0, 0.5)
    _record(tmp_path).write()
    assert study_results.read_rows(str(tmp_path))
    _record(tmp_path).write_states()
    assert json.loads((tmp_path / "study.json").read_text())["results"]["cells"]
    plans = {"pooled-fold0-of-other-settings": PLANS["pooled-fold0"]}
    record = StudyRecord(str(tmp_path), TrainSettings(study="s"), plans, frozenset(plans))
    for write in (record.write_states, record.write):
        write()
        assert json.loads((tmp_path / "study.json").read_text())["results"]["cells"]
        assert [row["run"] for row in study_results.read_rows(str(tmp_path))] == ["pooled-fold0"]
    _finish(tmp_path, "pooled-fold0-of-other-settings", 0, 0.7)
    record.write_states()
    assert [row["run"] for row in study_results.read_rows(str(tmp_path))] == ["pooled-fold0"]
    assert record.write().cells[0].metrics["dice"].mean == 0.7  # type: ignore[union-attr]
    assert [row["run"] for row in study_results.read_rows(str(tmp_path))] == ["pooled-fold0-of-other-settings"]
    assert record.kept_aside() == ["pooled-fold0"]


def test_finished_run_without_rows_is_refused(tmp_path: Path) -> None:
    _finish(tmp_path, "pooled-fold0", 0, 0.5)
    (tmp_path / "pooled-fold0" / "tested.parquet").unlink()
    with pytest.raises(InputError, match=r"tested\.parquet: cannot be read"):
        _record(tmp_path).write()


def test_seed_and_subgroups_are_in_the_rows(tmp_path: Path) -> None:
    known = {**dict.fromkeys(MANIFEST.names), "dataset": "a", "image_id": "i0", "finding": "tb", "sex": "female"}
    storage.write_table(str(tmp_path / "data" / "manifest.parquet"), table([known], MANIFEST))
    for name, fold, seed in (("pooled-fold0-seed2", 0, 2), ("pooled-fold1", 1, 0)):
        _finish(tmp_path / "s", name, fold, 0.5, seed)
    plans = {name: RunPlan("pooled", ("a", "b"), 0, 2, 0) for name in ("pooled-fold0-seed2", "pooled-fold1")}
    data = (str(tmp_path / "data"),)
    StudyRecord(str(tmp_path / "s"), TrainSettings(study="s"), plans, frozenset(plans), data).write()
    rows = storage.read_table(str(tmp_path / "s" / "study.parquet")).to_pylist()
    columns = ("image_id", "seed", "finding", "age_group", "sex")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("i0", 2, "tb", None, "female"),
        ("i1", 0, None, None, None),
    ]
    assert earlier_seeds(str(tmp_path / "s")) == {0, 2}
    assert earlier_seeds(str(tmp_path / "none")) == set()
