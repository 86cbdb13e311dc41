from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungseg.errors import InputError
from lungseg.report import result_table, study_results


def _row(image: int, dice: float | None, patient: str = "") -> dict[str, Any]:
    named = {"image_id": str(image), "dataset": "north", "patient_id": patient}
    return {**named, **dict.fromkeys(result_table.METRICS, dice)}


def test_figures_leave_out_what_has_no_reference() -> None:
    rows = [_row(image, dice) for image, dice in enumerate((0.5, 1.0, None))]
    found = result_table.compute_metrics(rows)
    assert (found["images"], found["dice"], found["dice_min"], found["dice_median"]) == (3, 0.75, 0.5, 0.75)
    assert found["dice_sd"] == pytest.approx(0.125**0.5)
    assert found["dice_p5"] == pytest.approx(0.525)
    none = result_table.compute_metrics(rows[2:])
    assert none.keys() == found.keys()
    assert none.pop("images") == 1
    assert set(none.values()) == {None}


def test_the_interval_is_over_patients() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.02, 400).tolist()
    apart = result_table.compute_metrics([_row(image, dice) for image, dice in enumerate(values)])
    assert apart["dice_high"] - apart["dice_low"] == pytest.approx(2 * 1.96 * 0.02 / 20, rel=0.15)
    fourfold = result_table.compute_metrics(
        [_row(image, dice, f"p{image % 100}") for image, dice in enumerate(4 * values[:100])]
    )
    assert fourfold["dice_high"] - fourfold["dice_low"] == pytest.approx(2 * 1.96 * 0.02 / 10, rel=0.2)
    one = result_table.compute_metrics([_row(image, dice, "p") for image, dice in enumerate(values)])
    assert (one["dice_low"], one["dice_high"]) == (None, None)


def test_a_patient_belongs_to_a_data_set() -> None:
    rows = [_row(0, 0.8, "p"), {**_row(1, 0.9, "p"), "dataset": "south"}]
    found = result_table.compute_metrics(rows)
    assert (found["dice_low"], found["dice_high"]) == (0.8, 0.9)


def test_an_epoch_that_was_done_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "loss": 3}\n{"epoch": 2, "loss": 2}\n{"epoch": 2, "loss": 1}\n')
    assert [row["loss"] for row in study_results._read_curve(str(path))] == [3, 1]
    path.write_text('{"epoch": 1')
    with pytest.raises(InputError, match="damaged"):
        study_results._read_curve(str(path))
